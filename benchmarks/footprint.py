"""How much memory does collecting take?

Each figure has its own process, because a peak cannot be reset. The processes are forked from one
that has done all imports and computed nothing.
"""

from __future__ import annotations

import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from benchmarks.harness import forked
from benchmarks.worlds.models import build
from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect


def resident() -> int:
    """Bytes of memory that this process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def footprint(model: str, memory: float, samples: int, projector: ProjectorSpec) -> dict[str, int]:
    """Collect random images in a new process.

    Args:
        model: a name of `benchmarks.worlds.models`.
        memory: memory budget, GiB.
        samples: number of images.
        projector: projector of their gradients.

    Returns:
        Bytes of that process: resident `before` collecting, at its `peak`, and the model's
        `weights`.
    """
    with ProcessPoolExecutor(1, mp_context=forked.context()) as pool:
        return pool.submit(_warm, model, memory, samples, projector).result()


def _warm(model: str, memory: float, samples: int, projector: ProjectorSpec) -> dict[str, int]:
    measure("tiny", 4.0, 8, ProjectorSpec(proj_dim=64))  # one-time loading
    return measure(model, memory, samples, projector)


def measure(name: str, memory: float, samples: int, projector: ProjectorSpec) -> dict[str, int]:
    """Collect random images; return bytes before, at the peak, and of the weights."""
    torch.manual_seed(0)
    model = build(name)
    side = model.config["sample_size"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint-1"
        DDIMPipeline(model, DDIMScheduler()).save_pretrained(checkpoint)
        weights = sum(p.nbytes for p in model.parameters())
        del model
        images = torch.rand(samples, 3, side, side) * 2 - 1
        before = resident()
        collect(
            Samples(images),
            checkpoint,
            Path(folder) / "s.gradstore",
            objective="l1",
            events=EventSpec(events="planned", timesteps=1),
            projector=projector,
            metric="none",
            memory=memory,
            engine="streaming",
        )
    # Not from getrusage: it includes the parent process.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"before": before, "peak": peak, "weights": weights}
