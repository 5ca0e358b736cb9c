"""What does a question about an image cost, relative to generating it?

A question consists of gradients at some timesteps, noises and checkpoints, and a search. Measures
how much of the ranking fewer of each keep, and their time from end to end, in units of the time to
generate the image by 50 steps of DDIM.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from diffusers import DDIMPipeline

from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, interleaved, notes, processor, save, target_table
from benchmarks.sparse_timesteps import PRESETS as SPARSE
from benchmarks.sparse_timesteps import Preset as Sparse
from benchmarks.sparse_timesteps import even, grid, slot_scores
from benchmarks.worlds.setting import Folders, command, prepare
from gradstore.collect import CheckpointCache, EventSpec, load
from gradstore.flags.fast import Setting
from indexer import Features, build_index, index_path, measure_of
from query import collect_queries, search
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.worlds.setting import World
    from gradstore.store.reader import Store
    from indexer import SearchIndex

MEASURES: Final = ("tracin", "retrac")
STEPS: Final = 50
_K: Final = 10
_KEPT: Final = 0.95
# Ridge and rank of `other_ways`.
_RIDGE: Final = 0.1
_RANK: Final = 10
# The question of the cost target: timesteps, noises, checkpoints.
_USUAL: Final = (10, 1, 4)


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        sparse: the setting, its queries and the full grid.
        checkpoints: numbers of checkpoints: the last ones of equal parts of training.
        repeats: repetitions of each timing.
    """

    sparse: Sparse
    checkpoints: tuple[int, ...]
    repeats: int


