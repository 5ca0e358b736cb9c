"""How much of a gradient's norm should count? Every measure by every criterion.

Compares measures from TracIn, where a row's weight is its norm, to ReTrac, where all weights are
equal, by the outliers ranked and avoided, distinct lists, correct labels, and predictions of
retrained models. Scores by the norm alone show whether the removed norm contains a signal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import lds
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, cell, machine, notes, save, target_table
from benchmarks.outliers import average_precision
from benchmarks.worlds.setting import SETTINGS, Folders, Setting, command, prepare
from query.evaluation.figures import (
    datamodeling_score,
    distinctness,
    group_influence,
    label_share,
    top,
)
from query.evaluation.methods import own_influence, scores
from query.evaluation.retraining import halves
from query.statistics import interval, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

ALPHAS: Final = (0.25, 0.5, 0.75)
MEASURES: Final = (
    "tracin",
    *(f"power:{alpha:g}" for alpha in ALPHAS),
    *("retrac", "clip:0.9", "clip:0.75", "clip:0.5", "clip:0.25", "calibrated"),
    *("calibrated|tracin", "calibrated|retrac", "retrac|tracin", "tracin|retrac"),
    *("retrac|calibrated", "tracin|calibrated"),
    # In K-FAC's metric, of planned rows.
    *(
        f"{measure}, kfac"
        for measure in ("tracin", "power:0.5", "clip:0.5", "calibrated", "retrac")
    ),
)
NORM: Final = "norm alone"
CRITERIA: Final = {
    "zeros of zero queries": "share of zeros in the first 10 of zero queries",
    "average precision": "average precision of zeros, zero queries",
    "planes of plane queries": "share of planes in the first 50 of plane queries",
    "distinctness": "distinct samples in the first 50 of plane queries",
    "digits: label": "share of the query's digit in the first 10 of digits",
    "digits: LDS": "linear datamodeling score of held-out digits",
    "cifar2: label": "share of the query's class in the first 10 of two CIFAR classes",
    "cifar2: LDS": "linear datamodeling score of held-out images of two CIFAR classes",
}


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: planes and zeros.
        seeds: seeds of their training runs.
        lds: the models of `benchmarks.lds`, for labels and retraining.
        depths: k of zeros' precision, of planes' precision and distinctness, and of labels.
    """

    setting: Setting
    seeds: tuple[int, ...]
    lds: lds.Preset
    depths: tuple[int, int, int] = (10, 50, 10)


