"""What does a row cost, beside a plain training step?

Collects a shard of random images through the public API with each projector, and times it against
forward and backward of the mean loss over the same batches, and against `BasicProjector.project`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from trak.projectors import BasicProjector

from benchmarks.results import RESULTS, Target, interleaved, machine, save, spread, target_table
from gradstore.collect import (
    DiffusionLoss,
    EventSpec,
    InProcess,
    ProjectorSpec,
    Samples,
    SjltProjector,
    Task,
    TrakProjector,
    collect,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCH = 32
TRAINING_SET = 5200  # the paper's: what drawing a matrix once is amortised over


@dataclass(frozen=True)
class Preset:
    """Sizes of a run."""

    channels: tuple[int, ...]
    side: int
    samples: int
    proj_dim: int
    repeats: int


PRESETS = {
    "cpu": Preset((32, 64, 64), 32, 256, 4096, 3),
    "tiny": Preset((8, 8, 8), 8, 32, 64, 1),
}


class _Timed(InProcess):
    """Times the tasks alone: no scan of the dataset, no survey of checkpoints."""

    seconds = 0.0

    def run(self, tasks: Sequence[Task], work: Callable[[Task], None]) -> None:
        start = perf_counter()
        super().run(tasks, work)
        self.seconds = perf_counter() - start


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Measure, and write `collect.json`, `collect.md` and `collect.png` into `out`."""
    torch.manual_seed(seed)
    model = _model(preset)
    num_parameters = sum(p.numel() for p in model.parameters())
    images = torch.rand(preset.samples, 3, preset.side, preset.side) * 2 - 1
    cpu = torch.device("cpu")
    specs = {
        "sjlt": ProjectorSpec(projector="sjlt", proj_dim=preset.proj_dim, proj_seed=seed),
        "trak bfloat16": ProjectorSpec(
            proj_dim=preset.proj_dim, proj_seed=seed, precision="bfloat16"
        ),
        "trak float32": ProjectorSpec(proj_dim=preset.proj_dim, proj_seed=seed),
    }

    step = _plain_step(model, images)
    plain: list[float] = []
    shards: dict[str, list[float]] = {name: [] for name in specs}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint-1"
        DDIMPipeline(model, DDIMScheduler()).save_pretrained(checkpoint)
        for repeat in range(preset.repeats):
            for name, spec in specs.items():
                plain.append(interleaved({"step": step}, 3)["step"]["median"])
                timed = _Timed()
                collect(
                    Samples(images),
                    checkpoint,
                    Path(folder) / f"{name}-{repeat}.gradstore",
                    objective="l1",
                    events=EventSpec(events="planned", timesteps=1),
                    projector=spec,
                    executor=timed,
                    shard_samples=preset.samples,
                )
                shards[name].append(timed.seconds)

    gradients = torch.randn(BATCH, num_parameters)
    sketch = torch.zeros(BATCH, preset.proj_dim)
    sparse = SjltProjector(specs["sjlt"]).at(0, num_parameters, cpu, 0)
    alone = interleaved(
        {"read": gradients.sum, "sjlt": lambda: sparse.add(sketch, 0, gradients)},
        5 * preset.repeats,
    )
    draws = []
    for _ in range(preset.repeats):
        start = perf_counter()
        TrakProjector(specs["trak bfloat16"]).at(0, num_parameters, cpu, 1 << 40)
        draws.append(perf_counter() - start)
    block_size = specs["trak float32"].resolved_block_size
    basic = BasicProjector(
        num_parameters, preset.proj_dim, seed, "rademacher", cpu, block_size=block_size
    )
    start = perf_counter()
    basic.project(gradients, model_id=0)
    basic_seconds = perf_counter() - start

    batches = preset.samples / BATCH
    draw = spread(draws)
    per_batch: dict[str, dict[str, float]] = {}
    for name, seconds in shards.items():
        once = 0.0 if name == "sjlt" else draw["median"]
        amortised = once * BATCH / TRAINING_SET
        per_batch[name] = spread([(value - once) / batches + amortised for value in seconds])
    unit = spread(plain)["median"]
    ratio = {name: figures["median"] / unit for name, figures in per_batch.items()}
    sparse_ratio = alone["sjlt"]["median"] / alone["read"]["median"]
    against_basic = basic_seconds / per_batch["trak bfloat16"]["median"]
    targets = [
        Target("collect with sjlt", "≤ 1.4 × a plain step", ratio["sjlt"], ratio["sjlt"] <= 1.4),
        Target(
            "collect with trak, amortised over 5,200 samples",
            "≤ 3 × a plain step",
            ratio["trak bfloat16"],
            ratio["trak bfloat16"] <= 3,
        ),
        Target(
            "collecting a batch with trak, against BasicProjector.project alone",
            "≥ 20 × faster",
            against_basic,
            against_basic >= 20,
        ),
        Target("sjlt alone", "≤ 5 × reading the gradients", sparse_ratio, sparse_ratio <= 5),
    ]
    figures = {
        "plain_step_seconds": spread(plain),
        "collect_seconds_per_batch": per_batch,
        "sjlt_alone_seconds": alone,
        "trak_draw_seconds": draw,
        "basic_projector_seconds_per_batch": basic_seconds,
    }
    inputs = {
        "num_parameters": num_parameters,
        "batch": BATCH,
        "samples": preset.samples,
        "proj_dim": preset.proj_dim,
        "repeats": preset.repeats,
        "seed": seed,
    }
    page = _page(inputs, figures, ratio, targets)
    save(out, "collect", inputs=inputs, figures=figures, targets=targets, page=page)
    bars = {"plain step": 1.0, **ratio, "BasicProjector alone": basic_seconds / unit}
    _plot(out / "collect.png", bars)
    return targets


