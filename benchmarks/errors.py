"""How far may a score be off, and does its margin say so?

Asks the same queries again and again with other noises. Their scores spread around the score of
very many noises; a 95% interval should hold it in 95 of 100 questions, and the interval of a rank
the rank.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import lds
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, machine, notes, save, target_table
from benchmarks.worlds.setting import Folders, command
from gradstore.collect import EventSpec, Samples
from indexer import measure_of
from query import collect_queries, search
from query.engines import fitted
from query.evaluation.methods import scores
from query.results.ranks import rank_intervals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MEASURES: Final = ("tracin", "retrac", "trak")
METRICS: Final = ("none", "adam", "kfac")


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        lds: the models and training rows, those of `benchmarks.lds`.
        queries: number of held-out queries.
        repetitions: number of times that they are asked, each with other noises.
        compared: number of random training samples whose scores and ranks are compared.
    """

    lds: lds.Preset
    queries: int
    repetitions: int
    compared: int


PRESETS = {
    "cpu": Preset(lds.PRESETS["cpu"], queries=16, repetitions=9, compared=20),
    "paper": Preset(lds.PRESETS["paper"], queries=64, repetitions=20, compared=50),
    "tiny": Preset(lds.PRESETS["tiny"], queries=2, repetitions=3, compared=6),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `errors.json`, `.md` and `.png` into `out`."""
    figures: dict[str, dict[str, Any]] = {}
    for data in preset.lds.data:
        trial = lds.prepare(preset.lds, data, folders)
        for metric in METRICS:
            for measure, found in _measured(preset, trial, metric).items():
                figures[f"{data.dataset}, {measure}, {metric}"] = found
    targets = [
        Target(
            f"{name}: coverage of 95% intervals of scores",
            "0.93 … 0.97",
            one["coverage"],
            0.93 <= one["coverage"] <= 0.97,
        )
        for name, one in figures.items()
    ]
    page = _page(preset, figures, targets)
    save(out, "errors", inputs=asdict(preset), figures=figures, targets=targets, page=page)
    _plot(out / "errors.png", figures)
    return targets


def _measured(preset: Preset, trial: lds.Trial, metric: str) -> dict[str, dict[str, float]]:
    """Figures of every measure, in one metric."""
    store, _ = lds.rows(trial, 0, metric)
    count = min(preset.queries, trial.data.heldout)
    asked = Samples([trial.asked.image(row) for row in range(count)], ids=trial.asked.ids[:count])
    repeated = [
        collect_queries(
            store,
            asked,
            trial.folder / "errors" / f"{metric}-{count}-{preset.lds.timesteps}-{seed}.gradstore",
            events=EventSpec(
                events="planned",
                timesteps=preset.lds.timesteps,
                draws=trial.data.draws,
                event_seed=100 + seed,
            ),
            checkpoints=trial.whole(0),
        )
        for seed in range(preset.repetitions)
    ]
    # Not the highest: those are the highest because their noise is.
    generator, k = np.random.default_rng(0), preset.compared
    some = np.sort(generator.permutation(len(trial.train))[:k])
    return {
        measure: coverage(
            np.stack([scores(store, one, measure)[:, some] for one in repeated]),
            [
                search(store, one, k, measure=fitted(measure_of(measure), store), keep=some)
                for one in repeated
            ],
            some,
        )
        for measure in MEASURES
    }


def coverage(
    found: NDArray[np.float32], answers: Sequence[Any], samples: NDArray[np.int64]
) -> dict[str, float]:
    """How often the intervals of one repetition hold the mean of the others.

    Args:
        found: scores `[repetitions, queries, samples]`.
        answers: an answer of each repetition that lists all the samples.
        samples: their numbers, ascending.

    Returns:
        `coverage` of scores; `width` of the intervals, over the spread of scores between samples;
        `inflation`: the estimated variance over the true one; `rank coverage` and `rank width`.
    """
    repetitions, _, count = found.shape
    held, widths, estimated, ranks_held, ranks_wide = [], [], [], [], []
    spread = found.mean(axis=0).std(axis=1).mean()
    # A mean of the others varies, too.
    wider = np.sqrt(1 + 1 / (repetitions - 1))
    for number, answer in enumerate(answers):
        truth = np.delete(found, number, axis=0).mean(axis=0)
        side = answer.proponents
        places = np.searchsorted(samples, side.samples)
        own = answer.explained.only(slice(None), np.arange(count))
        known = np.take_along_axis(truth, places, axis=1)
        held.append(np.abs(side.scores - known) <= wider * own.query_margin)
        widths.append(own.query_margin.mean() / spread)
        estimated.append((own.query_error.astype(np.float64) ** 2).mean())
        # The ranks without errors of projection and training rows, which are the same each time.
        none = np.zeros_like(own.projection_error)
        asked = replace(own, projection_error=none, training_error=none)
        first, last = rank_intervals(side.scores, asked)
        rank = np.argsort(np.argsort(-known, axis=1), axis=1) + 1
        ranks_held.append((first <= rank) & (rank <= last))
        ranks_wide.append(last - first)
    return {
        "coverage": float(np.mean(held)),
        "width": float(np.mean(widths)),
        "inflation": float(np.mean(estimated) / found.var(axis=0, ddof=1).mean()),
        "rank coverage": float(np.mean(ranks_held)),
        "rank width": float(np.mean(ranks_wide)),
    }


def _page(
    preset: Preset, figures: Mapping[str, Mapping[str, float]], targets: Sequence[Target]
) -> str:
    lines = [
        "# How far may a score be off, and does its margin say so?",
        "",
        (
            "`python -m benchmarks.errors`; the models and rows of [lds](lds.md), of the first "
            f"training seed; {preset.queries} held-out queries at {preset.lds.timesteps} "
            f"timesteps, asked {preset.repetitions} times, each with other noises; "
            f"{preset.compared} random training samples; {machine()['cpu']}. *Coverage*: how often "
            "the 95% interval of a score holds the mean of the other repetitions, whose own spread "
            "is allowed for. "
            "*Width*: half the interval, over the spread of a query's scores between samples. "
            "*Inflation*: the estimated variance over the true one; above 1, because a trend over "
            "timesteps that bends counts as noise. *Rank*: the same of ranks among these samples."
        ),
        "",
        "| data, measure, metric | coverage | width | inflation | rank coverage | ranks wide |",
        "|---|---|---|---|---|---|",
        *[
            f"| {name} | {one['coverage']:.3f} | {one['width']:.2f} | {one['inflation']:.2f} | "
            f"{one['rank coverage']:.3f} | {one['rank width']:.1f} |"
            for name, one in figures.items()
        ],
        "",
        target_table(targets),
        "",
        "![Coverage](errors.png)",
        "",
        notes("errors"),
    ]
    return "\n".join(lines)


def _plot(path: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    figure, axes = canvas(1, 1, width=7, height=0.3 * len(figures) + 1.5)
    names = list(figures)
    axes[0, 0].plot([figures[name]["coverage"] for name in names], range(len(names)), "o")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].axvspan(0.93, 0.97, alpha=0.2)
    axes[0, 0].set(xlabel="coverage of 95% intervals")
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
