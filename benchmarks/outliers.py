"""Planes and zeros: what does each measure rank first, and does self-influence find outliers?

The training set contains forty zeros among a thousand planes. A plane's proponents should be
planes, and a zero's proponents zeros. A detector without queries should find the zeros.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.harness.plots import bars, canvas, keep
from benchmarks.harness.results import Target, cell, machine, notes, save, target_table
from benchmarks.worlds.setting import (
    METRICS,
    SETTINGS,
    Folders,
    Setting,
    World,
    attributed,
    command,
    own_influences,
    prepare,
)
from query.evaluation.figures import auroc, top
from query.statistics import interval, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MEASURES: Final = (
    *("tracin", "power:0.5", "clip:0.9", "clip:0.5", "calibrated"),
    *("calibrated|retrac", "retrac|calibrated", "retrac", "trak"),
    *(f"{measure}, {metric}" for metric in METRICS for measure in ("tracin", "retrac", "trak")),
)
# Self-influence of unit rows says nothing where a sample has one row.
DETECTORS: Final = (
    *("tracin", "power:0.5", "clip:0.9", "calibrated", "retrac"),
    *(f"{measure}, {metric}" for metric in METRICS for measure in ("tracin", "retrac")),
)
PICTURED: Final = ("tracin", "retrac", "retrac, kfac")


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: the model and its rows.
        seeds: seeds of the training runs.
        depths: k of precision@k.
        pictured: number of queries of each class in the picture, and of proponents of each.
    """

    setting: Setting
    seeds: tuple[int, ...]
    depths: tuple[int, ...]
    pictured: tuple[int, int]


