"""How much memory does collecting take?

A process of its own for each figure, for a peak cannot be taken back. They are forked from one
that has imported everything and computed nothing.
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
    """Bytes of this process's memory that are in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def footprint(model: str, memory: float, samples: int, projector: ProjectorSpec) -> dict[str, int]:
    """Collect random images in a new process.

    Args:
        model: a name of `benchmarks.worlds.models`.
        memory: what collecting may take, GiB.
        samples: how many images.
        projector: projects their gradients.

    Returns:
        Bytes of that process: resident `before` collecting, at its `peak`, and the model's
        `weights`.
    """
    with ProcessPoolExecutor(1, mp_context=forked.context()) as pool:
        return pool.submit(_warm, model, memory, samples, projector).result()


def _warm(model: str, memory: float, samples: int, projector: ProjectorSpec) -> dict[str, int]:
    measure("tiny", 4.0, 8, ProjectorSpec(proj_dim=64))  # loads what is loaded once
    return measure(model, memory, samples, projector)


def measure(name: str, memory: float, samples: int, projector: ProjectorSpec) -> dict[str, int]:
    """Collect random images; bytes before, at the peak, and of the model's weights."""
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
            memory=memory,
            engine="streaming",
        )
    # Not getrusage's: that one remembers the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return {"before": before, "peak": peak, "weights": weights}
