"""How many dimensions does a projection need to rank as unprojected gradients do?

Compares exact scores of a trained model's whole gradients with scores of projected gradients. The
projections are TRAK's dense matrices, sjlt, and the permutation, signs and group sums of DMin
(arXiv 2412.08637), with several seeds of each.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.harness.plots import band, canvas, keep
from benchmarks.harness.results import Target, machine, notes, save, spread, target_table
from benchmarks.worlds.setting import SETTINGS, Folders, Setting, command, prepare
from gradstore.collect import (
    EventSpec,
    ProjectorSpec,
    SjltProjector,
    TrakProjector,
    collect,
)
from query import collect_queries
from query.evaluation.figures import top
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from gradstore.collect import Projection

MEASURES: Final = ("tracin", "retrac")
DENSE: Final = ("trak normal", "trak rademacher")
SPARSE: Final = ("sjlt", "permute-sign-group-sum")
_DEPTHS: Final = (10, 100)
_PIECE: Final = 1 << 17


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: the model; its last checkpoint is used.
        samples: training samples, evenly spaced among all.
        queries: number of queries of each class.
        timesteps: timesteps of each query.
        dims: increasing powers of 2.
        dense: largest dimension of TRAK's matrices.
        seeds: number of seeds of each projection.
        precision: precision of the product with TRAK's matrices.
    """

    setting: Setting
    samples: int
    queries: tuple[tuple[str, int], ...]
    timesteps: int
    dims: tuple[int, ...]
    dense: int
    seeds: int = 5
    precision: str = "bfloat16"


_DIMS: Final = tuple(2**power for power in range(6, 17))
PRESETS = {
    "cpu": Preset(SETTINGS["cpu"], 1040, (("plane", 6), ("zero", 2)), 10, _DIMS, 2048),
    "paper": Preset(SETTINGS["paper"], 400, (("plane", 6), ("zero", 2)), 10, _DIMS, 16384),
    "tiny": Preset(SETTINGS["tiny"], 30, (("plane", 2), ("zero", 1)), 2, (16, 64, 256), 64, 2),
}