PRESETS = {
    "cpu": Preset(SETTINGS["pictures"], (0, 1), (1, 10, 40, 50), (3, 8)),
    "paper": Preset(SETTINGS["paper"], (0,), (1, 10, 50, 200), (4, 10)),
    "tiny": Preset(SETTINGS["tiny"], (0, 1), (1, 5), (2, 3)),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `outliers.json`, `.md` and `.png`, and `outliers-proponents.png`."""
    worlds = [prepare(replace(preset.setting, seed=seed), folders) for seed in preset.seeds]
    zero = np.array(worlds[0].store.manifest.metadata["label"]) == "zero"
    found = {measure: [attributed(world, measure) for world in worlds] for measure in MEASURES}
    classes = {
        measure: _classes(worlds, ranked, zero, preset.depths) for measure, ranked in found.items()
    }
    detectors = _detectors(worlds, zero)
    near = preset.depths[1]
    share = {
        name: one["zeros of zero queries"][f"@{near}"]["mean"] for name, one in classes.items()
    }
    strange = {
        name: one["zeros of plane queries"][f"@{preset.depths[-1]}"]["mean"]
        for name, one in classes.items()
    }
    targets = [
        Target(
            f"zeros among the top {preset.depths[-1]} of plane queries, ReTrac / TracIn",
            "< 1: fewer outliers (the paper)",
            _ratio(strange["retrac"], strange["tracin"]),
            strange["retrac"] < strange["tracin"],
        ),
        Target(
            f"zeros among the top {near} of zero queries, ReTrac less TracIn",
            "≥ 0: no precision lost",
            share["retrac"] - share["tracin"],
            share["retrac"] >= share["tracin"],
        ),
        Target(
            f"zeros among the top {near} of zero queries, calibrated less TracIn",
            "> 0.2 (an earlier small run)",
            share["calibrated"] - share["tracin"],
            share["calibrated"] - share["tracin"] > 0.2,
        ),
        Target(
            "zeros among the top 10 of zero queries, ReTrac in K-FAC's metric less TracIn without",
            "≥ 0: no precision lost",
            share["retrac, kfac"] - share["tracin"],
            share["retrac, kfac"] >= share["tracin"],
        ),
        *(
            Target(
                f"AUROC of self-influence for zeros, {name}",
                f"≥ {least} as outlier detector",
                detectors[f"self-influence, {name}"]["auroc"]["mean"],
                detectors[f"self-influence, {name}"]["auroc"]["mean"] >= least,
            )
            for name, least in (("tracin", 0.8), ("tracin, kfac", 0.95), ("retrac, kfac", 0.95))
        ),
    ]
    inputs = {
        "setting": asdict(preset.setting),
        "training_seeds": preset.seeds,
        "plane_queries": len(worlds[0].of("plane")),
        "zero_queries": len(worlds[0].of("zero")),
        "chance_zero": float(zero.mean()),
    }
    figures = {"measures": classes, "detectors": detectors}
    page = _page(preset, inputs, figures, targets)
    save(out, "outliers", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "outliers.png", figures, preset)
    _picture(
        out / "outliers-proponents.png",
        worlds[0],
        {measure: found[measure][0] for measure in PICTURED},
        preset.pictured,
    )
    return targets


def _classes(
    worlds: Sequence[World],
    ranked: Sequence[NDArray[np.float32]],
    zero: NDArray[np.bool_],
    depths: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Shares of zeros among proponents, by class of the query."""
    figures: dict[str, dict[str, Any]] = {}
    for name, label in (("zeros of plane queries", "plane"), ("zeros of zero queries", "zero")):
        rows = worlds[0].of(label)
        figures[name] = {
            f"@{k}": interval([zero[top(one[rows], k)].mean(axis=1) for one in ranked]).json()
            for k in depths
        }
    rows = worlds[0].of("zero")
    figures["average precision of zeros"] = interval(
        [average_precision(one[rows], zero) for one in ranked]
    ).json()
    return figures


def average_precision(found: NDArray[np.float32], hit: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average precision of each query, `[queries]`: the mean of the precision at each hit."""
    ordered = hit[top(found, found.shape[1])]
    precision = np.cumsum(ordered, axis=1) / np.arange(1, ordered.shape[1] + 1)
    result: NDArray[np.float64] = (precision * ordered).sum(axis=1) / ordered.sum(axis=1)
    return result


def _detectors(worlds: Sequence[World], zero: NDArray[np.bool_]) -> dict[str, Any]:
    """Detection of zeros by figures that need no query."""
    ways = {
        f"self-influence, {name}": [own_influences(world, name) for world in worlds]
        for name in DETECTORS
    }
    ways["mean loss of the rows"] = [
        np.mean([store.column("loss", k)[:, 0] for k in range(store.checkpoints)], axis=0)
        for store in (world.store for world in worlds)
    ]
    count = int(zero.sum())
    figures = {}
    for name, values in ways.items():
        figures[name] = {
            "auroc": auroc(values, zero).json(),
            "precision": interval(
                [[float(zero[np.argsort(-one, kind="stable")[:count]].mean())] for one in values]
            ).json(),
        }
    return figures


def _ratio(left: float, right: float) -> float:
    return left / right if right else float("nan")


def _page(
    preset: Preset, inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]
) -> str:
    setting = preset.setting
    near, far = preset.depths[1], preset.depths[-1]
    lines = [
        "# Planes and zeros: which samples does each measure rank first?",
        "",
        (
            f"`python -m benchmarks.outliers`; {setting.planes:,} CIFAR-10 planes and "
            f"{setting.zeros} MNIST zeros of {setting.size} × {setting.size}, "
            f"{setting.epochs} epochs, "
            f"{setting.epochs // setting.checkpoint_every} checkpoints, sjlt to "
            f"{setting.proj_dim:,}; queries at {setting.timesteps} timesteps × {setting.draws} "
            f"noises; training seeds {', '.join(map(str, preset.seeds))}; {machine()['cpu']}. "
            "Means over queries and training seeds, with 95% bootstrap intervals over the "
            f"{inputs['plane_queries']} plane and {inputs['zero_queries']} zero queries (held "
            f"out). Chance is {inputs['chance_zero']:.3f}. In a measure `A|B`, A weights "
            "training rows and B query rows. Training rows are replayed, as in the paper; `none` "
            "and `kfac`: at a query's timesteps, in this metric."
        ),
        "",
        (
            f"| measure | zeros in top {near} of planes | in top {far} of planes | zeros in top "
            f"{near} of zeros | in top {far} of zeros | average precision of zeros |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for name, one in figures["measures"].items():
        planes, zeros = one["zeros of plane queries"], one["zeros of zero queries"]
        cells = [planes[f"@{near}"], planes[f"@{far}"], zeros[f"@{near}"], zeros[f"@{far}"]]
        cells.append(one["average precision of zeros"])
        lines.append(f"| {cell(name)} | " + " | ".join(map(text, cells)) + " |")
    lines += [
        "",
        "## Outliers, without a query",
        "",
        f"AUROC for zeros, and the share of zeros among the first {setting.zeros}.",
        "",
        "| detector | AUROC | precision |",
        "|---|---|---|",
        *[
            f"| {name} | {text(one['auroc'])} | {one['precision']['mean']:.2f} |"
            for name, one in figures["detectors"].items()
        ],
        "",
        target_table(targets),
        "",
        "![Proponents](outliers-proponents.png)",
        "",
        notes("outliers"),
    ]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any], preset: Preset) -> None:
    figure, axes = canvas(1, 2)
    near, far = preset.depths[1], preset.depths[-1]
    names = list(figures["measures"])
    for one, name, depth in (
        (axes[0, 0], "zeros of zero queries", near),
        (axes[0, 1], "zeros of plane queries", far),
    ):
        cells = [figures["measures"][measure][name][f"@{depth}"] for measure in names]
        bars(one, names, cells)
        one.set(title=f"{name}, top {depth}", xlabel="share", xlim=(0, None))
    keep(figure, path)


def _picture(
    path: Path, world: World, ranked: dict[str, NDArray[np.float32]], sizes: tuple[int, int]
) -> None:
    """Draw the paper's picture: each query, followed by its proponents."""
    queries, count = sizes
    rows = [*world.of("plane")[:queries], *world.of("zero")[:queries]]
    figure, axes = canvas(len(rows) * len(ranked), count + 1, width=0.6 * (count + 2), height=0.6)
    place = 0
    for row in rows:
        for measure, found in ranked.items():
            pictures = [world.asked.image(row)]
            pictures += [world.train.image(sample) for sample in top(found[[row]], count)[0]]
            for one, picture in zip(axes[place], pictures, strict=True):
                one.imshow(picture)
                one.set(xticks=[], yticks=[])
            axes[place, 0].set_ylabel(measure, rotation=0, ha="right", va="center", fontsize=7)
            place += 1
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
