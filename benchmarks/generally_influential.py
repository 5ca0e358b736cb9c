"""Are the same few samples influential for all queries, and does normalising remove them?

The paper (arXiv 2401.09031, section 6) calls a sample generally influential if it is among the
proponents of unrelated queries, and finds about two thirds fewer of them under ReTrac.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
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
    prepare,
)
from query.evaluation.figures import distinctness, top
from query.statistics import Interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MEASURES: Final = (
    *("tracin", "power:0.5", "clip:0.9", "clip:0.5", "calibrated"),
    *("calibrated|retrac", "retrac|calibrated", "retrac", "trak"),
    *(f"{measure}, {metric}" for metric in METRICS for measure in ("tracin", "retrac", "trak")),
)
# A generally influential sample is a proponent of more than this share of the queries.
GENERAL: Final = 0.1
_RESAMPLES: Final = 500


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: the model and its rows.
        seeds: seeds of the training runs.
        k: number of proponents of each query.
    """

    setting: Setting
    seeds: tuple[int, ...]
    k: int


PRESETS = {
    "cpu": Preset(SETTINGS["pictures"], (0, 1), k=50),
    "paper": Preset(SETTINGS["paper"], (0,), k=50),
    "tiny": Preset(SETTINGS["tiny"], (0, 1), k=5),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `generally_influential.json`, `.md` and `.png` into `out`."""
    worlds = [prepare(replace(preset.setting, seed=seed), folders) for seed in preset.seeds]
    samples, queries = worlds[0].store.samples, worlds[0].queries.samples
    found = {name: [attributed(world, name) for world in worlds] for name in MEASURES}
    measures = {name: _hubs(worlds, each, preset.k) for name, each in found.items()}
    chance = _chance(samples, queries, preset.k)
    against = {
        name: _ratio(found["tracin"], each, preset.k).json()
        for name, each in found.items()
        if name != "tracin"
    }
    tracin, retrac = measures["tracin"], measures["retrac"]
    targets = [
        *(
            Target(
                f"generally influential samples, {name} / TracIn",
                "about 1/3, interval below 0.5 (the paper: two thirds fewer)",
                against[name]["mean"],
                against[name]["high"] < 0.5,
            )
            for name in ("retrac", "retrac, kfac")
        ),
        Target(
            "distinctness, ReTrac less TracIn",
            "> 0",
            retrac["distinctness"]["mean"] - tracin["distinctness"]["mean"],
            retrac["distinctness"]["low"] > tracin["distinctness"]["high"],
        ),
        Target(
            "Spearman of how often with norm, ReTrac / TracIn",
            "< 1: it is the norm's doing",
            retrac["with norm"]["mean"] / tracin["with norm"]["mean"],
            retrac["with norm"]["mean"] < tracin["with norm"]["mean"],
        ),
    ]
    inputs = {
        "setting": asdict(preset.setting),
        "training_seeds": preset.seeds,
        "queries": dict(preset.setting.queries),
        "k": preset.k,
        "general": GENERAL,
        "chance": chance,
    }
    figures = {"measures": measures, "general_over_tracin": against}
    page = _page(inputs, figures, targets)
    save(out, "generally_influential", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(
        out / "generally_influential.png",
        figures,
        {name: _counts(each[0], preset.k) for name, each in found.items()},
    )
    return targets


def _counts(found: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Number of queries that each sample is a proponent of, `[samples]`."""
    return np.bincount(top(found, k).ravel(), minlength=found.shape[1])


def _general(found: NDArray[np.float32], k: int) -> float:
    """Number of samples that are proponents of more than `GENERAL` of the queries."""
    return float((_counts(found, k) > GENERAL * len(found)).sum())


def _skewness(found: NDArray[np.float32], k: int) -> float:
    """Skewness of the counts, the usual measure of hubness (Radovanović et al. 2010)."""
    counts = _counts(found, k).astype(np.float64)
    away = counts - counts.mean()
    spread = (away**2).mean() ** 1.5
    return float((away**3).mean() / spread) if spread else 0.0


def _largest(found: NDArray[np.float32], k: int) -> float:
    """Share of the queries that the most frequent sample is a proponent of."""
    return float(_counts(found, k).max()) / len(found)


def _hubs(worlds: Sequence[World], found: Sequence[NDArray[np.float32]], k: int) -> dict[str, Any]:
    """Figures of one measure, each with an interval over halves of the queries."""
    norms = [
        np.mean([world.store.column("norm", c)[:, 0] for c in range(world.store.checkpoints)], 0)
        for world in worlds
    ]
    ways: dict[str, Callable[[NDArray[np.float32], NDArray[np.float64]], float]] = {
        "distinctness": lambda one, _: distinctness(one, k),
        "generally influential": lambda one, _: _general(one, k),
        "largest": lambda one, _: _largest(one, k),
        "skewness": lambda one, _: _skewness(one, k),
        "with norm": lambda one, norm: float(rank_correlation(_counts(one, k), norm)[0]),
    }

    def figure(
        way: Callable[[NDArray[np.float32], NDArray[np.float64]], float],
        run: int,
        rows: NDArray[np.int64],
    ) -> float:
        return way(found[run][rows], norms[run])

    return {
        name: _halves(
            [partial(figure, way, run) for run in range(len(worlds))], len(found[0])
        ).json()
        for name, way in ways.items()
    }


def _halves(runs: Sequence[Callable[[NDArray[np.int64]], float]], queries: int) -> Interval:
    """A figure of a set of queries, with the 95% interval of the delete-half jackknife.

    Distinct counts cannot be bootstrapped, because a query drawn twice repeats its whole list.
    Halves are drawn without replacement: their spread about their mean is that of all queries.
    """
    every = np.arange(queries)
    each = [figure(every) for figure in runs]
    generator = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        rows = generator.permutation(queries)[: queries // 2]
        found.append(float(np.nanmean([figure(rows) for figure in runs])))
    mean = float(np.mean(each))
    low, high = np.quantile(np.array(found) - np.mean(found), [0.025, 0.975])
    return Interval(mean, mean + float(low), mean + float(high), queries, tuple(each))


def _ratio(
    base: Sequence[NDArray[np.float32]], found: Sequence[NDArray[np.float32]], k: int
) -> Interval:
    """Ratio of the numbers of generally influential samples under two measures."""

    def figure(rows: NDArray[np.int64]) -> float:
        left = sum(_general(one[rows], k) for one in found)
        right = sum(_general(one[rows], k) for one in base)
        return left / right if right else float("nan")

    return _halves([figure], len(found[0]))


def _chance(samples: int, queries: int, k: int) -> dict[str, float]:
    """The same figures for random lists."""
    generator = np.random.default_rng(0)
    found = generator.random((queries, samples)).astype(np.float32)
    return {
        "distinctness": distinctness(found, k),
        "generally influential": _general(found, k),
        "largest": _largest(found, k),
        "skewness": _skewness(found, k),
    }


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    setting, chance = inputs["setting"], inputs["chance"]
    asked = ", ".join(f"{count} {name}" for name, count in inputs["queries"].items())
    lines = [
        "# Are the same few samples influential for all queries?",
        "",
        (
            f"`python -m benchmarks.generally_influential`; {setting['planes']:,} CIFAR-10 planes "
            f"and {setting['zeros']} MNIST zeros of {setting['size']} × {setting['size']}, "
            f"{setting['epochs']} epochs, training seeds "
            f"{', '.join(map(str, inputs['training_seeds']))}; diverse queries ({asked}), the "
            f"first {inputs['k']} proponents of each; {machine()['cpu']}. A generally "
            f"influential sample is a proponent of more than {inputs['general']:.0%} of the "
            "queries. *General*: their number. *Most frequent*: the largest share of queries that "
            "one sample is a proponent of. *Skewness* of these counts, and their Spearman "
            "correlation *with norm*. Intervals (95%) come from random halves of the queries. "
            "Training rows are replayed, as in the paper; `none` and `kfac`: at a query's "
            "timesteps, in this metric."
        ),
        "",
        "| measure | distinct | general | / TracIn's | most frequent | skewness | with norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in figures["measures"].items():
        over = figures["general_over_tracin"].get(name)
        cells = [
            text(one["distinctness"]),
            text(one["generally influential"], 0),
            text(over, 2) if over else "1",
            text(one["largest"], 2),
            text(one["skewness"], 1),
            text(one["with norm"], 2),
        ]
        lines.append(f"| {cell(name)} | " + " | ".join(cells) + " |")
    lines += [
        (
            f"| random lists | {chance['distinctness']:.3f} | "
            f"{chance['generally influential']:.0f} | | {chance['largest']:.2f} | "
            f"{chance['skewness']:.1f} | |"
        ),
        "",
        target_table(targets),
        "",
        notes("generally_influential"),
    ]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any], counts: dict[str, NDArray[np.int64]]) -> None:
    figure, axes = canvas(1, 2)
    names = list(figures["measures"])
    bars(axes[0, 0], names, [figures["measures"][name]["distinctness"] for name in names])
    axes[0, 0].set(title="distinctness")
    for name in ("tracin", "calibrated", "retrac", "trak"):
        seen = np.sort(counts[name])[::-1]
        axes[0, 1].plot(np.arange(1, len(seen) + 1), seen, label=name)
    axes[0, 1].set(xscale="log", xlabel="samples, the most frequent first", ylabel="queries")
    axes[0, 1].legend(fontsize=8)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
