"""How does a gradient's norm depend on its timestep and layer, and which samples rank first?

Three analyses: the replayed training rows; a grid of timesteps for the same samples, split by layer
and compared with gradients of other losses; and the timesteps of the training samples that each
measure ranks first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.harness.plots import band, canvas, keep
from benchmarks.harness.results import Target, machine, notes, save, target_table
from benchmarks.worlds.setting import SETTINGS, Folders, Setting, World, command, digest, prepare
from gradstore.collect import (
    Batch,
    DiffusionLoss,
    EventSpec,
    PlannedEvents,
    StreamingEngine,
    load,
)
from gradstore.collect.devices import choose
from gradstore.collect.events.noise import noise
from gradstore.progress import track
from query.evaluation.figures import top
from query.evaluation.methods import scores
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from gradstore.collect import Objective
    from gradstore.store.format.spec import Identity

MEASURES: Final = ("tracin", "power:0.5", "clip:0.5", "calibrated", "retrac")
_BINS: Final = 10


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: the model and its rows.
        seeds: seeds of the training runs.
        samples: training planes on the grid, evenly spaced among all.
        timesteps: timesteps of the grid.
        k: number of proponents whose timesteps are analysed.
    """

    setting: Setting
    seeds: tuple[int, ...]
    samples: int
    timesteps: int
    k: int


PRESETS = {
    "cpu": Preset(SETTINGS["cpu"], (0,), samples=24, timesteps=20, k=10),
    "paper": Preset(SETTINGS["paper"], (0,), samples=128, timesteps=100, k=10),
    "tiny": Preset(SETTINGS["tiny"], (0, 1), samples=3, timesteps=5, k=3),
}


class RandomSigns:
    """The mean over elements of prediction · random sign: an L1 loss with random error signs.

    Both losses have the same gradient length at the model's output, 1/√elements, at any timestep.
    The norm of this loss shows how the model's Jacobian depends on the timestep. The ratio of the
    L1 loss's norm to it shows how far the signs of the true errors agree with each other.

    The signs are the noise's own, shifted by half the image, so they depend on the event alone.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)

    def identity(self) -> Identity:
        """Name of the objective."""
        return {"name": "random signs"}

    def losses(
        self,
        model: Callable[..., Any],
        inputs: Tensor,
        timesteps: Tensor,
        noise: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """See `Objective.losses`."""
        noisy = self._scheduler.add_noise(inputs, noise, timesteps)
        half = noise.shape[-1] // 2
        signs = noise.roll((half, half), (-2, -1)).sign()
        predicted: Tensor = model(noisy, timesteps, **conditions).sample
        return (predicted * signs).flatten(1).mean(1)


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `timestep_bias.json`, `.md` and `.png` into `out`."""
    worlds = [prepare(replace(preset.setting, seed=seed), folders) for seed in preset.seeds]
    replayed = _replayed(worlds)
    grid = _grid(preset, worlds[0])
    ranked = {measure: _ranked(worlds, measure, preset.k) for measure in MEASURES}
    last = str(worlds[0].store.checkpoints - 1)
    tracin, retrac = (ranked[name]["score with timestep"] for name in ("tracin", "retrac"))
    signs, errors = (grid["with timestep"][name][last] for name in ("random signs", "l1"))
    targets = [
        Target(
            "Spearman of norm with timestep, the last checkpoint's replayed rows",
            "above 0, with its interval (the paper)",
            replayed[last]["spearman"]["mean"],
            replayed[last]["spearman"]["low"] > 0,
        ),
        Target(
            "the same within a sample, on a grid",
            "above 0, with its interval",
            errors["mean"],
            errors["low"] > 0,
        ),
        Target(
            "the same under random signs: the Jacobian alone",
            "above 0, with its interval",
            signs["mean"],
            signs["low"] > 0,
        ),
        Target(
            "|score| with timestep under ReTrac, over TracIn's",
            "< 1: less of it",
            abs(retrac["mean"]) / abs(tracin["mean"]),
            abs(retrac["mean"]) < abs(tracin["mean"]),
        ),
    ]
    inputs = {
        "setting": asdict(preset.setting),
        "training_seeds": preset.seeds,
        "grid_samples": preset.samples,
        "grid_timesteps": preset.timesteps,
        "queries": worlds[0].queries.samples,
        "k": preset.k,
    }
    figures = {"replayed": replayed, "grid": grid, "ranked": ranked}
    page = _page(inputs, figures, targets)
    save(out, "timestep_bias", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "timestep_bias.png", figures)
    return targets


