"""How much memory does collecting take? Run by `benchmarks.collect`, a process for each figure.

Prints bytes as JSON: the process's resident memory before collecting, its peak, and what it
collected. A process of its own, for a peak cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from benchmarks.models import MODELS, build
from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect


def resident() -> int:
    """Bytes of this process's memory that are in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--memory", type=float, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--projector", default="sjlt")
    parser.add_argument("--proj-dim", type=int, default=4096)
    given = parser.parse_args()
    measure("tiny", 4.0, 8, ProjectorSpec(proj_dim=64))  # loads what is loaded once
    projector = ProjectorSpec(projector=given.projector, proj_dim=given.proj_dim)
    figures = measure(given.model, given.memory, given.samples, projector)
    json.dump(figures, sys.stdout)


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


if __name__ == "__main__":
    main()