@dataclass(frozen=True)
class Gradients:
    """Whole gradients at one checkpoint.

    Attributes:
        unit: training rows' unit gradients, float32 `[samples, parameters]`.
        norm: their norms, `[samples]`.
        asked: mean rows of the queries by measure, float32 `[queries, parameters]`.
    """

    unit: Tensor
    norm: NDArray[np.float32]
    asked: dict[str, Tensor]

    def rows(self) -> Tensor:
        """All rows to project, `[samples + queries of each measure, parameters]`."""
        return torch.cat([self.unit, *self.asked.values()])

    def scores(self, rows: NDArray[Any], measure: str) -> NDArray[np.float64]:
        """Scores from projected `rows`, `[queries, samples]`."""
        count, queries = len(self.norm), len(self.asked[measure])
        start = count + MEASURES.index(measure) * queries
        found: NDArray[np.float64] = rows[start : start + queries].astype(np.float64) @ rows[
            :count
        ].T.astype(np.float64)
        return found * self.norm if measure == "tracin" else found

    def exact(self, measure: str) -> NDArray[np.float64]:
        """Scores of the unprojected gradients, with float64 sums."""
        found = torch.zeros(len(self.asked[measure]), len(self.unit), dtype=torch.float64)
        for start in range(0, self.unit.shape[1], _PIECE):
            piece = slice(start, start + _PIECE)
            found += self.asked[measure][:, piece].double() @ self.unit[:, piece].double().T
        scores = found.numpy()
        return scores * self.norm if measure == "tracin" else scores


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `projection_dim.json`, `.md` and `.png` into `out`."""
    gradients = _gradients(preset, folders)
    exact = {measure: gradients.exact(measure) for measure in MEASURES}
    rows = gradients.rows()
    figures: dict[str, Any] = {}
    for name in (*DENSE, *SPARSE):
        dims = [dim for dim in preset.dims if name in SPARSE or dim <= preset.dense]
        found: dict[int, dict[str, list[Any]]] = {
            dim: {measure: [] for measure in MEASURES} for dim in dims
        }
        seconds = []
        for seed in range(preset.seeds):
            start = perf_counter()
            sketch = project(name, rows, dims[-1], seed, preset.precision)
            seconds.append((perf_counter() - start) / len(rows))
            for dim in dims:
                small = smaller(name, sketch, dim)
                for measure in MEASURES:
                    found[dim][measure].append(gradients.scores(small, measure))
        figures[name] = {
            "seconds_per_row": spread(seconds),
            "seconds_at": dims[-1],
            "dims": {
                str(dim): {
                    "bytes_per_row": 2 * dim,
                    **{m: _agreement(found[dim][m], exact[m]) for m in MEASURES},
                }
                for dim in dims
            },
        }
    smallest = {
        name: {
            measure: {
                f"{level:g}": _smallest(figures[name]["dims"], measure, level)
                for level in (0.95, 0.99)
            }
            for measure in MEASURES
        }
        for name in figures
    }
    both = [str(dim) for dim in preset.dims if dim <= preset.dense]
    gap = max(
        abs(
            figures["sjlt"]["dims"][dim][measure]["spearman"]["mean"]
            - figures["trak rademacher"]["dims"][dim][measure]["spearman"]["mean"]
        )
        for dim in both
        for measure in MEASURES
    )
    default = str(min(preset.dims, key=lambda dim: abs(dim - 4096)))
    at_default = figures["sjlt"]["dims"][default]
    targets = [
        Target(
            "largest difference between sjlt and trak in Spearman, at any dim and measure",
            "≤ 0.02: as good as a dense matrix",
            gap,
            gap <= 0.02,
        ),
        *(
            Target(
                f"Spearman of {measure} at {default} dimensions of sjlt",
                "≥ 0.95",
                at_default[measure]["spearman"]["mean"],
                at_default[measure]["spearman"]["mean"] >= 0.95,
            )
            for measure in MEASURES
        ),
    ]
    inputs = {
        "setting": asdict(preset.setting),
        "num_parameters": gradients.unit.shape[1],
        "samples": len(gradients.norm),
        "queries": dict(preset.queries),
        "timesteps": preset.timesteps,
        "seeds": preset.seeds,
        "precision": preset.precision,
    }
    results = {"projectors": figures, "smallest_dim": smallest}
    page = _page(inputs, results, targets)
    save(out, "projection_dim", inputs=inputs, figures=results, targets=targets, page=page)
    _plot(out / "projection_dim.png", figures)
    return targets


def _gradients(preset: Preset, folders: Folders) -> Gradients:
    """Collect at the last checkpoint without a projection, and keep only in memory."""
    world = prepare(preset.setting, folders)
    step = max(1, len(world.train) // preset.samples)
    train = world.train.only(world.train.ids[::step][: preset.samples])
    given = np.array(world.queries.manifest.metadata["label"])
    asked = [
        world.asked.ids[row]
        for label, count in preset.queries
        for row in np.flatnonzero(given == label)[:count]
    ]
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        store = collect(
            train,
            [world.checkpoints[-1]],
            Path(folder) / "train.gradstore",
            projector=ProjectorSpec(projector="identity"),
            events="replayed",
            metric="none",
            dtype="float32",
            shard_samples=64,
        )
        queries = collect_queries(
            store,
            world.asked.only(asked),
            Path(folder) / "queries.gradstore",
            events=EventSpec(events="planned", timesteps=preset.timesteps),
            dtype="float32",
        )
        unit = torch.empty(store.samples, store.dim)
        for start, rows in store.iter_rows(0):
            unit[start : start + len(rows)] = torch.tensor(rows.direction[:, 0])
        sums: dict[str, list[Tensor]] = {measure: [] for measure in MEASURES}
        for row in range(queries.samples):
            one = queries.rows(0, row, row + 1)
            direction = torch.tensor(one.direction[0])
            sums["tracin"].append((direction * torch.tensor(one.norm[0])[:, None]).mean(dim=0))
            sums["retrac"].append(direction.mean(dim=0))
        norm = store.column("norm", 0)[:, 0]
    return Gradients(unit, norm, {name: torch.stack(each) for name, each in sums.items()})


def project(name: str, rows: Tensor, dim: int, seed: int, precision: str) -> NDArray[np.float32]:
    """Unscaled sketches of rows, `[rows, dim]`."""
    count = rows.shape[1]
    if name == "permute-sign-group-sum":
        buckets, signs = grouped(count, dim, seed)
        sketch = torch.zeros(len(rows), dim)
        for start in range(0, count, _PIECE):
            piece = slice(start, start + _PIECE)
            sketch.index_add_(1, buckets[piece], rows[:, piece] * signs[piece])
        return sketch.numpy()
    projection: Projection
    if name == "sjlt":
        spec = ProjectorSpec(projector="sjlt", proj_dim=dim, proj_seed=seed)
        projection = SjltProjector(spec).at(0, count, torch.device("cpu"), 0)
    else:
        spec = ProjectorSpec.model_validate(
            {
                "proj_dim": dim,
                "proj_seed": seed,
                "proj_type": name.removeprefix("trak "),
                "precision": precision,
            }
        )
        projection = TrakProjector(spec).at(0, count, torch.device("cpu"), 1 << 30)
    buffer = torch.zeros(len(rows), projection.width, dtype=projection.dtype)
    for start in range(0, count, _PIECE):
        projection.add(buffer, start, rows[:, start : start + _PIECE])
    return projection.finish(buffer).numpy()


def smaller(name: str, sketch: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """A sketch reduced to fewer dimensions."""
    if name in DENSE:
        return sketch[:, :dim]
    folds = sketch.shape[1] // dim
    # sjlt: buckets modulo dim. Group sums: neighbouring groups.
    shape, axis = ((folds, dim), 1) if name == "sjlt" else ((dim, folds), 2)
    found: NDArray[np.float32] = sketch.reshape(len(sketch), *shape).sum(axis=axis)
    return found


def grouped(count: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """DMin's projection: permuted parameters with signs, summed in `dim` groups of equal size.

    Returns:
        Group and sign of each parameter, `[count]`.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(count, generator=generator)
    signs = torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1.0
    return place * dim // count, signs


