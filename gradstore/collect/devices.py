"""The compute devices of this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def choose(device: str | torch.device | None) -> torch.device:
    """Choose the given device; by default cuda if available, else cpu.

    If several CUDA devices exist and none is named, the local rank selects one.

    Raises:
        ConfigError: if torch does not know the device or cannot use it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            # A launcher may make only its own device visible to each rank.
            chosen = torch.device("cuda", _local_rank() % max(1, torch.cuda.device_count()))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]} `gradstore "
            "doctor` lists the available devices."
        ) from error
    return chosen


def _local_rank() -> int:
    """Index of this process on this machine, as set by torchrun or srun."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        value = os.environ.get(name)
        if value:
            try:
                return int(value)
            except ValueError as error:
                raise ConfigError(f"{name} must be a whole number, not {value!r}.") from error
    return 0


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest float dtype of a device; mps has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact(values: Tensor) -> Tensor:
    """Convert to float64, on the values' device, or on the CPU if the device lacks float64."""
    home = values if exact_dtype(values.device) == torch.float64 else values.cpu()
    return home.double()


def describe() -> list[str]:
    """One line per device that torch can use."""
    lines = [f"cpu, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        lines.append(f"cuda:{number}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps")
    return lines


def fast_jl() -> str:
    """Test TRAK's CUDA kernel, if installed, by running it; return the result as text."""
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
    # On some CUDA versions it silently returns zeros.
    return "works" if bool(sketch.any()) else "installed, but returns zeros: do not use it"
