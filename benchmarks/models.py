"""What does a row of a text-to-image LoRA cost, relative to a step of training it?

A Stable Diffusion UNet of a size for CPUs with LoRA adapters on its attention, saved and loaded as
diffusers' scripts do. Measures time and memory of a batch of rows by each engine, beside a training
step of the adapters on the same batch.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from benchmarks.harness.command import command
from benchmarks.harness.plots import bars, canvas, keep
from benchmarks.harness.results import (
    Target,
    interleaved,
    notes,
    processor,
    save,
    target_table,
)
from gradstore.collect import Adapters, DiffusionLoss
from gradstore.collect.engines import LoopEngine, StreamingEngine, VmapEngine
from gradstore.collect.engines.allocated import peak_bytes
from gradstore.collect.metrics.whitening import neutral
from gradstore.collect.objectives.protocol import Batch
from gradstore.collect.pipeline.allocator import kept_memory
from gradstore.collect.pipeline.differentiating import LoadedCheckpoint
from gradstore.collect.projectors import from_spec
from gradstore.store.format.spec import ProjectorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from gradstore.collect.models.loading import Checkpoint

_PLAIN: Final = "a training step"
_CPU: Final = torch.device("cpu")
_WIDTH: Final = 64


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        channels: of the UNet's levels.
        side: of the latents.
        tokens: of a caption.
        rank: of the adapters.
        rows: rows of a batch.
        proj_dim: projection dimension, by sjlt.
        repeats: repetitions of each measurement.
    """

    channels: tuple[int, ...]
    side: int
    tokens: int
    rank: int
    rows: int
    proj_dim: int
    repeats: int


PRESETS = {
    "cpu": Preset((64, 128, 128), 16, 77, 8, 16, 4096, 9),
    "tiny": Preset((8, 16), 8, 4, 2, 4, 64, 1),
}


