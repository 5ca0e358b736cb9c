"""Does `plan` predict the time of collecting, and how long does it take itself?

Collects random images with a small model through the public API, with each projector, and divides
the predicted time by the measured time. `plan` runs in the same process just before.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler

from benchmarks.harness.command import command
from benchmarks.harness.results import Target, notes, processor, save, spread, target_table
from benchmarks.worlds.models import build
from gradstore.collect import EventSpec, InProcess, ProjectorSpec, Samples, collect, plan

if TYPE_CHECKING:
    from collections.abc import Sequence

_FACTOR = 1.5
_SECONDS = 10.0


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        model: the model.
        samples: number of collected images.
        checkpoints: number of checkpoints.
        timesteps: timesteps of each image.
        proj_dim: projection dimension.
        repeats: number of turns for each projector.
    """

    model: str
    samples: int
    checkpoints: int
    timesteps: int
    proj_dim: int
    repeats: int


PRESETS = {
    "cpu": Preset("small", 600, 2, 1, 1024, 3),
    "tiny": Preset("tiny", 40, 2, 1, 64, 1),
}


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Measure, and write `estimate.json` and `estimate.md` into `out`."""
    torch.manual_seed(seed)
    model = build(preset.model)
    side = model.config["sample_size"]
    images = torch.rand(preset.samples, 3, side, side) * 2 - 1
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = [Path(folder) / f"checkpoint-{n}" for n in range(preset.checkpoints)]
        for checkpoint in checkpoints:
            DDIMPipeline(model, DDIMScheduler()).save_pretrained(checkpoint)
        options: dict[str, Any] = {
            "objective": "l1",
            "events": EventSpec(events="planned", timesteps=preset.timesteps),
        }
        for kind in ("sjlt", "trak"):
            projector = ProjectorSpec.model_validate(
                {"projector": kind, "proj_dim": preset.proj_dim, "proj_seed": seed}
            )
            turns = []
            for turn in range(preset.repeats):
                path = Path(folder) / f"{kind}-{turn}.gradstore"
                start = perf_counter()
                bill = plan(Samples(images), checkpoints, path, projector=projector, **options)
                planned = perf_counter() - start
                start = perf_counter()
                collect(
                    Samples(images),
                    checkpoints,
                    path,
                    projector=projector,
                    executor=InProcess(),
                    **options,
                )
                turns.append((planned, bill.seconds, perf_counter() - start))
            columns = list(zip(*turns, strict=True))
            figures[kind] = {
                "planning": spread(columns[0]),
                "foretold": spread(columns[1]),
                "taken": spread(columns[2]),
                "foretold / taken": spread([told / took for _, told, took in turns]),
            }
    targets = _targets(figures)
    page = _page(preset, figures, targets)
    save(out, "estimate", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    return targets


def _targets(figures: dict[str, Any]) -> list[Target]:
    targets = []
    for kind, one in figures.items():
        ratios = one["foretold / taken"]
        worst = max(ratios["high"], 1 / ratios["low"])
        targets += [
            Target(
                f"{kind}: what plan foretells and what collecting takes, the worst turn",
                f"within a factor of {_FACTOR}",
                worst,
                worst <= _FACTOR,
            ),
            Target(
                f"{kind}: planning, seconds, the longest",
                f"≤ {_SECONDS:g}",
                one["planning"]["high"],
                one["planning"]["high"] <= _SECONDS,
            ),
        ]
    return targets


def _page(preset: Preset, figures: dict[str, Any], targets: Sequence[Target]) -> str:
    lines = [
        "# Does `plan` predict the time of collecting?",
        "",
        (
            f"`python -m benchmarks.estimate`; {processor()}; "
            f" {preset.samples} images, {preset.checkpoints} "
            f"checkpoints of the {preset.model} model, {preset.timesteps} timestep(s), "
            f"{preset.proj_dim:,} dimensions; medians of {preset.repeats} turns and their range. "
            "Collecting includes its own estimate and the rehearsal."
        ),
        "",
        target_table(targets),
        "",
        "| projector | planning, s | predicted, s | measured, s | predicted / measured |",
        "|---|---|---|---|---|",
    ]
    for kind, one in figures.items():
        cells = " | ".join(
            f"{value['median']:.2f} ({value['low']:.2f} … {value['high']:.2f})"
            for value in one.values()
        )
        lines.append(f"| {kind} | {cells} |")
    return "\n".join([*lines, "", notes("estimate")])


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
