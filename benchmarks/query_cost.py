"""What does a question about an image cost, relative to generating it?

A question consists of gradients at some timesteps, noises and checkpoints, and a search. Measures
how much of the full question's power to predict retraining (LDS) fewer of each keep, and their time
from end to end, in units of the time to generate the image by 50 steps of DDIM.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from diffusers import DDIMPipeline

from benchmarks import lds
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, interleaved, notes, processor, save, target_table
from benchmarks.sparse_timesteps import even, slot_scores
from benchmarks.worlds.setting import Folders, command
from gradstore.collect import CheckpointCache, EventSpec, load
from gradstore.flags.fast import FAST, Setting
from indexer import build_index, index_path
from query import collect_queries, search
from query.evaluation.figures import group_influence
from query.evaluation.retraining import halves
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
class Preset:
    """Sizes of a run.

    Attributes:
        lds: the models and training rows, those of `benchmarks.lds`.
        counts: numbers of timesteps to try; the full question has those of `lds`.
        repeats: repetitions of each timing.
    """

    lds: lds.Preset
    counts: tuple[int, ...]
    repeats: int


PRESETS = {
    "cpu": Preset(lds.PRESETS["cpu"], (1, 2, 3, 5, 10), 9),
    "paper": Preset(lds.PRESETS["paper"], (1, 2, 3, 5, 10), 5),
    "tiny": Preset(lds.PRESETS["tiny"], (1, 2, 4), 1),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `query_cost.json`, `.md` and `.png` into `out`."""
    figures: dict[str, Any] = {}
    for data in preset.lds.data:
        trial = lds.prepare(preset.lds, data, folders)
        kept = _kept(preset, trial)
        cheapest = _cheapest(kept)
        figures[data.dataset] = {
            "kept": kept,
            "cheapest": cheapest,
            "parameters": sum(p.numel() for p in load(trial.whole(0)[-1]).model.parameters()),
            **_timed(preset, trial, cheapest),
        }
    targets = [one for name, found in figures.items() for one in _targets(name, found)]
    page = _page(preset, figures, targets)
    inputs = {"preset": asdict(preset), "steps": STEPS, "k": _K}
    save(out, "query_cost", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "query_cost.png", figures)
    return targets


def _kept(preset: Preset, trial: lds.Trial) -> dict[str, dict[str, Any]]:
    """LDS of every cheaper question, and its share of the full question's.

    Returns:
        By `timesteps × noises × checkpoints` and measure: `LDS` on all held-out queries; `choosing`
        and `reported`, the share of the full LDS on every other one.
    """
    data = trial.data
    members = halves(len(trial.train), data.subsets)
    truth = -trial.retraining().on_subsets(members, preset.lds.seeds)[:, : data.heldout].mean(0)
    every = range(1, len(trial.whole(0)) + 1)
    draws = [2**power for power in range(10) if 2**power <= data.draws]
    found: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        correlations: dict[str, list[NDArray[np.float64]]] = {}
        for seed in range(preset.lds.seeds):
            store = lds.rows(trial, seed, METRIC)[0]
            grids = {draw: _grid(preset, trial, seed, store, draw) for draw in draws}
            for count in every:
                etas = Setting(1, 1, count).etas(store.etas)
                for draw, grid in grids.items():
                    parts = slot_scores(store, grid, measure, etas)[: data.heldout]
                    for timesteps in preset.counts:
                        means = parts[:, even(preset.lds.timesteps, timesteps)].mean(axis=1)
                        name = f"{timesteps} × {draw} × {count}"
                        own = rank_correlation(group_influence(means, members), truth)
                        correlations.setdefault(name, []).append(np.nan_to_num(own))
        full = np.stack(correlations[f"{preset.lds.timesteps} × {draws[-1]} × {every[-1]}"])
        for name, runs in correlations.items():
            own = np.stack(runs)
            found.setdefault(name, {})[measure] = {
                "LDS": interval(own).json(),
                "choosing": _share(own[:, ::2], full[:, ::2]),
                "reported": _share(own[:, 1::2], full[:, 1::2]),
            }
    return found


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


def _numbers(name: str) -> tuple[int, int, int]:
    timesteps, draws, checkpoints = map(int, name.split(" × "))
    return timesteps, draws, checkpoints


def _gradients(name: str) -> int:
    return int(np.prod(_numbers(name)))


def _least(one: Mapping[str, Any], half: str) -> float:
    """The least share of the full LDS among the measures."""
    return min(float(one[measure][half]["mean"]) for measure in MEASURES)


