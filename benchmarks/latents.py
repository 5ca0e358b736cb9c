"""Do the findings on planes and zeros hold for a latent diffusion model?

The paper's second open question. A model of the same size is trained on the latents of an
autoencoder, beside the one on pixels. For both: does the gradient's norm grow with the timestep,
does self-influence find the outliers, do zeros find zeros, how distinct are the lists?
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.harness.plots import bars, canvas, keep
from benchmarks.harness.results import Target, notes, processor, save, target_table
from benchmarks.outliers import average_precision
from benchmarks.worlds.latents import CHANNELS, Coding, autoencoder, encoded, error
from benchmarks.worlds.setting import (
    GENERATED,
    SETTINGS,
    Folders,
    Setting,
    World,
    attributed,
    command,
    images_of,
    own_influences,
    prepare,
)
from query.evaluation.figures import auroc, distinctness, top
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gradstore.store.reader import Store

METHODS: Final = (
    *("tracin", "retrac", "calibrated", "trak"),
    *(f"{measure}, kfac" for measure in ("tracin", "retrac", "trak")),
)
DETECTORS: Final = ("tracin", "retrac", "tracin, kfac", "retrac, kfac")
_NEAR, _FAR = 10, 50


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        pixels: the model of pixels, and its rows.
        latents: the model of latents, and its rows; `size` is that of the images.
        coding: the autoencoder.
        seeds: seeds of the training runs.
    """

    pixels: Setting
    latents: Setting
    coding: Coding
    seeds: tuple[int, ...]


def _latent(setting: Setting, size: int) -> Setting:
    asked = tuple(one for one in setting.queries if one[0] != GENERATED)
    return replace(setting, size=size, queries=asked)