def _model(preset: Preset) -> UNet2DModel:
    return UNet2DModel(
        sample_size=preset.side,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=preset.channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).eval()


def _plain_step(model: UNet2DModel, images: torch.Tensor) -> Callable[[], None]:
    objective = DiffusionLoss(DDIMScheduler(), "l1")
    inputs = images[:BATCH]
    timesteps, noise = torch.randint(0, 1000, (BATCH,)), torch.randn_like(inputs)

    def step() -> None:
        model.zero_grad()
        loss = objective.losses(model, inputs, timesteps, noise, {}).mean()
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def _page(
    inputs: dict[str, Any],
    figures: dict[str, Any],
    ratio: dict[str, float],
    targets: Sequence[Target],
) -> str:
    plain = figures["plain_step_seconds"]["median"]
    lines = [
        "# What does a row cost, beside a plain training step?",
        "",
        (
            f"`python -m benchmarks.collect`; {inputs['num_parameters']:,} parameters, batch "
            f"{inputs['batch']}, {inputs['proj_dim']:,} dimensions, {machine()['cpu']}, "
            f"{machine()['threads']} threads. Medians; everything in one run, in turns."
        ),
        "",
        "| | ms per batch | × a plain step |",
        "|---|---|---|",
        f"| plain step | {plain * 1e3:.0f} | 1 |",
        *[
            f"| collect, {name}, written and sealed | "
            f"{figures['collect_seconds_per_batch'][name]['median'] * 1e3:.0f} | {value:.2f} |"
            for name, value in ratio.items()
        ],
        (
            "| BasicProjector.project alone | "
            f"{figures['basic_projector_seconds_per_batch'] * 1e3:.0f} | "
            f"{figures['basic_projector_seconds_per_batch'] / plain:.0f} |"
        ),
        "",
        target_table(targets),
        "",
        (
            "Drawing trak's matrix once for a checkpoint took "
            f"{figures['trak_draw_seconds']['median']:.1f} s. A target that is not met stands as "
            "it is: the next thing to work on."
        ),
        "",
    ]
    return "\n".join(lines)


def _plot(path: Path, ratios: dict[str, float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    bars = axes.barh(list(ratios), list(ratios.values()))
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xscale("log")
    axes.set_xlabel("time per batch, in plain training steps")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    run(PRESETS[given.preset], given.out)


if __name__ == "__main__":
    main()