def run(preset: Preset, out: Path) -> list[Target]:
    """Measure, and write `models.json`, `.md` and `.png` into `out`."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        loaded = _saved_and_loaded(preset, Path(folder))
    objective = DiffusionLoss(loaded.scheduler, "l2")
    side = preset.side
    batch = Batch(
        torch.randn(preset.rows, 4, side, side),
        torch.randint(0, 1000, (preset.rows,)),
        torch.randn(preset.rows, 1, 4, side, side),
        {"encoder_hidden_states": torch.randn(preset.rows, preset.tokens, _WIDTH)},
    )
    jobs: dict[str, Callable[[], object]] = {
        _PLAIN: _step(loaded.model, objective, batch),
        **_ways(preset, loaded.model, objective, batch),
    }
    with kept_memory():
        seconds = interleaved(jobs, preset.repeats)
    memory = {name: peak_bytes(job, _CPU) for name, job in jobs.items()}
    adapters = [one for one in loaded.model.parameters() if one.requires_grad]
    figures: dict[str, Any] = {
        "parameters": sum(one.numel() for one in loaded.model.parameters()),
        "adapters": sum(one.numel() for one in adapters),
        "seconds": seconds,
        "bytes": memory,
        "ratios": {
            name: one["median"] / seconds[_PLAIN]["median"] for name, one in seconds.items()
        },
    }
    targets = _targets(figures)
    page = _page(preset, figures, targets)
    save(out, "models", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    _plot(out / "models.png", figures)
    return targets


def _saved_and_loaded(preset: Preset, folder: Path) -> Checkpoint:
    """A base with adapters, saved as `train_text_to_image_lora.py` saves them."""
    levels = len(preset.channels)
    model = UNet2DConditionModel(
        sample_size=preset.side,
        block_out_channels=preset.channels,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        layers_per_block=1,
        cross_attention_dim=_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    base, tuned = folder / "base", folder / "checkpoint-1"
    model.save_pretrained(base / "unet")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(base / "scheduler")
    model.add_adapter(
        LoraConfig(
            r=preset.rank,
            lora_alpha=preset.rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # half of them begin at 0, where gradients of others are 0
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    StableDiffusionPipeline.save_lora_weights(tuned, unet_lora_layers=layers)
    return Adapters(base, [tuned]).load(tuned)


def _step(model: nn.Module, objective: DiffusionLoss, batch: Batch) -> Callable[[], None]:
    """A step of training: the gradient of the mean loss, and Adam."""
    own = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(own, lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        inputs, timesteps, noise = batch.inputs, batch.timesteps, batch.noise[:, 0]
        losses = objective.losses(model, inputs, timesteps, noise, batch.conditions)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ways(
    preset: Preset, model: nn.Module, objective: DiffusionLoss, batch: Batch
) -> dict[str, Callable[[], object]]:
    """Rows by each engine, projected."""
    projector = from_spec(ProjectorSpec(projector="sjlt", proj_dim=preset.proj_dim))
    found: dict[str, Callable[[], object]] = {}
    for name, engine, mapped in (
        ("streaming", StreamingEngine, False),
        ("streaming, K-FAC's metric", StreamingEngine, True),
        ("vmap", VmapEngine, False),
        ("loop", LoopEngine, False),
    ):
        checkpoint = LoadedCheckpoint(Path(), model, objective, engine, _CPU)
        if mapped:  # its fit takes its time once per checkpoint, and any map costs the same
            checkpoint.whiten(neutral(model, layerwise=True), "trial")
        projection = projector.at(0, checkpoint.num_parameters, _CPU, 1 << 30)
        rows = torch.zeros(preset.rows, projection.width, dtype=projection.dtype)
        receive = partial(projection.add, rows)
        found[name] = partial(checkpoint.differentiate, batch, preset.rows, receive)
    return found


def _targets(figures: Mapping[str, Any]) -> list[Target]:
    ratios, held = figures["ratios"], figures["bytes"]
    faster = ratios["vmap"] / ratios["streaming"]
    return [
        Target(
            "rows by streaming, over a training step of the same batch",
            "≤ 1.3",
            ratios["streaming"],
            ratios["streaming"] <= 1.3,
        ),
        Target("speed of streaming over vmap", "> 1", faster, faster > 1),
        Target(
            "memory of streaming over a training step's",
            "≤ 1.3",
            held["streaming"] / held[_PLAIN],
            held["streaming"] <= 1.3 * held[_PLAIN],
        ),
    ]


def _page(preset: Preset, figures: Mapping[str, Any], targets: Sequence[Target]) -> str:
    lines = [
        "# What does a row of a text-to-image LoRA cost?",
        "",
        (
            f"`python -m benchmarks.models`; a Stable Diffusion UNet of {figures['parameters']:,} "
            f"parameters, {figures['adapters']:,} of them LoRA of rank {preset.rank} on its "
            f"attention; latents of 4 × {preset.side} × {preset.side}, captions of {preset.tokens} "
            f"tokens; {preset.rows} rows at once, sjlt to {preset.proj_dim:,}; {processor()}. "
            "Seconds are medians of "
            f"{preset.repeats} in turns (lowest … highest); memory is that of tensors besides the "
            "model."
        ),
        "",
        "| | milliseconds | rows/s | over a training step | MiB |",
        "|---|---|---|---|---|",
    ]
    for name, one in figures["seconds"].items():
        spread = f"{1e3 * one['median']:.0f} ({1e3 * one['low']:.0f} … {1e3 * one['high']:.0f})"
        lines.append(
            f"| {name} | {spread} | {preset.rows / one['median']:.1f} | "
            f"{figures['ratios'][name]:.2f} | {figures['bytes'][name] / 2**20:.0f} |"
        )
    lines += ["", target_table(targets), "", "![Time](models.png)", "", notes("models")]
    return "\n".join(lines)


def _plot(path: Path, figures: Mapping[str, Any]) -> None:
    figure, axes = canvas(1, 1)
    plain = figures["seconds"][_PLAIN]["median"]
    cells = [
        {"mean": one["median"] / plain, "low": one["low"] / plain, "high": one["high"] / plain}
        for one in figures["seconds"].values()
    ]
    bars(axes[0, 0], list(figures["seconds"]), cells)
    axes[0, 0].set(xlabel="times a training step", xlim=(0, None))
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