PRESETS = {
    "cpu": Preset(SPARSE["cpu"], (1, 2, 3, 4, 5), 5),
    "paper": Preset(SPARSE["paper"], (1, 2, 4, 10), 5),
    "tiny": Preset(SPARSE["tiny"], (1, 2), 1),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `query_cost.json`, `.md` and `.png` into `out`."""
    world = prepare(preset.sparse.setting, folders)
    figures: dict[str, Any] = {
        "kept": kept(preset, world),
        "other ways": other_ways(preset, world),
    }
    cheapest = _cheapest(figures["kept"])
    figures["cheapest"] = cheapest
    figures |= timed(preset, world, cheapest)
    targets = _targets(figures)
    inputs = {
        "preset": asdict(preset),
        "num_parameters": sum(p.numel() for p in load(world.checkpoints[0]).model.parameters()),
        "steps": STEPS,
        "k": _K,
    }
    page = _page(inputs, figures, targets)
    save(out, "query_cost", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "query_cost.png", figures)
    return targets


def kept(preset: Preset, world: World) -> dict[str, dict[str, Any]]:
    """Spearman of every cheaper question with the full one, over all training samples.

    Returns:
        Intervals by `timesteps × noises × checkpoints`, then by measure.
    """
    sparse = preset.sparse
    grids = {draws: grid(sparse, world, draws) for draws in sparse.draws}
    figures: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        full = slot_scores(world.store, grids[sparse.draws[-1]], measure).mean(axis=1)
        for count in preset.checkpoints:
            etas = Setting(1, 1, count).etas(world.store.etas)
            for draws, one in grids.items():
                parts = slot_scores(world.store, one, measure, etas)
                for timesteps in sparse.counts:
                    means = parts[:, even(sparse.timesteps, timesteps)].mean(axis=1)
                    name = f"{timesteps} × {draws} × {count}"
                    figures.setdefault(name, {})[measure] = interval(
                        rank_correlation(means, full)
                    ).json()
    return figures


def other_ways(preset: Preset, world: World) -> dict[str, dict[str, dict[str, float]]]:
    """Other ways to use as many gradients: Spearman with the full grid of other noises.

    - even: the same timesteps at every checkpoint.
    - staggered: different timesteps at each checkpoint, evenly spaced over all.
    - weighted: staggered, with weights by least squares from the other queries' full scores.
    - low rank: staggered, within the first components of training features.

    Returns:
        Spearman by gradients, measure and way. The last is the full grid itself, the upper limit.
    """
    sparse = preset.sparse
    one = grid(sparse, world, sparse.draws[0])
    draws = sparse.draws[-1]
    full = grid(sparse, world, draws)
    again = grid(sparse, world, draws, event_seed=world.setting.seed + 1000)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for measure in MEASURES:
        truth = slot_scores(world.store, again, measure).mean(axis=1)
        features = Features.of(world.store, measure_of(measure))
        parts = np.stack([_at(world.store, one, features, place) for place in features.checkpoints])
        low = np.stack(
            [_at(world.store, one, features, place, _RANK) for place in features.checkpoints]
        )
        for count in sparse.counts:
            places = [even(sparse.timesteps, count)] * len(parts)
            apart = [
                np.floor((np.arange(count) + (place + 0.5) / len(parts)) * sparse.timesteps / count)
                for place in range(len(parts))
            ]
            found = {
                "even": _chosen(parts, places).sum(axis=1),
                "staggered": _chosen(parts, apart).sum(axis=1),
                "weighted": _weighted(_chosen(parts, apart), truth),
                "low rank": _chosen(low, apart).sum(axis=1),
            }
            figures.setdefault(str(count * len(parts)), {})[measure] = {
                way: float(rank_correlation(scores, truth).mean()) for way, scores in found.items()
            }
        itself = slot_scores(world.store, full, measure).mean(axis=1)
        figures.setdefault(str(sparse.timesteps * draws * len(parts)), {})[measure] = {
            "even": float(rank_correlation(itself, truth).mean())
        }
    return figures


def _at(
    store: Store, queries: Store, features: Features, place: int, rank: int | None = None
) -> NDArray[np.float32]:
    """Contribution of each slot at a checkpoint, `[queries, slots, samples]`."""
    rows = queries.rows(place)
    weights = features.weights(queries, place, rows) * queries.slots
    asked = rows.direction.astype(np.float32) * weights[:, :, None]
    trained = features.part(store, place, store.rows(place))
    if rank is not None:
        first = np.linalg.svd(trained, full_matrices=False)[2][:rank]
        asked, trained = asked @ first.T, trained @ first.T
    return np.asarray(asked @ trained.T)


def _chosen(parts: NDArray[np.float32], places: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Parts of selected slots, `[queries, slots of all checkpoints, samples]`."""
    return np.concatenate(
        [part[:, some.astype(np.int64)] for part, some in zip(parts, places, strict=True)], axis=1
    )


def _weighted(parts: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weighted sums of slots; a query's weights fit the truth of the other queries best."""
    inputs = parts.astype(np.float64) - parts.mean(axis=2, keepdims=True)
    wanted = truth.astype(np.float64) - truth.mean(axis=1, keepdims=True)
    scale = wanted.std(axis=1)  # equal weight for each query
    unit = inputs / scale[:, None, None]
    products = np.einsum("qsn,qtn->qst", unit, unit)
    answers = np.einsum("qsn,qn->qs", unit, wanted / scale[:, None])
    sums = []
    for query in range(len(parts)):
        others = np.arange(len(parts)) != query
        matrix = products[others].sum(axis=0)
        ridge = _RIDGE * np.trace(matrix) / len(matrix)
        weights = np.linalg.solve(matrix + ridge * np.eye(len(matrix)), answers[others].sum(axis=0))
        sums.append(weights @ inputs[query])
    return np.stack(sums)


def _numbers(name: str) -> tuple[int, int, int]:
    timesteps, draws, checkpoints = map(int, name.split(" × "))
    return timesteps, draws, checkpoints


def _gradients(name: str) -> int:
    return int(np.prod(_numbers(name)))


def _cheapest(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The fewest gradients that keep the ranking under every measure, else the best ones."""

    def least(name: str) -> float:
        return min(float(one["mean"]) for one in found[name].values())

    enough = [name for name in found if least(name) >= _KEPT]
    if not enough:
        return max(found, key=least)
    return min(enough, key=lambda name: (_gradients(name), -least(name)))


def timed(preset: Preset, world: World, cheapest: str) -> dict[str, Any]:
    """Seconds of generating an image, and of a question about it from end to end.

    Models stay in memory in both: a pipeline generates several images, and `CheckpointCache`
    answers several questions. A question with models read and tried anew is measured as well.
    """
    drawn = world.of("generated")[0] if world.of("generated") else 0
    image = world.asked.only([world.asked.ids[drawn]])
    loaded = load(world.checkpoints[-1])
    pipeline = DDIMPipeline(loaded.model, loaded.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    checkpoints = CheckpointCache(world.checkpoints)
    every = len(world.store.etas)
    usual = (*_USUAL[:2], min(_USUAL[2], every))

    def generate() -> None:
        pipeline(
            batch_size=1,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
        )

    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        indexes: dict[int, SearchIndex] = {}
        for count in {*preset.checkpoints, usual[2]}:
            etas = Setting(1, 1, count).etas(world.store.etas)
            name = f"{count}-{index_path(world.store, 'retrac').name}"
            indexes[count] = build_index(world.store, "retrac", Path(folder) / name, etas=etas)
        asked = 0

        def ask(numbers: tuple[int, int, int], held: CheckpointCache | None = checkpoints) -> None:
            nonlocal asked
            asked += 1
            timesteps, draws, count = numbers
            queries = collect_queries(
                world.store,
                image,
                Path(folder) / f"{asked}.gradstore",
                events=EventSpec(events="planned", timesteps=timesteps, draws=draws),
                etas=Setting(1, 1, count).etas(world.store.etas),
                checkpoints=held or world.checkpoints,
            )
            search(indexes[count], queries, _K)

        ask((1, 1, every))  # one-time loading
        jobs = {
            "generating": generate,
            "the usual question": lambda: ask(usual),
            "the usual question, models read anew": lambda: ask(usual, None),
            "the cheapest question": lambda: ask(_numbers(cheapest)),
        }
        seconds = interleaved(jobs, preset.repeats)
        cells = {}
        for name in sorted(_table(preset), key=_gradients):
            numbers = _numbers(name)
            pair = interleaved({"generating": generate, "asking": lambda n=numbers: ask(n)}, 1)  # type: ignore[misc]
            cells[name] = pair["asking"]["median"] / pair["generating"]["median"]
    return {
        "usual": " × ".join(map(str, usual)),
        "seconds": seconds,
        "times generating": cells,
    }


def _table(preset: Preset) -> list[str]:
    """The timed questions: few gradients each, at one, half and all checkpoints."""
    counts = preset.checkpoints
    some = {counts[0], counts[len(counts) // 2], counts[-1]}
    return [
        f"{timesteps} × {draws} × {count}"
        for timesteps in preset.sparse.counts
        for draws in preset.sparse.draws
        for count in some
        if timesteps * draws * count <= 200
    ]


def _ratio(figures: Mapping[str, Any], job: str) -> float:
    seconds = figures["seconds"]
    return float(seconds[job]["median"] / seconds["generating"]["median"])


def _targets(figures: Mapping[str, Any]) -> list[Target]:
    usual, cheap = (_ratio(figures, f"the {which} question") for which in ("usual", "cheapest"))
    least = min(one["mean"] for one in figures["kept"][figures["cheapest"]].values())
    return [
        Target(
            f"asking, {figures['usual']} / generating by {STEPS} steps",
            "≤ 1.5",
            usual,
            usual <= 1.5,
        ),
        Target(
            f"the cheapest question that keeps the ranking, {figures['cheapest']} / generating",
            "≤ 0.5",
            cheap,
            cheap <= 0.5,
        ),
        Target(
            "its Spearman with the full question, the least of the measures",
            f"≥ {_KEPT}",
            least,
            least >= _KEPT,
        ),
    ]


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    sparse = inputs["preset"]["sparse"]
    full = f"{sparse['timesteps']} × {sparse['draws'][-1]}"
    lines = [
        "# What does a question about an image cost, relative to generating it?",
        "",
        (
            f"`python -m benchmarks.query_cost`; a UNet of {inputs['num_parameters']:,} parameters "
            f"of the setting of [outliers](outliers.md); {processor()}. "
            f" A question is *timesteps × noises × checkpoints* "
            f"gradients, the search for {inputs['k']} proponents and opponents and their exact "
            f"scores; generating is one image by {inputs['steps']} steps of DDIM. Models are in "
            f"memory for both. With fewer checkpoints, each has the weight of those before it."
        ),
        "",
        target_table(targets),
        "",
        "| | seconds | times generating |",
        "|---|---|---|",
    ]
    names = {
        "the usual question": figures["usual"],
        "the usual question, models read anew": f"{figures['usual']}, models read anew",
        "the cheapest question": figures["cheapest"],
    }
    for name, one in figures["seconds"].items():
        spread = f"{one['median']:.2f} ({one['low']:.2f} … {one['high']:.2f})"
        lines.append(f"| {names.get(name, name)} | {spread} | {_ratio(figures, name):.2f} |")
    lines += [
        "",
        "## Ranking kept, and its cost",
        "",
        (
            f"Spearman over all training samples with {full} at all checkpoints, mean over "
            f"{sum(count for _, count in sparse['queries'])} queries with a 95% bootstrap "
            "interval; time of one question over that of generating, each timed once, in "
            "sequence."
        ),
        "",
        "| timesteps × noises × checkpoints | gradients | " + " | ".join(MEASURES) + " | time |",
        "|---|---|" + "---|" * (len(MEASURES) + 1),
    ]
    for name in sorted(figures["kept"], key=_gradients):
        cells = " | ".join(text(figures["kept"][name][measure]) for measure in MEASURES)
        cost = figures["times generating"].get(name)
        lines.append(
            f"| {name} | {_gradients(name)} | {cells} | {'' if cost is None else f'{cost:.2f}'} |"
        )
    ways = ("even", "staggered", "weighted", "low rank")
    lines += [
        "",
        "## Other ways to use as many gradients",
        "",
        (
            "Spearman with a full grid of other noises, unknown to every question, at all "
            "checkpoints; the last line is its agreement with the first full grid. *Even*: the "
            "same timesteps at every checkpoint. *Staggered*: different ones at each. *Weighted*: "
            f"staggered, with weights by least squares (ridge {_RIDGE}) from the other queries' "
            f"full scores. *Low rank*: staggered, within the first {_RANK} components of training "
            "features."
        ),
        "",
        "| gradients | " + " | ".join(f"{m}, {way}" for m in MEASURES for way in ways) + " |",
        "|---|" + "---|" * (len(MEASURES) * len(ways)),
    ]
    for name, one in figures["other ways"].items():
        values = [one[measure].get(way) for measure in MEASURES for way in ways]
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {shown} |")
    lines += ["", "![Ranking kept, by cost](query_cost.png)", "", notes("query_cost")]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any]) -> None:
    figure, axes = canvas(1, len(MEASURES), width=10)
    costs = figures["times generating"]
    counts = sorted({_numbers(name)[2] for name in costs})
    for one, measure in zip(axes[0], MEASURES, strict=True):
        for count in counts:
            names = [name for name in costs if _numbers(name)[2] == count]
            one.scatter(
                [costs[name] for name in names],
                [figures["kept"][name][measure]["mean"] for name in names],
                s=14,
                label=f"{count} checkpoints",
            )
        one.axhline(_KEPT, color="grey", linestyle=":")
        for limit in (0.5, 1.5):
            one.axvline(limit, color="grey", linewidth=0.8)
        one.set(title=measure, xscale="log", xlabel="time of a question / of generating")
    axes[0, 0].set_ylabel("Spearman with the full question")
    axes[0, 0].legend(fontsize=7)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
