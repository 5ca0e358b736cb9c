"""How many timesteps and noises does a query need for the ranking of a full grid?

The paper queries only every few timesteps, and finds a rank correlation above 0.99 with the full
grid at a twentieth of the cost (arXiv 2401.09031, section 6). Scores are linear in a query's rows,
so the grid's own rows give the scores of every subset of its timesteps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.harness.plots import band, canvas, keep
from benchmarks.harness.results import Target, machine, notes, save, target_table
from benchmarks.worlds.setting import SETTINGS, Folders, Setting, World, command, digest, prepare
from gradstore.collect import EventSpec
from indexer import Features, measure_of
from query import collect_queries
from query.evaluation.figures import top
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

# Measures of the paper's rows, replayed; then of rows at a query's timesteps, in K-FAC's metric.
MEASURES: Final = ("tracin", "retrac", "calibrated", "tracin, kfac", "retrac, kfac")
_CLAIMED: Final = 20


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: the model and its training rows.
        seeds: seeds of the training runs.
        queries: number of queries of each class.
        timesteps: timesteps of the full grid.
        draws: noises at each timestep; the last is the full grid's.
        counts: numbers of timesteps to try.
        stratified: random choices of each count.
        k: depth of the overlap.
    """

    setting: Setting
    seeds: tuple[int, ...]
    queries: tuple[tuple[str, int], ...]
    timesteps: int
    draws: tuple[int, ...]
    counts: tuple[int, ...]
    stratified: int
    k: int


