"""Results of a benchmark: figures with their machine, targets, a plot and a page."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Results of a processor with only AVX2, or limited to it, are kept apart from the others.
_FEW = torch.backends.cpu.get_cpu_capability() == "AVX2"
RESULTS = Path(__file__).parents[1] / "results" / ("avx2" if _FEW else "")
NOTES = Path(__file__).parents[1] / "notes"


@dataclass(frozen=True)
class Target:
    """A target and its measurement.

    Attributes:
        name: the measured quantity.
        target: the target, in words.
        measured: the figure.
        met: whether the target is met.
    """

    name: str
    target: str
    measured: float
    met: bool


def machine() -> dict[str, Any]:
    """The machine that produced the figures."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    packages = ("torch", "diffusers", "traker", "zarr", "numpy")
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "instructions": instructions(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "versions": {name: version(name) for name in packages},
    }


def processor() -> str:
    """Processor, instructions and threads, for a page."""
    found = machine()
    return f"{found['cpu']}, {found['instructions']}, {found['threads']} threads"


def instructions() -> str:
    """The instruction set of torch's CPU kernels, and whether the processor has bfloat16.

    MKL multiplies float32; it chooses by itself, and torch's variables do not limit it.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    found = torch.backends.cpu.get_cpu_capability()
    native = not limited and ("avx512_bf16" in flags or "amx_bf16" in flags)
    return f"{found} {'with' if native else 'without'} bfloat16"


def interleaved(
    jobs: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float]]:
    """Time jobs in turns, so that other load on the machine affects all of them equally.

    Returns:
        Seconds of each job: median, lowest and highest.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeats):
        for name, job in jobs.items():
            start = perf_counter()
            job()
            seconds[name].append(perf_counter() - start)
    return {name: spread(values) for name, values in seconds.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of some figures."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def save(
    out: Path,
    name: str,
    *,
    inputs: Mapping[str, Any],
    figures: Mapping[str, Any],
    targets: Sequence[Target],
    page: str,
) -> None:
    """Write `NAME.json` and `NAME.md` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "inputs": inputs,
        "machine": machine(),
        "figures": figures,
        "targets": [asdict(target) for target in targets],
    }
    (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(page, encoding="utf-8")


def notes(name: str) -> str:
    """A person's interpretation of a benchmark's figures; empty if there is none."""
    file = NOTES / f"{name}.md"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def cell(words: str) -> str:
    """Text escaped for a Markdown table."""
    return words.replace("|", "\\|")


def target_table(targets: Sequence[Target]) -> str:
    """Targets as a Markdown table."""
    lines = ["| quantity | target | measured | met |", "|---|---|---|---|"]
    lines += [
        f"| {cell(t.name)} | {t.target} | {t.measured:.2f} | {'yes' if t.met else '**no**'} |"
        for t in targets
    ]
    return "\n".join(lines)
