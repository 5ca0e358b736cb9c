"""What does a question about an image cost, relative to generating it?

A question consists of gradients at some timesteps, noises and checkpoints, and a search. Measures
how much of the full question's power to predict retraining (LDS) fewer of each keep, and early
timesteps alone; and their time from end to end, in units of the time to generate the image by 50
steps of DDIM, with the trained models and with one of the paper's size.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from benchmarks import lds
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, interleaved, notes, processor, save, target_table
from benchmarks.sparse_timesteps import even, slot_scores
from benchmarks.worlds.models import build
from benchmarks.worlds.setting import Folders, command
from gradstore.collect import CheckpointCache, EventSpec, Samples, collect, load
from gradstore.flags.fast import FAST, Setting
from gradstore.flags.question import QueryEvents
from gradstore.store.format.spec import ProjectorSpec
from indexer import build_index, index_path
from query import collect_queries, search
from query.evaluation.figures import group_influence
from query.evaluation.retraining import halves
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import SearchIndex

MEASURES: Final = ("tracin", "retrac")
METRIC: Final = "kfac"
STEPS: Final = 50
_K: Final = 10
_KEPT: Final = 0.95
_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Asked:
    """The gradients of a question.

    Attributes:
        timesteps: number of timesteps.
        draws: noises at each.
        checkpoints: number of checkpoints.
        below: share of the scheduler's timesteps below which they lie.
    """

    timesteps: int
    draws: int
    checkpoints: int
    below: float = 1.0

    @property
    def gradients(self) -> int:
        """Their number."""
        return prod((self.timesteps, self.draws, self.checkpoints))

    def etas(self, etas: Sequence[float]) -> list[float]:
        """Weights of the checkpoints."""
        return Setting(self.timesteps, self.draws, self.checkpoints).etas(etas)

    def events(self) -> EventSpec:
        """Timesteps and noises."""
        return EventSpec(
            events="planned",
            timesteps=self.timesteps,
            draws=self.draws,
            timesteps_below=self.below,
        )

    def __str__(self) -> str:
        shown = f"{self.timesteps} × {self.draws} × {self.checkpoints}"
        return shown if self.below == 1 else f"{shown} below {self.below:g}"


def _usual(checkpoints: int) -> dict[str, Asked]:
    """The questions that commands ask."""
    own = QueryEvents()
    return {
        "the default question": Asked(own.timesteps, own.draws, checkpoints, own.timesteps_below),
        "--fast": Asked(FAST.timesteps, FAST.draws, checkpoints, own.timesteps_below),
    }


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        lds: the models and training rows, those of `benchmarks.lds`.
        counts: numbers of timesteps to try, by the share of the scheduler's below which they lie;
            the full question has those of `lds`.
        repeats: repetitions of each timing.
        large: the model in which questions are timed besides.
        images: number of training images of its store.
    """

    lds: lds.Preset
    counts: dict[float, tuple[int, ...]]
    repeats: int
    large: str
    images: int


_COUNTS: Final = {1.0: (1, 2, 3, 5, 10), 0.6: (1, 2, 3, 6)}