PRESETS = {
    "cpu": Preset(SETTINGS["pictures"], (0, 1), lds.PRESETS["cpu"]),
    "paper": Preset(SETTINGS["paper"], (0,), lds.PRESETS["cpu"]),
    "tiny": Preset(SETTINGS["tiny"], (0, 1), lds.PRESETS["tiny"], (3, 5, 4)),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `normalization.json`, `.md` and `.png` into `out`."""
    figures = {name: dict[str, Any]() for name in (*MEASURES, NORM)}
    _planes(preset, folders, figures)
    for data in preset.lds.data:
        _retrained(preset, data, folders, figures)
    names = list(MEASURES)
    known = {name: words for name, words in CRITERIA.items() if name in figures[NORM]}
    winners = {
        criterion: max(names, key=lambda name: figures[name][criterion]["mean"])
        for criterion in known
    }
    both = "calibrated|retrac"
    wanted = ("zeros of zero queries", "distinctness")
    base = {criterion: figures["calibrated"][criterion]["mean"] for criterion in wanted}
    targets = [
        Target(
            f"{both}: zeros found, against calibrated on both sides",
            "≥ 0.95 ×",
            figures[both][wanted[0]]["mean"] / base[wanted[0]],
            figures[both][wanted[0]]["mean"] >= 0.95 * base[wanted[0]],
        ),
        Target(
            f"{both}: distinctness, against ReTrac's",
            "≥ 0.95 ×: both in one measure",
            figures[both][wanted[1]]["mean"] / figures["retrac"][wanted[1]]["mean"],
            figures[both][wanted[1]]["mean"] >= 0.95 * figures["retrac"][wanted[1]]["mean"],
        ),
        *(
            Target(
                f"{known[criterion]}: ReTrac less TracIn{metric}",
                "≥ 0: removing magnitude removes no signal",
                figures["retrac" + metric][criterion]["mean"]
                - figures["tracin" + metric][criterion]["mean"],
                figures["retrac" + metric][criterion]["mean"]
                >= figures["tracin" + metric][criterion]["mean"],
            )
            for metric in ("", ", kfac")
            for criterion in known
            if criterion not in {*wanted, "planes of plane queries"}
        ),
        *(
            Target(
                f"{criterion} of the norm alone, the same list for every query",
                "interval holds 0: the norm is no signal",
                figures[NORM][criterion]["mean"],
                figures[NORM][criterion]["low"] <= 0 <= figures[NORM][criterion]["high"],
            )
            for criterion in known
            if criterion.endswith("LDS")
        ),
    ]
    inputs = {
        "setting": asdict(preset.setting),
        "training_seeds": preset.seeds,
        "lds": asdict(preset.lds),
        "depths": preset.depths,
    }
    found = {"measures": figures, "best": winners}
    page = _page(preset, found, targets)
    save(out, "normalization", inputs=inputs, figures=found, targets=targets, page=page)
    _plot(out / "normalization.png", figures)
    return targets


def _planes(preset: Preset, folders: Folders, figures: dict[str, dict[str, Any]]) -> None:
    worlds = [prepare(replace(preset.setting, seed=seed), folders) for seed in preset.seeds]
    zero = np.array(worlds[0].store.manifest.metadata["label"]) == "zero"
    planes, zeros = worlds[0].of("plane"), worlds[0].of("zero")
    near, far, _ = preset.depths
    for name, own in figures.items():
        measure, _, metric = name.partition(", ")
        pairs = [world.rows(metric) if metric else (world.store, world.queries) for world in worlds]
        found = [_scores(*pair, measure) for pair in pairs]
        own["zeros of zero queries"] = interval(
            [zero[top(one[zeros], near)].mean(axis=1) for one in found]
        ).json()
        own["average precision"] = interval(
            [average_precision(one[zeros], zero) for one in found]
        ).json()
        own["planes of plane queries"] = interval(
            [(~zero[top(one[planes], far)]).mean(axis=1) for one in found]
        ).json()
        # One figure for all queries: its spread is over training runs.
        each = [distinctness(one[planes], far) for one in found]
        own["distinctness"] = {
            **interval([[one] for one in each]).json(),
            "low": min(each),
            "high": max(each),
        }


def _retrained(
    preset: Preset, data: lds.Data, folders: Folders, figures: dict[str, dict[str, Any]]
) -> None:
    trial = lds.prepare(preset.lds, data, folders)
    members = halves(len(trial.train), data.subsets)
    truth = trial.retraining().on_subsets(members, preset.lds.seeds)[:, : data.heldout]
    labels = trial.train.manifest.metadata["label"]
    for name, own in figures.items():
        measure, _, metric = name.partition(", ")
        found = np.stack(
            [
                _scores(*lds.rows(trial, seed, metric or "replayed"), measure)[: data.heldout]
                for seed in range(preset.lds.seeds)
            ]
        )
        share = label_share(found, labels, trial.labels, preset.depths[2])
        own[f"{data.dataset}: label"] = share.json()
        sums = np.stack([group_influence(one, members) for one in found])
        own[f"{data.dataset}: LDS"] = datamodeling_score(sums, truth).json()


def _scores(store: Store, queries: Store, measure: str) -> NDArray[np.float32]:
    if measure != NORM:
        return scores(store, queries, measure)
    lengths = np.sqrt(own_influence(store, "tracin"))
    return np.tile(lengths, (queries.samples, 1))


def _page(preset: Preset, found: dict[str, Any], targets: Sequence[Target]) -> str:
    setting = preset.setting
    near, far, label = preset.depths
    criteria = list(found["best"])
    lines = [
        "# How much of a gradient's norm should count?",
        "",
        (
            f"`python -m benchmarks.normalization`; the planes and zeros of "
            f"[outliers](outliers.md) ({setting.planes:,} + {setting.zeros}, training seeds "
            f"{', '.join(map(str, preset.seeds))}) and the models of [lds](lds.md), of "
            f"{preset.lds.seeds} seeds; {machine()['cpu']}. `A|B`: A weights training rows, B "
            "query rows. Training rows are replayed, as in the paper; `kfac`: at a query's "
            "timesteps, in K-FAC's metric. *Norm alone*: the length of a sample's TracIn feature, "
            "the same list for every query. Means with 95% bootstrap intervals over queries (LDS: "
            "and halves); distinctness with the range of training seeds. Higher is better "
            "everywhere."
        ),
        "",
        (
            f"| measure | zeros, top {near} | zeros, average precision | planes, top {far} | "
            f"distinct, top {far} | "
            + " | ".join(
                f"{data.dataset}: label, top {label} | {data.dataset}: LDS"
                for data in preset.lds.data
            )
            + " |"
        ),
        "|" + "---|" * (len(criteria) + 1),
    ]
    for name, one in found["measures"].items():
        cells = [
            f"**{text(one[criterion], 2)}**"
            if found["best"].get(criterion) == name
            else text(one[criterion], 2)
            for criterion in criteria
        ]
        lines.append(f"| {cell(name)} | " + " | ".join(cells) + " |")
    lines += ["", target_table(targets), "", notes("normalization")]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, dict[str, Any]]) -> None:
    figure, axes = canvas(2, 4, width=14)
    line = ["tracin", *(f"power:{alpha:g}" for alpha in ALPHAS), "retrac"]
    alphas = [0.0, *ALPHAS, 1.0]
    known = {name: words for name, words in CRITERIA.items() if name in figures[NORM]}
    for one, (criterion, words) in zip(axes.ravel(), known.items(), strict=False):
        cells = [figures[name][criterion] for name in line]
        one.plot(alphas, [c["mean"] for c in cells], marker=".", label="power:α")
        one.fill_between(
            alphas, [c["low"] for c in cells], [c["high"] for c in cells], alpha=0.2, linewidth=0
        )
        for number, name in enumerate(("clip:0.5", "calibrated", "retrac, kfac"), 1):
            value = figures[name][criterion]["mean"]
            one.axhline(value, color=f"C{number}", linestyle="--", linewidth=1, label=name)
        one.set_title(words, fontsize=8)
        one.set_xlabel("α: 0 is TracIn, 1 is ReTrac", fontsize=7)
    axes[0, 0].legend(fontsize=7)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
