"""Why does the plain product of gradients fail, and what does a metric change?

Splits a row into what all samples share, what is its sample's own, and what its timestep and noise
add; follows the norm over timesteps; and compares the score lists of different queries.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import lds
from benchmarks.harness.plots import bars, canvas, keep
from benchmarks.harness.results import Target, machine, notes, save, target_table
from benchmarks.worlds.setting import Folders, command
from gradstore.collect import EventSpec, ProjectorSpec, collect
from query.evaluation.figures import label_share
from query.evaluation.methods import scores
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

METRICS: Final = ("none", "adam", "kfac")
MEASURES: Final = ("tracin", "retrac")
# What a query's list is made of: the paper's rows, then planned rows in each metric.
WAYS: Final = ("replayed", *lds.METRICS)


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        lds: the models, those of `benchmarks.lds`.
        timesteps: timesteps of a sample, one noise each.
    """

    lds: lds.Preset
    timesteps: int


PRESETS = {
    "cpu": Preset(lds.PRESETS["cpu"], timesteps=10),
    "paper": Preset(lds.PRESETS["paper"], timesteps=20),
    "tiny": Preset(lds.PRESETS["tiny"], timesteps=4),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `metric.json`, `.md` and `.png` into `out`."""
    figures = {}
    for data in preset.lds.data:
        trial = lds.prepare(preset.lds, data, folders)
        figures[data.dataset] = {
            "rows": {metric: _rows(preset, trial, metric) for metric in METRICS},
            "lists": {
                f"{measure}, {way}": _lists(trial, way, measure)
                for way in WAYS
                for measure in MEASURES
            },
        }
    targets = [one for name, found in figures.items() for one in _targets(name, found)]
    page = _page(preset, figures, targets)
    save(out, "metric", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    _plot(out / "metric.png", figures)
    return targets


def _rows(preset: Preset, trial: lds.Trial, metric: str) -> dict[str, Any]:
    """Figures of single rows, averaged over training seeds; intervals over samples."""
    found: dict[str, list[Any]] = {"shares": [], "unit shares": [], "with timestep": []}
    norms = []
    for seed in range(preset.lds.seeds):
        store = _store(preset, trial, seed, metric)
        shares, trends, means = _of_store(store)
        found["shares"].append(shares["norm"])
        found["unit shares"].append(shares["unit"])
        found["with timestep"].append(trends)
        norms.append(means)
    return {
        "shares": _mean(found["shares"]),
        "unit shares": _mean(found["unit shares"]),
        "with timestep": interval(found["with timestep"]).json(),
        "norm": np.mean(norms, axis=0).tolist(),
        "timesteps": store.column("timestep", 0)[0].tolist(),
    }


def _store(preset: Preset, trial: lds.Trial, seed: int, metric: str) -> Store:
    return collect(
        trial.train,
        trial.whole(seed),
        trial.folder / "metric" / f"{metric}-{seed}-{preset.timesteps}.gradstore",
        projector=ProjectorSpec(projector="sjlt", proj_dim=preset.lds.proj_dim),
        events=EventSpec(events="planned", timesteps=preset.timesteps, event_seed=7),
        metric=metric,
    )


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _of_store(
    store: Store,
) -> tuple[dict[str, dict[str, float]], NDArray[np.float64], NDArray[np.float64]]:
    """Shares of rows; each sample's correlation of norm with timestep; norms by timestep.

    All are averaged over checkpoints.
    """
    shares: dict[str, list[dict[str, float]]] = {"norm": [], "unit": []}
    trends, norms = [], []
    for place in range(store.checkpoints):
        rows = store.rows(place)
        norm = rows.norm.astype(np.float64)
        unit = rows.direction.astype(np.float64)
        shares["norm"].append(split(norm[:, :, None] * unit))
        shares["unit"].append(split(unit))
        trends.append(rank_correlation(norm, rows.timestep))
        norms.append(norm.mean(axis=0) / norm.mean())
    return (
        {name: _mean(one) for name, one in shares.items()},
        np.mean(trends, axis=0),
        np.mean(norms, axis=0),
    )


def split(rows: NDArray[np.float64]) -> dict[str, float]:
    """Shares of the mean squared length of a row.

    Two disjoint halves of a sample's timesteps have different noises, so that products between them
    estimate squared lengths of means without the noise: of two samples what all share, of one
    sample the same with its own.

    Args:
        rows: `[samples, timesteps, dim]`, float64; an even number of timesteps.

    Returns:
        `common`: what all samples share. `own`: what is the sample's, at any timestep. `event`: the
        rest, of timestep and noise. `common of a mean`: the common share of a sample's mean over
        timesteps.
    """
    count = len(rows)
    left, right = rows[:, ::2].mean(axis=1), rows[:, 1::2].mean(axis=1)
    same = float((left * right).sum())
    pairs = float(left.sum(axis=0) @ right.sum(axis=0)) - same
    common = pairs / (count * (count - 1))
    total = float((rows**2).sum(axis=2).mean())
    mean = float((rows.mean(axis=1) ** 2).sum(axis=1).mean())
    own = same / count - common
    return {
        "common": common / total,
        "own": own / total,
        "event": 1 - (common + own) / total,
        "common of a mean": common / mean,
    }


def _lists(trial: lds.Trial, way: str, measure: str) -> dict[str, Any]:
    """How alike the score lists of different held-out queries are, and their labels."""
    count = trial.data.heldout
    found = np.stack(
        [scores(*lds.rows(trial, seed, way), measure)[:count] for seed in range(trial.preset.seeds)]
    )
    labels = trial.train.manifest.metadata["label"]
    return {
        "between queries": interval([alike(one) for one in found]).json(),
        "label share": label_share(found, labels, trial.labels).json(),
    }


def alike(found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean correlation of each query's scores with those of every other query, `[queries]`.

    Args:
        found: scores `[queries, samples]`.
    """
    known: NDArray[np.float64] = np.corrcoef(found.astype(np.float64))
    mean: NDArray[np.float64] = (known.sum(axis=1) - 1) / (len(known) - 1)
    return mean


def _targets(dataset: str, figures: Mapping[str, Any]) -> list[Target]:
    rows, lists = figures["rows"], figures["lists"]
    plain, mapped = (rows[name]["shares"] for name in ("none", "kfac"))
    before, after = (rows[name]["with timestep"]["mean"] for name in ("none", "kfac"))
    return [
        Target(
            f"{dataset}: share of a mean row that all samples share, in K-FAC's metric over none",
            "≤ 0.5",
            mapped["common of a mean"] / plain["common of a mean"],
            mapped["common of a mean"] <= 0.5 * plain["common of a mean"],
        ),
        Target(
            f"{dataset}: the same in Adam's metric",
            "≤ 0.5",
            rows["adam"]["shares"]["common of a mean"] / plain["common of a mean"],
            rows["adam"]["shares"]["common of a mean"] <= 0.5 * plain["common of a mean"],
        ),
        Target(
            f"{dataset}: |Spearman| of norm with timestep in K-FAC's metric over none",
            "≤ 0.2: the trend vanishes",
            abs(after) / abs(before),
            abs(after) <= 0.2 * abs(before),
        ),
        Target(
            f"{dataset}: correlation of two queries' TracIn lists in K-FAC's metric",
            "≤ 0.2",
            lists["tracin, kfac"]["between queries"]["mean"],
            lists["tracin, kfac"]["between queries"]["mean"] <= 0.2,
        ),
    ]


def _page(preset: Preset, figures: Mapping[str, Any], targets: Sequence[Target]) -> str:
    lines = [
        "# Why does the plain product of gradients fail, and what does a metric change?",
        "",
        (
            "`python -m benchmarks.metric`; the models of [lds](lds.md), of both training seeds; "
            f"{machine()['cpu']}. *Rows*: every training sample at {preset.timesteps} timesteps, "
            "one noise each, at every checkpoint. *Common*: share of a row's mean squared length "
            "that all samples share; *own*: that is the sample's at any timestep; *event*: the "
            "rest, of timestep and noise. *Of a mean*: the common share of a sample's mean over "
            "these timesteps. *Unit*: the same of rows of length 1, as in ReTrac. *Norm with "
            "timestep*: Spearman's correlation within a sample. *Between queries*: mean "
            "correlation of the score lists of two held-out queries. 95% intervals are over "
            "samples or queries."
        ),
        "",
        target_table(targets),
    ]
    for name, found in figures.items():
        lines += [
            "",
            f"## {name}",
            "",
            (
                "| metric | common | own | event | common of a mean | unit: common | own | event | "
                "common of a mean | norm with timestep |"
            ),
            "|" + "---|" * 10,
            *[
                f"| {metric} | "
                + " | ".join(
                    f"{one[kind][share]:.3f}"
                    for kind in ("shares", "unit shares")
                    for share in ("common", "own", "event", "common of a mean")
                )
                + f" | {text(one['with timestep'], 2)} |"
                for metric, one in found["rows"].items()
            ],
            "",
            "| scores | between queries | label share of the first ten |",
            "|---|---|---|",
            *[
                f"| {scored} | {text(one['between queries'], 2)} | {text(one['label share'], 2)} |"
                for scored, one in found["lists"].items()
            ],
        ]
    lines += ["", "![Rows, norms and lists](metric.png)", "", notes("metric")]
    return "\n".join(lines)


def _plot(path: Path, figures: Mapping[str, Any]) -> None:
    figure, axes = canvas(len(figures), 3, width=15, height=4)
    for row, (name, found) in zip(axes, figures.items(), strict=True):
        left = np.zeros(len(METRICS))
        for share in ("common", "own", "event"):
            wide = np.array([found["rows"][metric]["shares"][share] for metric in METRICS])
            row[0].barh(list(METRICS), wide, left=left, label=share)
            left += wide
        row[0].invert_yaxis()
        row[0].set(title=f"{name}: what a row is made of", xlabel="share of its squared length")
        row[0].legend()
        for metric in METRICS:
            one = found["rows"][metric]
            row[1].plot(one["timesteps"], one["norm"], marker=".", label=metric)
        row[1].set(title="norm of a row", xlabel="timestep", ylabel="over the mean", ylim=(0, None))
        row[1].legend()
        lists = found["lists"]
        bars(row[2], list(lists), [one["between queries"] for one in lists.values()])
        row[2].set(title="how alike two queries' lists are", xlabel="correlation")
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