PRESETS = {
    "cpu": Preset(lds.PRESETS["cpu"], _COUNTS, 9, "paper", 8),
    "paper": Preset(lds.PRESETS["paper"], _COUNTS, 5, "paper", 8),
    "tiny": Preset(lds.PRESETS["tiny"], {1.0: (1, 2, 4), 0.5: (1, 2)}, 1, "tiny", 4),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `query_cost.json`, `.md` and `.png` into `out`."""
    figures: dict[str, Any] = {}
    questions: dict[str, Asked] = {}
    for data in preset.lds.data:
        trial = lds.prepare(preset.lds, data, folders)
        kept, asked = _kept(preset, trial)
        cheapest = _cheapest(kept, asked)
        every = len(trial.whole(0))
        full = Asked(preset.lds.timesteps, data.draws, every)
        mine = {"the full question": full, **_usual(every), "the cheapest question": cheapest}
        questions[f"the cheapest of {data.dataset}"] = cheapest
        figures[data.dataset] = {
            "kept": kept,
            "gradients": {name: one.gradients for name, one in asked.items()},
            "questions": {name: str(one) for name, one in mine.items()},
            "parameters": sum(p.numel() for p in load(trial.whole(0)[-1]).model.parameters()),
            "seconds": _timed(
                lds.rows(trial, 0, METRIC)[0],
                trial.whole(0),
                image=trial.asked.only(trial.asked.ids[-1:]),
                questions=mine,
                anew="the cheapest question",
                place=trial.folder,
                repeats=preset.repeats,
            ),
        }
    most = max(one.checkpoints for one in questions.values())
    large = _large(preset, {**_usual(most), **questions}, most)
    targets = [one for name, found in figures.items() for one in _targets(name, found, large)]
    page = _page(preset, figures, large, targets)
    inputs = {"preset": asdict(preset), "steps": STEPS, "k": _K}
    every_figure = {**figures, "large": large}
    save(out, "query_cost", inputs=inputs, figures=every_figure, targets=targets, page=page)
    _plot(out / "query_cost.png", figures)
    return targets


def _kept(preset: Preset, trial: lds.Trial) -> tuple[dict[str, dict[str, Any]], dict[str, Asked]]:
    """LDS of every cheaper question, and its share of the full question's.

    Returns:
        By question and measure: `LDS` on all held-out queries; `choosing` and `reported`, the share
        of the full LDS on every other one. The questions by name.
    """
    data = trial.data
    members = halves(len(trial.train), data.subsets)
    truth = -trial.retraining().on_subsets(members, preset.lds.seeds)[:, : data.heldout].mean(0)
    every = len(trial.whole(0))
    draws = [2**power for power in range(10) if 2**power <= data.draws]
    full = Asked(preset.lds.timesteps, draws[-1], every)
    questions = [
        Asked(timesteps, draw, checkpoints, below)
        for below, counts in preset.counts.items()
        for timesteps in counts
        for draw in draws
        for checkpoints in range(1, every + 1)
    ]
    correlations: dict[tuple[str, Asked], list[NDArray[np.float64]]] = {}
    for seed in range(preset.lds.seeds):
        store = lds.rows(trial, seed, METRIC)[0]
        grids = {draw: _grid(preset, trial, seed, store, draw) for draw in draws}
        weights = {count: Asked(1, 1, count).etas(store.etas) for count in range(1, every + 1)}
        for measure in MEASURES:
            parts = {
                (draw, count): slot_scores(store, grid, measure, etas)
                for draw, grid in grids.items()
                for count, etas in weights.items()
            }
            for one in questions:
                there = round(one.below * preset.lds.timesteps)
                own = parts[one.draws, one.checkpoints][: data.heldout]
                means = own[:, even(there, one.timesteps)].mean(axis=1)
                found = rank_correlation(group_influence(means, members), truth)
                correlations.setdefault((measure, one), []).append(np.nan_to_num(found))
    kept: dict[str, dict[str, Any]] = {}
    for (measure, one), seeds in correlations.items():
        share = np.stack(seeds), np.stack(correlations[measure, full])
        kept.setdefault(str(one), {})[measure] = {
            "LDS": interval(share[0]).json(),
            "choosing": _share(*(runs[:, ::2] for runs in share)),
            "reported": _share(*(runs[:, 1::2] for runs in share)),
        }
    return kept, {str(one): one for one in questions}


def _grid(preset: Preset, trial: lds.Trial, seed: int, store: Store, draws: int) -> Store:
    """Rows of the held-out queries at every timestep; more draws include the noises of fewer."""
    if draws == trial.data.draws:
        return lds.rows(trial, seed, METRIC)[1]
    heldout = trial.asked.only(trial.asked.ids[: trial.data.heldout])
    return collect_queries(
        store,
        heldout,
        trial.folder / "cost" / f"{seed}-{preset.lds.timesteps}-{draws}.gradstore",
        events=EventSpec(events="planned", timesteps=preset.lds.timesteps, draws=draws),
        checkpoints=trial.whole(seed),
    )


def _share(own: NDArray[np.float64], full: NDArray[np.float64]) -> dict[str, float]:
    """A mean over another, with the 95% interval of resampled queries; both `[runs, queries]`."""
    pair = np.stack([own.mean(axis=0), full.mean(axis=0)])
    picks = np.random.default_rng(0).integers(0, pair.shape[1], (_RESAMPLES, pair.shape[1]))
    upper, lower = pair[:, picks].mean(axis=2)
    low, high = np.quantile(upper / lower, [0.025, 0.975])
    return {"mean": float(pair[0].mean() / pair[1].mean()), "low": float(low), "high": float(high)}


def _least(one: Mapping[str, Any], half: str) -> float:
    """The least share of the full LDS among the measures."""
    return min(float(one[measure][half]["mean"]) for measure in MEASURES)


def _cheapest(kept: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Asked]) -> Asked:
    """The fewest gradients that keep the LDS of the choosing queries under every measure."""
    enough = [name for name, one in kept.items() if _least(one, "choosing") >= _KEPT]
    found = min(enough, key=lambda name: (asked[name].gradients, -_least(kept[name], "choosing")))
    return asked[found]


def _timed(
    store: Store,
    folders: Sequence[Path],
    *,
    image: Samples,
    questions: Mapping[str, Asked],
    place: Path,
    repeats: int,
    anew: str | None = None,
) -> dict[str, Any]:
    """Seconds of generating an image, and of each question about it from end to end.

    Models stay in memory in both: a pipeline generates several images, and `CheckpointCache`
    answers several questions. Question `anew` is also asked with its models read and tried anew.
    """
    loaded = load(folders[-1])
    pipeline = DDIMPipeline(loaded.model, loaded.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    held = CheckpointCache(folders)

    def generate() -> None:
        pipeline(
            batch_size=1,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
        )

    with tempfile.TemporaryDirectory(dir=place) as folder:
        indexes: dict[int, SearchIndex] = {}
        for count in {one.checkpoints for one in questions.values()}:
            etas = Asked(1, 1, count).etas(store.etas)
            name = f"{count}-{index_path(store, 'retrac').name}"
            indexes[count] = build_index(store, "retrac", Path(folder) / name, etas=etas)
        number = 0

        def ask(asked: Asked, checkpoints: Any = held) -> None:
            nonlocal number
            number += 1
            queries = collect_queries(
                store,
                image,
                Path(folder) / f"{number}.gradstore",
                events=asked.events(),
                etas=asked.etas(store.etas),
                checkpoints=checkpoints,
            )
            search(indexes[asked.checkpoints], queries, min(_K, store.samples))

        for one in questions.values():  # one-time loading
            ask(one)
        jobs: dict[str, Callable[[], object]] = {
            "generating": generate,
            **{name: partial(ask, one) for name, one in questions.items()},
        }
        if anew is not None:
            jobs[f"{anew}, models read anew"] = partial(ask, questions[anew], folders)
        return interleaved(jobs, repeats)


def _large(preset: Preset, questions: Mapping[str, Asked], checkpoints: int) -> dict[str, Any]:
    """The same times with an untrained model of another size: they do not depend on weights."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        folders = []
        for number in range(1, checkpoints + 1):
            model = build(preset.large)
            folders.append(Path(folder) / f"checkpoint-{number}")
            DDIMPipeline(model, DDIMScheduler()).save_pretrained(folders[-1])
        side = model.config["sample_size"]
        images = Samples(torch.rand(preset.images + 1, 3, side, side) * 2 - 1)
        store = collect(
            images.only(images.ids[1:]),
            folders,
            Path(folder) / "train.gradstore",
            objective="l2",
            etas=[1.0] * checkpoints,
            events=EventSpec(events="planned", timesteps=1),
            projector=ProjectorSpec(projector="sjlt", proj_dim=preset.lds.proj_dim),
            metric=METRIC,
        )
        return {
            "size": side,
            "parameters": sum(p.numel() for p in model.parameters()),
            "questions": {name: str(one) for name, one in questions.items()},
            "gradients": {name: one.gradients for name, one in questions.items()},
            "seconds": _timed(
                store,
                folders,
                image=images.only(images.ids[:1]),
                questions=questions,
                place=Path(folder),
                repeats=min(3, preset.repeats),
            ),
        }


def _ratio(figures: Mapping[str, Any], job: str) -> float:
    seconds = figures["seconds"]
    return float(seconds[job]["median"] / seconds["generating"]["median"])


def _targets(dataset: str, figures: Mapping[str, Any], large: Mapping[str, Any]) -> list[Target]:
    cheapest = figures["questions"]["the cheapest question"]
    left = _least(figures["kept"][cheapest], "reported")
    costs = {
        "": _ratio(figures, "the cheapest question"),
        f", {large['parameters'] / 1e6:.1f} million parameters": _ratio(
            large, f"the cheapest of {dataset}"
        ),
    }
    return [
        *(
            Target(
                f"{dataset}: the cheapest question that keeps {_KEPT:.0%} of the LDS, {cheapest}, "
                f"over generating{where}",
                f"≤ {limit}",
                cost,
                cost <= limit,
            )
            for where, cost in costs.items()
            for limit in (0.5, 0.25)
        ),
        Target(
            f"{dataset}: its share of the full question's LDS, other queries, least measure",
            f"≥ {_KEPT}",
            left,
            left >= _KEPT,
        ),
        *(
            Target(
                f"{dataset}: share of the full question's LDS that {asked} keeps, other queries, "
                "least measure",
                f"≥ {wanted}",
                _least(found, "reported"),
                _least(found, "reported") >= wanted,
            )
            for asked, wanted in (("the default question", 1), ("--fast", _KEPT))
            for found in [figures["kept"].get(figures["questions"][asked])]
            if found is not None  # a preset may lack it
        ),
    ]


def _times(found: Mapping[str, Any]) -> list[str]:
    """A table of seconds."""
    lines = ["| | seconds | times generating |", "|---|---|---|"]
    for name, one in found["seconds"].items():
        spread = f"{one['median']:.3g} ({one['low']:.3g} … {one['high']:.3g})"
        asked = found["questions"].get(name)
        shown = f"{name}, {asked}" if asked else name
        lines.append(f"| {shown} | {spread} | {_ratio(found, name):.2f} |")
    return lines


def _page(
    preset: Preset,
    figures: Mapping[str, Any],
    large: Mapping[str, Any],
    targets: Sequence[Target],
) -> str:
    lines = [
        "# What does a question about an image cost, relative to generating it?",
        "",
        (
            f"`python -m benchmarks.query_cost`; the models of [lds](lds.md), rows in K-FAC's "
            f"metric; {processor()}. A question is *timesteps × noises × checkpoints* gradients, "
            f"the search for {_K} proponents and opponents and their exact scores; *below 0.6*: at "
            "timesteps below 0.6 of the scheduler's. Generating is one image by "
            f"{STEPS} steps of DDIM. Models are in memory for both. With fewer checkpoints, each "
            "has the weight of those before it. The cheapest question that keeps "
            f"{_KEPT:.0%} of the full question's LDS is chosen on every other held-out query, and "
            "its share reported on the rest."
        ),
        "",
        target_table(targets),
    ]
    for data in preset.lds.data:
        found = figures[data.dataset]
        lines += [
            "",
            f"## {data.dataset}, {data.size} × {data.size}, {found['parameters']:,} parameters",
            "",
            *_times(found),
            "",
            "| timesteps × noises × checkpoints | gradients | "
            + " | ".join(f"{measure}: LDS | kept" for measure in MEASURES)
            + " |",
            "|---|---|" + "---|" * (2 * len(MEASURES)),
        ]
        for name in sorted(found["kept"], key=found["gradients"].__getitem__):
            cells = [
                f"{text(one['LDS'], 2)} | {text(one['reported'], 2)}"
                for one in (found["kept"][name][measure] for measure in MEASURES)
            ]
            lines.append(f"| {name} | {found['gradients'][name]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"## Untrained, {large['size']} × {large['size']}, {large['parameters']:,} parameters",
        "",
        *_times(large),
        "",
        "![LDS kept, by gradients](query_cost.png)",
        "",
        notes("query_cost"),
    ]
    return "\n".join(lines)


def _plot(path: Path, figures: Mapping[str, Any]) -> None:
    figure, axes = canvas(len(figures), len(MEASURES), width=10)
    for row, (dataset, found) in zip(axes, figures.items(), strict=True):
        kept, gradients = found["kept"], found["gradients"]
        for one, measure in zip(row, MEASURES, strict=True):
            for early in (False, True):
                names = [name for name in kept if ("below" in name) is early]
                one.scatter(
                    [gradients[name] for name in names],
                    [kept[name][measure]["LDS"]["mean"] for name in names],
                    s=14,
                    label="early timesteps" if early else "all timesteps",
                )
            one.set(title=f"{dataset}, {measure}", xscale="log", xlabel="gradients")
        row[0].set_ylabel("LDS")
        row[0].legend(fontsize=7)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