def _agreement(found: Sequence[NDArray[Any]], exact: NDArray[Any]) -> dict[str, Any]:
    """Agreement of projected with exact scores; each seed is a run."""
    figures = {"spearman": interval([rank_correlation(one, exact) for one in found]).json()}
    for k in _DEPTHS:
        if k >= exact.shape[1]:
            continue
        wanted = top(exact, k)
        figures[f"top-{k}"] = interval(
            [
                [len(set(a) & set(b)) / k for a, b in zip(top(one, k), wanted, strict=True)]
                for one in found
            ]
        ).json()
    return figures


def _smallest(dims: dict[str, Any], measure: str, level: float) -> int | None:
    """The smallest dim from which on the mean Spearman reaches a level."""
    reached = None
    for dim, one in reversed(dims.items()):
        if one[measure]["spearman"]["mean"] < level:
            break
        reached = int(dim)
    return reached


def _page(inputs: dict[str, Any], results: dict[str, Any], targets: Sequence[Target]) -> str:
    setting, figures = inputs["setting"], results["projectors"]
    asked = ", ".join(f"{count} {name}" for name, count in inputs["queries"].items())
    lines = [
        "# How many dimensions does a projection need?",
        "",
        (
            f"`python -m benchmarks.projection_dim`; the last checkpoint of a model of "
            f"{inputs['num_parameters']:,} parameters, {setting['epochs']} epochs on "
            f"{setting['planes']:,} planes and {setting['zeros']} zeros; {inputs['samples']:,} "
            f"training samples, replayed; queries ({asked}) at {inputs['timesteps']} timesteps; "
            f"{inputs['seeds']} seeds of each projection; {machine()['cpu']}, "
            f"{machine()['threads']} threads. Spearman over all training samples with the exact "
            "scores of whole gradients: mean over queries and seeds, 95% bootstrap interval over "
            "queries. Smaller sketches are cut or folded from the largest."
        ),
        "",
        "| projector | TracIn ≥ 0.95 | TracIn ≥ 0.99 | ReTrac ≥ 0.95 | ReTrac ≥ 0.99 | ms a row |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in results["smallest_dim"].items():
        cells = [
            f"{dim:,}" if dim else "more" for measure in MEASURES for dim in one[measure].values()
        ]
        spent = figures[name]["seconds_per_row"]["median"] * 1e3
        lines.append(
            f"| {name} | {' | '.join(cells)} | {spent:.1f} at {figures[name]['seconds_at']:,} |"
        )
    lines += [
        "",
        (
            "The smallest dimensions whose mean reaches the level. Milliseconds: the projection "
            "alone, of all rows at once, measured beside other work; sjlt and group sums cost the "
            "same at any dimension, trak in proportion to it."
        ),
    ]
    for measure in MEASURES:
        lines += [
            "",
            f"## {measure}",
            "",
            "| dim | bytes a row | " + " | ".join(figures) + " |",
            "|---|---|" + "---|" * len(figures),
        ]
        for dim in figures["sjlt"]["dims"]:
            cells = []
            for one in figures.values():
                found = one["dims"].get(dim)
                cells.append(_cell(found[measure]) if found else "")
            lines.append(f"| {int(dim):,} | {2 * int(dim):,} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Spearman with its interval; overlap of the top 10, and of the top 100.",
        "",
        target_table(targets),
        "",
        "![Spearman and overlaps by dimension, bytes and milliseconds](projection_dim.png)",
        "",
        notes("projection_dim"),
    ]
    return "\n".join(lines)


def _cell(found: dict[str, Any]) -> str:
    overlaps = [f"{one['mean']:.2f}" for key, one in found.items() if key != "spearman"]
    return "; ".join([text(found["spearman"]), *overlaps])


def _plot(path: Path, figures: dict[str, Any]) -> None:
    figure, axes = canvas(2, 2)
    for place, measure in enumerate(MEASURES):
        for number, (name, one) in enumerate(figures.items()):
            dims = [int(dim) for dim in one["dims"]]
            cells = [found[measure] for found in one["dims"].values()]
            band(axes[0, place], dims, [found["spearman"] for found in cells], name)
            color = f"C{number}"  # the order of `band`
            for key, style in (("top-10", "-"), ("top-100", "--")):
                if key in cells[0]:
                    means = [found[key]["mean"] for found in cells]
                    label = f"{name}, {key}"
                    axes[1, place].plot(dims, means, style, color=color, label=label, linewidth=1)
        for level in (0.95, 0.99):
            axes[0, place].axhline(level, color="grey", linewidth=0.6)
        axes[0, place].set(title=measure, xscale="log", ylabel="Spearman with exact scores")
        axes[1, place].set(xscale="log", ylabel="overlap", xlabel="dimensions (2 bytes each)")
    costs = {
        name: f"{one['seconds_per_row']['median'] * 1e3:.1f} ms a row at {one['seconds_at']:,}"
        for name, one in figures.items()
    }
    lines = axes[0, 0].get_lines()[: len(figures)]
    axes[0, 0].legend(lines, [f"{name}, {cost}" for name, cost in costs.items()], fontsize=7)
    axes[1, 0].legend(fontsize=6)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