PRESETS = {
    "cpu": Preset(
        SETTINGS["pictures"], _latent(SETTINGS["pictures"], 32), Coding((16, 32, 32), 1500), (0, 1)
    ),
    "paper": Preset(
        SETTINGS["paper"], _latent(SETTINGS["paper"], 32), Coding((32, 64, 64), 10_000), (0,)
    ),
    "tiny": Preset(SETTINGS["tiny"], _latent(SETTINGS["tiny"], 16), Coding((8, 8), 20), (0, 1)),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `latents.json`, `.md` and `.png` into `out`."""
    counts = {"plane": preset.latents.planes, "zero": preset.latents.zeros}
    images = images_of(folders, counts, "train", preset.latents.size)
    model = autoencoder(preset.coding, images, folders.cache)
    side = preset.coding.side(preset.latents.size)
    seen = partial(encoded, model)
    options = {"in_channels": CHANNELS, "out_channels": CHANNELS, "sample_size": side}
    worlds = {
        "pixels": [prepare(replace(preset.pixels, seed=seed), folders) for seed in preset.seeds],
        "latents": [
            prepare(replace(preset.latents, seed=seed), folders, seen=seen, **options)
            for seed in preset.seeds
        ],
    }
    figures: dict[str, Any] = {name: _figures(own) for name, own in worlds.items()}
    figures["error of the autoencoder"] = error(model, images)
    figures["side"] = side
    targets = _targets(figures)
    page = _page(preset, figures, targets)
    save(out, "latents", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    _plot(out / "latents.png", figures)
    return targets


def _figures(worlds: Sequence[World]) -> dict[str, Any]:
    """Figures of one kind of model; each entry of `worlds` is a training seed."""
    zero = np.array(worlds[0].store.manifest.metadata["label"]) == "zero"
    zeros, others = worlds[0].of("zero"), worlds[0].of("plane", "automobile", "bird", "horse")
    measures = {}
    for method in METHODS:
        found = [attributed(world, method) for world in worlds]
        measures[method] = {
            "zeros of zero queries": interval(
                [zero[top(one[zeros], _NEAR)].mean(axis=1) for one in found]
            ).json(),
            "average precision of zeros": interval(
                [average_precision(one[zeros], zero) for one in found]
            ).json(),
            "distinct": [distinctness(one[[*zeros, *others]], _FAR) for one in found],
        }
    detectors = {
        name: auroc([own_influences(world, name) for world in worlds], zero).json()
        for name in DETECTORS
    }
    trends = {
        "replayed": [_trend(world.store) for world in worlds],
        "kfac": [_trend(world.rows("kfac")[0]) for world in worlds],
    }
    return {"measures": measures, "detectors": detectors, "norm with timestep": trends}


def _trend(store: Store) -> float:
    """Spearman of the rows' norms with their timesteps at the last checkpoint."""
    norm, timestep = (
        store.column(name, store.checkpoints - 1).reshape(1, -1) for name in ("norm", "timestep")
    )
    return float(rank_correlation(norm.astype(np.float64), timestep.astype(np.float64))[0])


def _targets(figures: Mapping[str, Any]) -> list[Target]:
    own = figures["latents"]
    measures, detectors = own["measures"], own["detectors"]
    trend = float(np.mean(own["norm with timestep"]["replayed"]))
    distinct = {name: float(np.mean(one["distinct"])) for name, one in measures.items()}
    precise = {name: one["average precision of zeros"]["mean"] for name, one in measures.items()}
    return [
        Target(
            "latents: Spearman of norm with timestep, the last checkpoint's replayed rows",
            "> 0: the paper's bias",
            trend,
            trend > 0,
        ),
        Target(
            "latents: distinctness, ReTrac less TracIn",
            "> 0 (the paper)",
            distinct["retrac"] - distinct["tracin"],
            distinct["retrac"] > distinct["tracin"],
        ),
        Target(
            "latents: AUROC of self-influence for zeros, TracIn in K-FAC's metric",
            "≥ 0.95",
            detectors["tracin, kfac"]["mean"],
            detectors["tracin, kfac"]["mean"] >= 0.95,
        ),
        Target(
            "latents: average precision of zeros, ReTrac in K-FAC's metric less TracIn's own",
            "> 0",
            precise["retrac, kfac"] - precise["tracin"],
            precise["retrac, kfac"] > precise["tracin"],
        ),
    ]


def _page(preset: Preset, figures: Mapping[str, Any], targets: Sequence[Target]) -> str:
    pixels, latents, side = preset.pixels, preset.latents, figures["side"]
    kinds = ("pixels", "latents")
    lines = [
        "# Do the findings hold for a latent diffusion model?",
        "",
        (
            f"`python -m benchmarks.latents`; {pixels.planes:,} CIFAR-10 planes and {pixels.zeros} "
            f"MNIST zeros, {pixels.epochs} epochs, training seeds "
            f"{', '.join(map(str, preset.seeds))}; {processor()}. *Pixels*: images of "
            f"{pixels.size} × {pixels.size}. *Latents*: the same of {latents.size} × "
            f"{latents.size}, encoded to {side} × {side} × {CHANNELS} by an autoencoder trained on "
            f"them for {preset.coding.steps:,} steps (mean absolute error of decoded images "
            f"{figures['error of the autoencoder']:.3f}, of values from −1 to 1). The same model "
            "but for its channels, and the same schedule. Training rows are replayed, as in the "
            "paper; `kfac`: at a query's timesteps, in this metric. Means over queries and seeds, "
            "95% intervals over queries; distinctness of the first "
            f"{_FAR} with the range of seeds."
        ),
        "",
        (
            "| measure | zeros in top 10 of zeros: pixels | latents | average precision: pixels | "
            "latents | distinct: pixels | latents |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        own = [figures[kind]["measures"][name] for kind in kinds]
        cells = [text(one["zeros of zero queries"], 2) for one in own]
        cells += [text(one["average precision of zeros"], 2) for one in own]
        cells += [_range(one["distinct"]) for one in own]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "AUROC of self-influence for zeros, without a query:",
        "",
        "| detector | pixels | latents |",
        "|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(text(figures[kind]["detectors"][name], 3) for kind in kinds)
            + " |"
            for name in DETECTORS
        ),
        "",
        "Spearman of a row's norm with its timestep at the last checkpoint:",
        "",
        "| rows | pixels | latents |",
        "|---|---|---|",
        *(
            f"| {name} | "
            + " | ".join(_range(figures[kind]["norm with timestep"][name]) for kind in kinds)
            + " |"
            for name in ("replayed", "kfac")
        ),
        "",
        target_table(targets),
        "",
        "![Average precision of zeros](latents.png)",
        "",
        notes("latents"),
    ]
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def _plot(path: Path, figures: Mapping[str, Any]) -> None:
    figure, axes = canvas(1, 2)
    for one, kind in zip(axes[0], ("pixels", "latents"), strict=True):
        own = figures[kind]["measures"]
        bars(one, list(own), [own[name]["average precision of zeros"] for name in own])
        one.set(title=kind, xlabel="average precision of zeros", xlim=(0, 1))
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