def _replayed(worlds: Sequence[World]) -> dict[str, Any]:
    """Correlation of norm with timestep over the training samples, by checkpoint."""
    figures = {}
    for place in range(worlds[0].store.checkpoints):
        correlations, means, ratios = [], [], []
        for world in worlds:
            norm = world.store.column("norm", place)[:, 0].astype(np.float64)
            timestep = world.store.column("timestep", place)[:, 0]
            zero = np.array(world.store.manifest.metadata["label"]) == "zero"
            correlations.append(_resampled(norm, timestep))
            bins = np.minimum(timestep * _BINS // 1000, _BINS - 1)
            means.append([float(norm[bins == b].mean()) if (bins == b).any() else None
                          for b in range(_BINS)])  # fmt: skip
            ratios.append(float(norm[zero].mean() / norm[~zero].mean()))
        low, high = np.quantile(np.mean(correlations, axis=0)[1:], [0.025, 0.975])
        figures[str(place)] = {
            "epoch": worlds[0].store.spec.checkpoints[place].epoch,
            "spearman": {
                "mean": float(np.mean([one[0] for one in correlations])),
                "low": float(low),
                "high": float(high),
                "count": worlds[0].store.samples,
                "runs": [float(one[0]) for one in correlations],
            },
            "mean_norm_by_tenth": means,
            "zeros_over_planes": ratios,
        }
    return figures


def _resampled(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's correlation, and those of 500 resamples."""
    picks = np.random.default_rng(0).integers(0, len(left), (500, len(left)))
    picks = np.concatenate([np.arange(len(left))[None], picks])
    return rank_correlation(left[picks], right[picks])


def _grid(preset: Preset, world: World) -> dict[str, Any]:
    """Norms of the same samples on a grid of timesteps, by loss, checkpoint and layer."""
    squared, names, timesteps = _squared_norms(preset, world)
    layers = [_layer(name) for name in names]
    every = list(dict.fromkeys(layers))
    figures: dict[str, Any] = {
        "timesteps": timesteps.tolist(),
        "mean_norm": {},
        "with timestep": {},
        "layers": {},
    }
    for loss, array in squared.items():  # [checkpoints, samples, timesteps, parameters]
        norm = np.sqrt(array.sum(axis=3))
        figures["mean_norm"][loss] = {
            str(place): [interval(column).json() for column in one.T]
            for place, one in enumerate(norm)
        }
        figures["with timestep"][loss] = {
            str(place): interval(rank_correlation(one, np.tile(timesteps, (len(one), 1)))).json()
            for place, one in enumerate(norm)
        }
    array = squared["l1"][-1]
    total = array.sum(axis=2)
    early, late = timesteps < 250, timesteps >= 750
    # Each layer's contribution to the change of the squared norm between the ends.
    rise = total[:, late].mean() - total[:, early].mean()
    for layer in every:
        own = array[:, :, [one == layer for one in layers]].sum(axis=2)
        figures["layers"][layer] = {
            "share": (own / total).mean(axis=0).tolist(),
            "share_early": float((own / total)[:, early].mean()),
            "share_late": float((own / total)[:, late].mean()),
            "share_of_rise": float((own[:, late].mean() - own[:, early].mean()) / rise),
            "with timestep": interval(
                rank_correlation(own, np.tile(timesteps, (len(own), 1)))
            ).json(),
        }
    return figures


def _squared_norms(
    preset: Preset, world: World
) -> tuple[dict[str, NDArray[np.float64]], list[str], NDArray[np.int64]]:
    """Squared norms of gradients by parameter tensor, cached beside the model.

    Returns:
        Arrays `[checkpoints, samples, timesteps, parameters]` by loss, the parameters' names, and
        the timesteps.
    """
    spec = EventSpec(events="planned", timesteps=preset.timesteps)
    planned = PlannedEvents(spec, 1000)
    step = max(1, preset.setting.planes // preset.samples)
    samples = world.train.only(world.train.ids[: preset.setting.planes : step][: preset.samples])
    key = digest(samples.ids, preset.timesteps)
    file = world.folder / f"grid-{key}.npz"
    names = [name for name, _ in load(world.checkpoints[0]).model.named_parameters()]
    if file.exists():
        return dict(np.load(file)), names, planned.timesteps
    found: dict[str, list[Any]] = {"l1": [], "l2": [], "random signs": []}
    device = choose(None)
    for place, checkpoint in enumerate(world.checkpoints):
        loaded = load(checkpoint)
        model = loaded.model.to(device)
        edges = np.cumsum([0, *(one.numel() for one in model.parameters())])
        events = planned.at(place, samples.ids)
        objectives: dict[str, Objective] = {
            "l1": DiffusionLoss(loaded.scheduler, "l1"),
            "l2": DiffusionLoss(loaded.scheduler, "l2"),
            "random signs": RandomSigns(loaded.scheduler),
        }
        for name, objective in objectives.items():
            engine = StreamingEngine(model, objective)
            rows = []
            for row in track(range(len(samples)), f"{name} at checkpoint {place}", "samples"):
                image = samples[row].tensor
                noises = [noise(key, image.shape) for key in events.key[row, :, 0].tolist()]
                batch = Batch(
                    image.expand(len(noises), *image.shape).to(device),
                    torch.from_numpy(events.timestep[row]).to(device),
                    torch.from_numpy(np.stack(noises))[:, None].to(device),
                    {},
                )
                squared = torch.zeros(len(noises), len(edges) - 1, dtype=torch.float64)
                engine(batch, _by_parameter(squared, edges))
                rows.append(squared.numpy())
            found[name].append(np.stack(rows))
    arrays = {name: np.stack(each) for name, each in found.items()}
    writing = file.with_name(f".{file.name}")
    np.savez(writing, **arrays)  # type: ignore[arg-type]
    writing.rename(file)
    return arrays, names, planned.timesteps


def _by_parameter(squared: Tensor, edges: NDArray[np.int64]) -> Callable[[int, Tensor], None]:
    """Receiver of gradient pieces that sums their squares by parameter tensor."""

    def receive(start: int, piece: Tensor) -> None:
        stop = start + piece.shape[1]
        first = int(np.searchsorted(edges, start, side="right")) - 1
        while first < len(edges) - 1 and edges[first] < stop:
            low, high = max(start, int(edges[first])), min(stop, int(edges[first + 1]))
            own = piece[:, low - start : high - start].double()
            squared[:, first] += own.square().sum(dim=1).cpu()
            first += 1

    return receive


def _layer(name: str) -> str:
    """The group of a parameter: its block or its top-level module."""
    parts = name.split(".")
    if parts[0] in {"down_blocks", "up_blocks"}:
        return ".".join(parts[:2])
    return "conv_out" if parts[0] == "conv_norm_out" else parts[0]


def _ranked(worlds: Sequence[World], measure: str, k: int) -> dict[str, Any]:
    """Scores and timesteps at each checkpoint separately, where a sample has one timestep."""
    with_score, among_top, long = [], [], []
    for world in worlds:
        store = world.store
        correlations, timesteps, longest = [], [], []
        for place in range(store.checkpoints):
            etas = [float(place == other) for other in range(store.checkpoints)]
            found = scores(store, world.queries, measure, etas=etas)
            timestep = store.column("timestep", place)[:, 0]
            norm = store.column("norm", place)[:, 0]
            grid = np.tile(timestep, (len(found), 1))
            correlations.append(rank_correlation(np.abs(found), grid))
            first = top(found, k)
            timesteps.append(timestep[first].mean(axis=1))
            longest.append((norm >= np.quantile(norm, 0.9))[first].mean(axis=1))
        with_score.append(np.mean(correlations, axis=0))
        among_top.append(np.mean(timesteps, axis=0))
        long.append(np.mean(longest, axis=0))
    return {
        "score with timestep": interval(with_score).json(),
        "mean timestep of proponents": interval(among_top).json(),
        "share of the longest tenth among proponents": interval(long).json(),
    }


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    setting, grid = inputs["setting"], figures["grid"]
    lines = [
        "# How does a gradient's norm depend on its timestep?",
        "",
        (
            f"`python -m benchmarks.timestep_bias`; {setting['planes']:,} CIFAR-10 planes and "
            f"{setting['zeros']} MNIST zeros, {setting['epochs']} epochs, L1 loss, training seeds "
            f"{', '.join(map(str, inputs['training_seeds']))}; {machine()['cpu']}. Replayed: one "
            f"row per training sample and checkpoint. Grid: {inputs['grid_samples']} training "
            f"planes at {inputs['grid_timesteps']} timesteps (seed {setting['seed']}). 95% "
            "bootstrap intervals over samples."
        ),
        "",
        "Spearman's correlation of norm with timestep:",
        "",
        (
            "| epoch | replayed rows | each seed | grid, L1 | grid, L2 | grid, random signs | "
            "zeros' norm / planes' |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for place, one in figures["replayed"].items():
        cells = [text(grid["with timestep"][loss][place]) for loss in grid["with timestep"]]
        seeds = ", ".join(f"{value:.2f}" for value in one["spearman"]["runs"])
        ratios = ", ".join(f"{value:.2f}" for value in one["zeros_over_planes"])
        cells = [text(one["spearman"]), seeds, *cells, ratios]
        lines.append(f"| {one['epoch']} | {' | '.join(cells)} |")
    lines += [
        "",
        (
            "Random signs instead of the errors' signs have the same length at the model's "
            "output: the rest is the Jacobian's dependence on the timestep."
        ),
        "",
        "## Share of each layer",
        "",
        (
            "L1 at the last checkpoint, on the grid: each block's share of the squared norm and "
            "of its change from t < 250 to t ≥ 750."
        ),
        "",
        "| block | share, t < 250 | share, t ≥ 750 | share of the change | norm with timestep |",
        "|---|---|---|---|---|",
        *[
            f"| {name} | {one['share_early']:.3f} | {one['share_late']:.3f} | "
            f"{one['share_of_rise']:.2f} | {text(one['with timestep'])} |"
            for name, one in grid["layers"].items()
        ],
        "",
        "## Effect on the ranking",
        "",
        (
            f"{inputs['queries']} queries, at each checkpoint separately: Spearman of |score| with "
            f"the training sample's timestep, mean timestep of the first {inputs['k']} proponents "
            "(499.5 by chance), and the share of the longest tenth of gradients among them (0.1 by "
            "chance)."
        ),
        "",
        "| measure | score with timestep | timestep of proponents | longest tenth among them |",
        "|---|---|---|---|",
        *[
            f"| {name} | {text(one['score with timestep'])} | "
            f"{text(one['mean timestep of proponents'], 0)} | "
            f"{text(one['share of the longest tenth among proponents'])} |"
            for name, one in figures["ranked"].items()
        ],
        "",
        target_table(targets),
        "",
        notes("timestep_bias"),
    ]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any]) -> None:
    figure, axes = canvas(2, 2)
    grid = figures["grid"]
    timesteps = grid["timesteps"]
    for place, curve in grid["mean_norm"]["l1"].items():
        epoch = figures["replayed"][place]["epoch"]
        band(axes[0, 0], timesteps, curve, f"epoch {epoch}")
    axes[0, 0].set(title="norm, L1", xlabel="timestep", yscale="log")
    axes[0, 0].legend(fontsize=7)
    for loss, curves in grid["mean_norm"].items():
        curve = list(curves.values())[-1]
        mean = float(np.mean([one["mean"] for one in curve]))
        scaled = [{name: one[name] / mean for name in ("mean", "low", "high")} for one in curve]
        band(axes[0, 1], timesteps, scaled, loss)
    axes[0, 1].set(title="last checkpoint, over the mean", xlabel="timestep", yscale="log")
    axes[0, 1].legend(fontsize=7)
    shares = {name: one["share"] for name, one in grid["layers"].items()}
    axes[1, 0].stackplot(timesteps, list(shares.values()), labels=list(shares))
    axes[1, 0].set(title="shares of the squared norm, last checkpoint", xlabel="timestep")
    axes[1, 0].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    for measure, one in figures["ranked"].items():
        value = one["score with timestep"]
        error = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
        axes[1, 1].errorbar([measure], [value["mean"]], yerr=error, fmt="o")
    axes[1, 1].axhline(0, color="grey", linewidth=0.8)
    axes[1, 1].set(title="|score| with timestep, Spearman")
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