def _cheapest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The fewest gradients that keep the LDS of the choosing queries under every measure."""
    enough = [name for name, one in found.items() if _least(one, "choosing") >= _KEPT]
    return min(enough, key=lambda name: (_gradients(name), -_least(found[name], "choosing")))


def _timed(preset: Preset, trial: lds.Trial, cheapest: str) -> dict[str, Any]:
    """Seconds of generating an image, and of a question about it from end to end.

    Models stay in memory in both: a pipeline generates several images, and `CheckpointCache`
    answers several questions. A question with models read and tried anew is measured as well.
    """
    store = lds.rows(trial, 0, METRIC)[0]
    folders = trial.whole(0)
    image = trial.asked.only(trial.asked.ids[-1:])
    loaded = load(folders[-1])
    pipeline = DDIMPipeline(loaded.model, loaded.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    checkpoints = CheckpointCache(folders)
    every = store.checkpoints
    questions = {
        "the default question": (10, 4, every),
        "--fast": (FAST.timesteps, FAST.draws, every),
        "the cheapest question": _numbers(cheapest),
    }

    def generate() -> None:
        pipeline(
            batch_size=1,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
        )

    with tempfile.TemporaryDirectory(dir=trial.folder) as folder:
        indexes: dict[int, SearchIndex] = {}
        for count in {numbers[2] for numbers in questions.values()}:
            etas = Setting(1, 1, count).etas(store.etas)
            name = f"{count}-{index_path(store, 'retrac').name}"
            indexes[count] = build_index(store, "retrac", Path(folder) / name, etas=etas)
        asked = 0

        def ask(numbers: tuple[int, int, int], held: CheckpointCache | None = checkpoints) -> None:
            nonlocal asked
            asked += 1
            timesteps, draws, count = numbers
            queries = collect_queries(
                store,
                image,
                Path(folder) / f"{asked}.gradstore",
                events=EventSpec(events="planned", timesteps=timesteps, draws=draws),
                etas=Setting(1, 1, count).etas(store.etas),
                checkpoints=held or folders,
            )
            search(indexes[count], queries, _K)

        ask((1, 1, every))  # one-time loading
        jobs = {
            "generating": generate,
            **{name: lambda n=numbers: ask(n) for name, numbers in questions.items()},  # type: ignore[misc]
            "the cheapest question, models read anew": lambda: ask(_numbers(cheapest), None),
        }
        seconds = interleaved(jobs, preset.repeats)
    asked_for = {name: " × ".join(map(str, numbers)) for name, numbers in questions.items()}
    return {"questions": asked_for, "seconds": seconds}


def _ratio(figures: Mapping[str, Any], job: str) -> float:
    seconds = figures["seconds"]
    return float(seconds[job]["median"] / seconds["generating"]["median"])


def _targets(dataset: str, figures: Mapping[str, Any]) -> list[Target]:
    cheapest = figures["cheapest"]
    cost = _ratio(figures, "the cheapest question")
    left = _least(figures["kept"][cheapest], "reported")
    return [
        *(
            Target(
                f"{dataset}: the cheapest question that keeps {_KEPT:.0%} of the LDS, {cheapest}, "
                "over generating",
                f"≤ {limit}",
                cost,
                cost <= limit,
            )
            for limit in (0.5, 0.25)
        ),
        Target(
            f"{dataset}: its share of the full question's LDS, other queries, least measure",
            f"≥ {_KEPT}",
            left,
            left >= _KEPT,
        ),
    ]


def _page(preset: Preset, figures: Mapping[str, Any], targets: Sequence[Target]) -> str:
    lines = [
        "# What does a question about an image cost, relative to generating it?",
        "",
        (
            f"`python -m benchmarks.query_cost`; the models of [lds](lds.md), rows in K-FAC's "
            f"metric; {processor()}. A question is *timesteps × noises × checkpoints* gradients, "
            f"the search for {_K} proponents and opponents and their exact scores; generating is "
            f"one image by {STEPS} steps of DDIM. Models are in memory for both. With fewer "
            "checkpoints, each has the weight of those before it. The cheapest question that keeps "
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
            "| | seconds | times generating |",
            "|---|---|---|",
        ]
        for name, one in found["seconds"].items():
            spread = f"{one['median']:.3f} ({one['low']:.3f} … {one['high']:.3f})"
            asked = found["questions"].get(name)
            shown = f"{name}, {asked}" if asked else name
            lines.append(f"| {shown} | {spread} | {_ratio(found, name):.2f} |")
        lines += [
            "",
            "| timesteps × noises × checkpoints | gradients | "
            + " | ".join(f"{measure}: LDS | kept" for measure in MEASURES)
            + " |",
            "|---|---|" + "---|" * (2 * len(MEASURES)),
        ]
        for name in sorted(found["kept"], key=_gradients):
            cells = [
                f"{text(one['LDS'], 2)} | {text(one['reported'], 2)}"
                for one in (found["kept"][name][measure] for measure in MEASURES)
            ]
            lines.append(f"| {name} | {_gradients(name)} | " + " | ".join(cells) + " |")
    lines += ["", "![LDS kept, by gradients](query_cost.png)", "", notes("query_cost")]
    return "\n".join(lines)


def _plot(path: Path, figures: Mapping[str, Any]) -> None:
    figure, axes = canvas(len(figures), len(MEASURES), width=10)
    for row, (dataset, found) in zip(axes, figures.items(), strict=True):
        kept = found["kept"]
        for one, measure in zip(row, MEASURES, strict=True):
            for count in sorted({_numbers(name)[2] for name in kept}):
                names = [name for name in kept if _numbers(name)[2] == count]
                one.scatter(
                    [_gradients(name) for name in names],
                    [kept[name][measure]["LDS"]["mean"] for name in names],
                    s=14,
                    label=f"{count} checkpoints",
                )
            one.set(title=f"{dataset}, {measure}", xscale="log", xlabel="gradients")
        row[0].set_ylabel("LDS")
        row[0].legend(fontsize=7)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