PRESETS = {
    "cpu": Preset(
        SETTINGS["pictures"],
        (0, 1),
        (("plane", 4), ("zero", 2)),
        40,
        (1, 2, 4),
        (1, 2, 4, 5, 8, 10, 20, 40),
        20,
        10,
    ),
    "paper": Preset(
        SETTINGS["paper"],
        (0,),
        (("plane", 16), ("zero", 8), ("generated", 8)),
        1000,
        (1, 4, 16),
        (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        20,
        10,
    ),
    "tiny": Preset(
        SETTINGS["tiny"], (0, 1), (("plane", 2), ("zero", 1)), 6, (1, 2), (1, 2, 3, 6), 3, 3
    ),
}


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `sparse_timesteps.json`, `.md` and `.png` into `out`."""
    worlds = [prepare(replace(preset.setting, seed=seed), folders) for seed in preset.seeds]
    figures = {method: _measured(preset, worlds, method) for method in MEASURES}
    full_cost = preset.timesteps * preset.draws[-1]
    affordable = {
        measure: _best(figures[measure]["even"], full_cost // _CLAIMED) for measure in MEASURES
    }
    targets = [
        Target(
            f"Spearman with the full grid under {measure}, at a {_CLAIMED}th of its cost",
            f"> 0.99 (the paper); best of even choices: {affordable[measure][0]}",
            affordable[measure][1],
            affordable[measure][1] > 0.99,
        )
        for measure in MEASURES
    ]
    inputs = {
        "setting": asdict(preset.setting),
        "training_seeds": preset.seeds,
        "queries": dict(preset.queries),
        "timesteps": preset.timesteps,
        "draws": preset.draws,
        "stratified": preset.stratified,
        "k": preset.k,
        "gradients_of_the_full_grid": full_cost,
    }
    page = _page(inputs, figures, targets)
    save(out, "sparse_timesteps", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "sparse_timesteps.png", figures, preset)
    return targets


def _measured(preset: Preset, worlds: Sequence[World], method: str) -> dict[str, Any]:
    """Agreement of every sparse question with the full one; each training seed is a run."""
    measure, _, metric = method.partition(", ")
    parts: dict[int, list[NDArray[np.float32]]] = {draws: [] for draws in preset.draws}
    other = []
    for world in worlds:
        store = world.rows(metric)[0] if metric else world.store
        for draws, found in parts.items():
            found.append(slot_scores(store, _grid(preset, world, store, draws), measure))
        again = _grid(preset, world, store, preset.draws[-1], event_seed=world.setting.seed + 1000)
        other.append(slot_scores(store, again, measure))
    full = [one.mean(axis=1) for one in parts[preset.draws[-1]]]

    def agreement(choices: Sequence[Sequence[NDArray[np.float32]]]) -> dict[str, Any]:
        """Of choices of timesteps, by world."""
        return _agreement(choices, full, preset.k)

    def some(found: NDArray[np.float32], count: int) -> list[NDArray[np.float32]]:
        return [
            found[:, stratified(preset.timesteps, count, seed)] for seed in range(preset.stratified)
        ]

    return {
        "even": {
            str(draws): {
                str(n): agreement([[one[:, even(preset.timesteps, n)]] for one in found])
                for n in preset.counts
            }
            for draws, found in parts.items()
        },
        "stratified": {
            str(draws): {str(n): agreement([some(one, n) for one in found]) for n in preset.counts}
            for draws, found in parts.items()
        },
        "the full grid with other noises": agreement([[one] for one in other]),
    }


def _grid(
    preset: Preset, world: World, store: Store, draws: int, event_seed: int | None = None
) -> Store:
    """Query rows at every timestep of the grid; more draws include the noises of fewer draws."""
    given = np.array(world.queries.manifest.metadata["label"])
    names = [
        world.asked.ids[row]
        for label, count in preset.queries
        for row in np.flatnonzero(given == label)[:count]
    ]
    seed = world.setting.seed if event_seed is None else event_seed
    key = digest(names, preset.timesteps, draws, seed, store.spec.fingerprint)
    return collect_queries(
        store,
        world.asked.only(names),
        world.folder / f"sparse-{preset.setting.proj_dim}-{key}.gradstore",
        events=EventSpec(
            events="planned", timesteps=preset.timesteps, draws=draws, event_seed=seed
        ),
        checkpoints=world.checkpoints,
    )


def slot_scores(
    store: Store, queries: Store, measure: str, etas: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Contribution of each timestep, `[queries, slots, samples]`; the mean is the score."""
    features = Features.of(store, measure_of(measure), etas=etas)
    trained = features.range(store)
    width = features.width(store)
    found = np.zeros((queries.samples, queries.slots, store.samples), np.float32)
    for place in features.checkpoints:
        rows = queries.rows(place)
        weights = features.weights(queries, place, rows) * queries.slots  # per slot, not its share
        part = trained[:, place * width : (place + 1) * width].T
        for query in range(queries.samples):
            direction = rows.direction[query].astype(np.float32)
            found[query] += (direction * weights[query, :, None]) @ part
    return found


def even(timesteps: int, count: int) -> NDArray[np.int64]:
    """Indices of `count` of a grid's timesteps: the middles of equal parts."""
    return np.floor((np.arange(count) + 0.5) * timesteps / count).astype(np.int64)


def stratified(timesteps: int, count: int, seed: int) -> NDArray[np.int64]:
    """One random index from each of `count` equal parts of a grid."""
    edges = np.round(np.arange(count + 1) * timesteps / count).astype(np.int64)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _agreement(
    choices: Sequence[Sequence[NDArray[np.float32]]], full: Sequence[NDArray[np.float32]], k: int
) -> dict[str, Any]:
    """Agreement of sparse with full scores; each choice of timesteps in each world is a run."""
    correlations, overlap = [], []
    for parts, known in zip(choices, full, strict=True):
        wanted = top(known, k)
        for mean in (one.mean(axis=1) for one in parts):
            correlations.append(rank_correlation(mean, known))
            pairs = zip(top(mean, k), wanted, strict=True)
            overlap.append([len(set(a) & set(b)) / k for a, b in pairs])
    return {"spearman": interval(correlations).json(), "overlap": interval(overlap).json()}


def _best(found: dict[str, Any], cost: int) -> tuple[str, float]:
    """The best choice with at most `cost` gradients."""
    choices = {
        f"{n} timesteps × {draws} noises": one["spearman"]["mean"]
        for draws, counts in found.items()
        for n, one in counts.items()
        if int(draws) * int(n) <= max(1, cost)
    }
    name = max(choices, key=lambda choice: choices[choice])
    return name, choices[name]


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    setting, full = inputs["setting"], inputs["gradients_of_the_full_grid"]
    asked = ", ".join(f"{count} {name}" for name, count in inputs["queries"].items())
    lines = [
        "# How many timesteps and noises does a query need?",
        "",
        (
            f"`python -m benchmarks.sparse_timesteps`; {setting['planes']:,} planes and "
            f"{setting['zeros']} zeros of {setting['size']} × {setting['size']}, training seeds "
            f"{', '.join(map(str, inputs['training_seeds']))}, sjlt to "
            f"{setting['proj_dim']:,}; queries: {asked}; full grid: {inputs['timesteps']} "
            f"timesteps × {inputs['draws'][-1]} noises = {full} gradients per query and "
            f"checkpoint; {machine()['cpu']}. Spearman over all training samples with the full "
            "grid's ranking, mean over queries with a 95% bootstrap interval over them. "
            f"Stratified: mean of {inputs['stratified']} random choices."
        ),
        "",
    ]
    for measure, one in figures.items():
        other = one["the full grid with other noises"]
        lines += [
            f"## {measure}",
            "",
            (
                "| timesteps × noises | cost | even | even, top-"
                f"{inputs['k']} overlap | stratified |"
            ),
            "|---|---|---|---|---|",
        ]
        cells = [
            (int(n) * int(draws), n, draws) for draws, counts in one["even"].items() for n in counts
        ]
        for cost, n, draws in sorted(cells):
            direct, mixed = one["even"][draws][n], one["stratified"][draws][n]
            lines.append(
                f"| {n} × {draws} | 1/{full / cost:.3g} | {text(direct['spearman'])} | "
                f"{direct['overlap']['mean']:.2f} | {text(mixed['spearman'])} |"
            )
        lines += [
            (
                f"| {inputs['timesteps']} × {inputs['draws'][-1]}, other noises | 1 | "
                f"{text(other['spearman'])} | {other['overlap']['mean']:.2f} | |"
            ),
            "",
        ]
    lines += [target_table(targets), "", notes("sparse_timesteps")]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any], preset: Preset) -> None:
    figure, axes = canvas(1, len(figures), width=16)
    for one, (measure, found) in zip(axes[0], figures.items(), strict=True):
        for draws, counts in found["even"].items():
            costs = [int(n) * int(draws) for n in counts]
            cells = [cell["spearman"] for cell in counts.values()]
            band(one, costs, cells, f"{draws} noises, even")
        other = found["the full grid with other noises"]["spearman"]["mean"]
        one.axhline(other, color="grey", linestyle=":", label="full grid, other noises")
        one.axvline(preset.timesteps * preset.draws[-1] / _CLAIMED, color="grey", linewidth=0.8)
        one.set(title=measure, xscale="log", xlabel="gradients per query and checkpoint")
    axes[0, 0].set_ylabel("Spearman with the full grid")
    axes[0, 0].legend(fontsize=7)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
