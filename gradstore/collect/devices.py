"""What this machine computes with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def choose(device: str | torch.device | None) -> torch.device:
    """The device asked for; by default cuda if there is one, else cpu.

    Of several cards, where none is named, that of the local rank.

    Raises:
        ConfigError: if torch does not know the device or cannot use it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            # A launcher may also show each rank its own card only.
            chosen = torch.device("cuda", _local_rank() % max(1, torch.cuda.device_count()))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]} `gradstore "
            "doctor` lists what there is."
        ) from error
    return chosen


def _local_rank() -> int:
    """Which of this machine's processes this is, as torchrun or srun says."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        told = os.environ.get(name)
        if told:
            try:
                return int(told)
            except ValueError as error:
                raise ConfigError(f"{name} must be a whole number, not {told!r}.") from error
    return 0


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest real numbers that a device computes with: mps has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact(values: Tensor) -> Tensor:
    """Values in float64: on their device, or on the CPU where that has none."""
    home = values if exact_dtype(values.device) == torch.float64 else values.cpu()
    return home.double()


def describe() -> list[str]:
    """A line per device that torch can use."""
    lines = [f"cpu, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        lines.append(f"cuda:{number}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps")
    return lines


def fast_jl() -> str:
    """Whether TRAK's CUDA kernel works, by running it where it is installed."""
    try:
        import fast_jl as kernel
    except ImportError:
        return "not installed (optional, for CUDA: pip install 'traker[fast]')"
    if not torch.cuda.is_available():
        return "installed, but there is no CUDA device"
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    ones = torch.ones(8, 1000, device="cuda", dtype=torch.float16)
    try:
        sketch = kernel.project_rademacher_8(ones, 512, 0, multiprocessors)
    except RuntimeError as error:
        return f"installed, but fails: {error}"
    # On some CUDA versions it returns zeros without complaint.
    return "works" if bool(sketch.any()) else "installed, but returns zeros: do not use it"
