"""Does a measure foretell what a model trained on other samples would do?

The linear datamodeling score (arXiv 2303.14186, section 2.3): models are trained on random halves
of the training set; a query's influences, summed over a half, should rank the halves by how well
their models predict the query. And removal: a model is trained without a query's first proponents.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.harness.intervals import Interval, interval, rank_correlation, text
from benchmarks.harness.plots import bars, canvas, keep
from benchmarks.harness.results import Target, cell, machine, notes, save, target_table
from benchmarks.scoring import scores, top
from benchmarks.worlds.models import build
from benchmarks.worlds.setting import Folders, command, digest, train_and_heldout
from benchmarks.worlds.training import fit
from gradstore.collect import (
    DiffusionLoss,
    EventSpec,
    PlannedEvents,
    ProjectorSpec,
    Samples,
    collect,
    generate,
    load,
)
from gradstore.collect.devices import choose
from gradstore.collect.events.noise import noise
from gradstore.progress import track
from query import collect_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

MEASURES: Final = (
    *("tracin", "power:0.5", "clip:0.5", "calibrated", "calibrated|retrac", "retrac"),
    *("trak", "trak:0.1"),
)
REMOVED_BY: Final = ("tracin", "retrac", "trak, planned", "raw pixels")
_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        dataset: `digits`, or `cifar2`: CIFAR-10's automobiles and horses.
        model: of `benchmarks.worlds.models`.
        samples: of the whole training set.
        heldout: queries that no model was trained on.
        generated: queries that the whole set's model drew.
        epochs: of every training run.
        checkpoint_every: epochs between checkpoints of the whole set's model.
        batch_size: samples per step.
        learning_rate: Adam's.
        proj_dim: dimension of the rows, by sjlt.
        timesteps: of queries, and of planned events of training samples.
        draws: noises averaged into each timestep of a query.
        judged: timesteps and noises at which a query's true loss is taken.
        subsets: random halves.
        seeds: training runs of each half.
        removed: proponents that are left out.
        removals: generated queries of which they are left out.
        random_removals: sets of as many that are left out at random.
    """

    dataset: str
    model: str
    samples: int
    heldout: int
    generated: int
    epochs: int
    checkpoint_every: int
    batch_size: int
    learning_rate: float
    proj_dim: int
    timesteps: int
    draws: int
    judged: tuple[int, int]
    subsets: int
    seeds: int
    removed: int
    removals: int
    random_removals: int


PRESETS = {
    "cpu": Preset(
        dataset="digits",
        model="digits",
        samples=400,
        heldout=48,
        generated=16,
        epochs=80,
        checkpoint_every=16,
        batch_size=32,
        learning_rate=1e-3,
        proj_dim=4096,
        timesteps=10,
        draws=4,
        judged=(25, 4),
        subsets=32,
        seeds=2,
        removed=40,
        removals=4,
        random_removals=4,
    ),
    "paper": Preset(
        dataset="cifar2",
        model="paper",
        samples=5000,
        heldout=1000,
        generated=1000,
        epochs=200,
        checkpoint_every=40,
        batch_size=128,
        learning_rate=1e-4,
        proj_dim=32768,
        timesteps=10,
        draws=10,
        judged=(100, 4),
        subsets=64,
        seeds=3,
        removed=250,
        removals=60,
        random_removals=4,
    ),
    "tiny": Preset(
        dataset="digits",
        model="digits",
        samples=24,
        heldout=3,
        generated=2,
        epochs=2,
        checkpoint_every=1,
        batch_size=16,
        learning_rate=1e-3,
        proj_dim=128,
        timesteps=2,
        draws=2,
        judged=(2, 2),
        subsets=4,
        seeds=2,
        removed=4,
        removals=1,
        random_removals=1,
    ),
}


@dataclass(frozen=True)
class Trial:
    """Everything that the questions of a preset have in common.

    Attributes:
        preset: its sizes.
        folder: where models and stores are kept.
        train: the training samples.
        asked: the queries: held-out ones, then those that the model drew.
        checkpoints: of the model of the whole set.
    """

    preset: Preset
    folder: Path
    train: Samples
    asked: Samples
    checkpoints: Sequence[Path]

    def fit(self, name: str, ids: Sequence[str], seed: int, every: int = 0) -> list[Path]:
        """Train on some samples; found again by name."""
        preset = self.preset
        return fit(
            partial(build, preset.model),
            self.train.only(ids),
            self.folder / name,
            epochs=preset.epochs,
            checkpoint_every=every or preset.epochs,
            batch_size=preset.batch_size,
            learning_rate=preset.learning_rate,
            seed=seed,
        )

    def losses(self, checkpoint: Path) -> NDArray[np.float64]:
        """True loss of every query under a model, `[queries]`; kept beside it."""
        file = checkpoint / "query-losses.npy"
        if not file.exists():
            np.save(file, _losses(checkpoint, self.asked, self.preset.judged))
        found: NDArray[np.float64] = np.load(file)
        return found


def prepare(preset: Preset, folders: Folders) -> Trial:
    """The training set, its model, and the queries."""
    train, heldout = train_and_heldout(preset.dataset, preset.samples, preset.heldout, folders)
    key = digest(asdict(preset), train.manifest.digests)
    folder = folders.cache / f"lds-{preset.dataset}-{key}"
    trial = Trial(preset, folder, train, heldout, ())
    checkpoints = trial.fit("whole-0", train.ids, 0, preset.checkpoint_every)
    made = generate(checkpoints[-1], preset.generated, seed=0)
    pictures = [heldout.image(row) for row in range(len(heldout))] + made
    kinds = ["held out"] * len(heldout) + ["generated"] * len(made)
    names = [*heldout.ids, *(f"generated-{number:03d}" for number in range(len(made)))]
    asked = Samples(list(zip(pictures, kinds, strict=True)), ids=names)
    return Trial(preset, folder, train, asked, checkpoints)


def stores(trial: Trial) -> dict[str, tuple[Store, Store]]:
    """Rows of the training samples, and of the queries beside each.

    `replayed`: one event per sample and checkpoint. `planned`: as many timesteps as a query's.
    `square`: planned rows of ‖ε_θ‖² in place of the loss.
    """
    preset = trial.preset
    events = EventSpec(events="planned", timesteps=preset.timesteps, draws=preset.draws)
    planned = EventSpec(events="planned", timesteps=preset.timesteps)
    found = {}
    for name, own, objective in (
        ("replayed", EventSpec(), None),
        ("planned", planned, None),
        ("square", planned, "square"),
    ):
        store = collect(
            trial.train,
            trial.checkpoints,
            trial.folder / f"{name}.gradstore",
            projector=ProjectorSpec(projector="sjlt", proj_dim=preset.proj_dim),
            events=own,
            objective=objective,
        )
        place = trial.folder / f"{name}-queries.gradstore"
        found[name] = store, collect_queries(store, trial.asked, place, events=events)
    return found


def attributions(
    trial: Trial, rows: Mapping[str, tuple[Store, Store]]
) -> dict[str, NDArray[np.float32]]:
    """Scores `[queries, samples]` of every method, from the model of the whole set."""
    found = {
        measure + suffix: scores(*rows[name], measure)
        for name, suffix in (("replayed", ""), ("planned", ", planned"))
        for measure in MEASURES
    }
    found["D-TRAK"] = scores(*rows["square"], "trak")
    last = [0.0] * (len(trial.checkpoints) - 1) + [1.0]
    found["D-TRAK, last checkpoint"] = scores(*rows["square"], "trak", etas=last)
    found["raw pixels"] = _pixels(trial.asked) @ _pixels(trial.train).T
    shape = (len(trial.asked), len(trial.train))
    found["random"] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return found


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `lds.json`, `lds.md` and `lds.png` into `out`."""
    trial = prepare(preset, folders)
    halves, truth = retrained(trial)
    attributed = attributions(trial, stores(trial))
    queries = np.arange(len(trial.asked))
    groups = {"held out": queries[: preset.heldout], "generated": queries[preset.heldout :]}
    methods = {
        name: {
            group: datamodeling_score(found @ halves.T, truth, rows).json()
            for group, rows in groups.items()
        }
        for name, found in attributed.items()
    }
    ceiling = {group: noise_ceiling(truth, rows) for group, rows in groups.items()}
    removal = _removal(trial, attributed)
    heldout = {name: one["held out"] for name, one in methods.items()}
    best = max(heldout, key=lambda name: heldout[name]["mean"])
    over = {name: removal[name]["loss change over random"] for name in ("tracin", "retrac")}
    targets = [
        Target(
            "LDS of TracIn on held-out queries",
            "above 0, with its interval",
            heldout["tracin"]["mean"],
            heldout["tracin"]["low"] > 0,
        ),
        Target(
            "LDS of ReTrac on held-out queries",
            "above 0, with its interval",
            heldout["retrac"]["mean"],
            heldout["retrac"]["low"] > 0,
        ),
        Target(
            "LDS of ReTrac less TracIn's on held-out queries",
            "≥ 0: removing magnitude removes no signal",
            heldout["retrac"]["mean"] - heldout["tracin"]["mean"],
            heldout["retrac"]["mean"] >= heldout["tracin"]["mean"],
        ),
        Target(
            f"LDS of the best method ({best}) on held-out queries, over raw pixels'",
            "above",
            heldout[best]["mean"] - heldout["raw pixels"]["mean"],
            heldout[best]["low"] > heldout["raw pixels"]["mean"],
        ),
        *(
            Target(
                f"loss of a query without its proponents by {name}, over random removal",
                "above 0, with its interval",
                one["mean"],
                one["low"] > 0,
            )
            for name, one in over.items()
        ),
    ]
    inputs = {
        "preset": asdict(preset),
        "num_parameters": sum(p.numel() for p in build(preset.model).parameters()),
        "training_runs": len(list(trial.folder.glob("*-*/epoch-*"))) - len(trial.checkpoints) + 1,
    }
    figures = {"lds": methods, "noise_ceiling": ceiling, "removal": removal}
    page = _page(inputs, figures, targets)
    save(out, "lds", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "lds.png", figures)
    return targets


def datamodeling_score(
    predicted: NDArray[Any], truth: NDArray[np.float64], rows: NDArray[np.int64]
) -> Interval:
    """Spearman between predicted and true loss over subsets, mean over queries.

    The interval resamples subsets and queries both: all queries share the same few subsets.

    Args:
        predicted: sums of influence `[queries, subsets]`; positive lowers the loss.
        truth: losses `[seeds, queries, subsets]`.
        rows: the queries that count.
    """
    left, right = predicted[rows], -truth.mean(axis=0)[rows]
    generator = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        columns = generator.integers(0, left.shape[1], left.shape[1])
        picks = generator.integers(0, len(rows), len(rows))
        found = rank_correlation(left[np.ix_(picks, columns)], right[np.ix_(picks, columns)])
        means.append(float(np.nanmean(found)) if not np.isnan(found).all() else 0.0)
    low, high = np.quantile(means, [0.025, 0.975])
    mean = float(np.mean(rank_correlation(left, right)))
    return Interval(mean, float(low), float(high), len(rows))


def noise_ceiling(truth: NDArray[np.float64], rows: NDArray[np.int64]) -> dict[str, float]:
    """How well any method could do, for the losses depend on the training seed as well.

    Returns:
        `between seeds`: Spearman over subsets of one seed's losses with another's. `of the mean`:
        that of the mean over seeds with another such mean (Spearman and Brown). `ceiling`: its
        root, the correlation of the mean over seeds with what it would be over very many.
    """
    seeds = len(truth)
    pairs = [
        np.mean(rank_correlation(truth[i][rows], truth[j][rows]))
        for i in range(seeds)
        for j in range(i)
    ]
    between = float(np.mean(pairs))
    mean = seeds * between / (1 + (seeds - 1) * between)
    return {"between seeds": between, "of the mean": mean, "ceiling": float(max(mean, 0.0) ** 0.5)}


def retrained(trial: Trial) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Members of the halves `[subsets, samples]`, and losses `[seeds, queries, subsets]`."""
    preset, generator = trial.preset, np.random.default_rng(0)
    count = len(trial.train)
    halves = np.zeros((preset.subsets, count), np.float32)
    losses = np.empty((preset.seeds, len(trial.asked), preset.subsets))
    for subset in track(range(preset.subsets), "retraining on halves", "halves"):
        rows = np.sort(generator.permutation(count)[: count // 2])
        halves[subset, rows] = 1
        ids = [trial.train.ids[row] for row in rows]
        for seed in range(preset.seeds):
            checkpoint = trial.fit(f"half-{subset:03d}-{seed}", ids, seed)[-1]
            losses[seed, :, subset] = trial.losses(checkpoint)
    return halves, losses


def _removal(trial: Trial, attributed: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """What leaving out proponents of generated images does to their loss, and to the images."""
    preset = trial.preset
    every = set(range(len(trial.train)))
    queries = list(range(preset.heldout, preset.heldout + preset.removals))
    generator = np.random.default_rng(1)
    chosen = [
        generator.permutation(len(trial.train))[: preset.removed].tolist()
        for _ in range(preset.random_removals)
    ]
    whole = [trial.fit(f"whole-{seed}", trial.train.ids, seed)[-1] for seed in range(preset.seeds)]
    before = [(trial.losses(folder), _drawn(folder, preset)) for folder in whole]

    def without(rows: Sequence[int], name: str) -> NDArray[np.float64]:
        """Changes without some samples: of loss and of image `[2, seeds, removal queries]`."""
        ids = [trial.train.ids[row] for row in sorted(every - set(rows))]
        changes = np.empty((2, preset.seeds, len(queries)))
        for seed, (loss, images) in enumerate(before):
            folder = trial.fit(f"{name}-{seed}", ids, seed)[-1]
            moved = ((_drawn(folder, preset) - images) ** 2).mean(axis=(1, 2)) ** 0.5
            changes[0, seed] = (trial.losses(folder) - loss)[queries]
            changes[1, seed] = moved[: len(queries)]
        return changes

    # An image changes with the training seed alone, whatever is removed.
    reseeded = ((before[0][1] - before[-1][1]) ** 2).mean(axis=(1, 2)) ** 0.5
    found = {"random": np.mean([without(rows, f"random-{n}") for n, rows in enumerate(chosen)], 0)}
    for method in REMOVED_BY:
        name = method.replace(",", "").replace(" ", "-")
        ranked = top(attributed[method][queries], preset.removed)
        runs = [
            without(rows.tolist(), f"{name}-{query}")[:, :, place]
            for place, (query, rows) in enumerate(zip(queries, ranked, strict=True))
        ]
        found[method] = np.stack(runs, axis=2)
    figures = {
        name: {
            "loss change": interval(changes[0]).json(),
            "image change": interval(changes[1]).json(),
        }
        for name, changes in found.items()
    }
    # Every query has its own random sets as comparison.
    for name in REMOVED_BY:
        figures[name]["loss change over random"] = interval(
            found[name][0] - found["random"][0]
        ).json()
    return {**figures, "another seed": {"image change": interval(reseeded[: len(queries)]).json()}}


def _drawn(checkpoint: Path, preset: Preset) -> NDArray[np.float32]:
    """The images that a model draws from the noise of the queries, grey, in 0 … 1."""
    file = checkpoint / "drawn.npy"
    if not file.exists():
        made = generate(checkpoint, preset.generated, seed=0)
        np.save(
            file, np.stack([np.asarray(image.convert("L"), np.float32) / 255 for image in made])
        )
    found: NDArray[np.float32] = np.load(file)
    return found


def _losses(checkpoint: Path, asked: Samples, judged: tuple[int, int]) -> NDArray[np.float64]:
    """Mean loss of each query over a grid of timesteps and noises, float64 `[queries]`."""
    loaded, device = load(checkpoint), choose(None)
    objective = DiffusionLoss(loaded.scheduler, "l1")
    spec = EventSpec(events="planned", timesteps=judged[0], draws=judged[1], event_seed=1)
    events = PlannedEvents(spec, objective.num_train_timesteps, "query").at(0, asked.ids)
    model = loaded.model.to(device)
    found = []
    with torch.inference_mode():
        for row in range(len(asked)):
            image = asked[row].tensor
            noises = [noise(key, image.shape) for key in events.key[row].ravel().tolist()]
            timesteps = torch.from_numpy(events.timestep[row]).repeat_interleave(judged[1])
            losses = objective.losses(
                model,
                image.expand(len(noises), *image.shape).to(device),
                timesteps.to(device),
                torch.from_numpy(np.stack(noises)).to(device),
                {},
            )
            found.append(float(losses.double().mean()))
    return np.array(found)


def _pixels(samples: Samples) -> NDArray[np.float32]:
    """Images as vectors of length 1, `[samples, pixels]`."""
    flat = np.stack([samples[row].tensor.numpy().ravel() for row in range(len(samples))])
    unit: NDArray[np.float32] = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return unit


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    preset = inputs["preset"]
    ceiling = figures["noise_ceiling"]
    lines = [
        "# Does a measure foretell what a model trained on other samples would do?",
        "",
        (
            f"`python -m benchmarks.lds`; {preset['samples']:,} of {preset['dataset']}, a UNet of "
            f"{inputs['num_parameters']:,} parameters, {preset['epochs']} epochs; "
            f"{preset['subsets']} random halves × {preset['seeds']} training seeds, "
            f"{inputs['training_runs']} training runs in all; {preset['heldout']} held-out and "
            f"{preset['generated']} generated queries at {preset['timesteps']} timesteps × "
            f"{preset['draws']} noises, true losses at {preset['judged'][0]} × "
            f"{preset['judged'][1]}; sjlt to {preset['proj_dim']:,}; {machine()['cpu']}. "
            "`planned`: training rows at as many timesteps in place of the one that was replayed. "
            "D-TRAK: ‖ε_θ‖² in place of the loss, planned. 95% intervals resample queries and "
            "halves; attributions are of one model of the whole set, not of an ensemble."
        ),
        "",
        "| method | LDS, held out | LDS, generated |",
        "|---|---|---|",
        *[
            f"| {cell(name)} | {text(one['held out'])} | {text(one['generated'])} |"
            for name, one in figures["lds"].items()
        ],
        (
            f"| two seeds of the same halves | {ceiling['held out']['between seeds']:.3f} | "
            f"{ceiling['generated']['between seeds']:.3f} |"
        ),
        (
            f"| ceiling for any method | {ceiling['held out']['ceiling']:.3f} | "
            f"{ceiling['generated']['ceiling']:.3f} |"
        ),
        "",
        "## Removal",
        "",
        (
            f"Models trained without the first {preset['removed']} proponents of each of "
            f"{preset['removals']} generated images, × {preset['seeds']} seeds; at random: "
            f"{preset['random_removals']} sets. The image is drawn again from the same noise; its "
            "change is the root mean square over pixels in 0 … 1. Intervals over queries."
        ),
        "",
        "| left out by | change of the loss | over random | change of the image |",
        "|---|---|---|---|",
    ]
    for name, one in figures["removal"].items():
        cells = [
            text(one[key], 4) if key in one else ""
            for key in ("loss change", "loss change over random", "image change")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", target_table(targets), "", notes("lds")]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any]) -> None:
    figure, axes = canvas(1, 2, height=4.5)
    names = list(figures["lds"])
    for one, group in zip(axes[0], ("held out", "generated"), strict=True):
        bars(one, names, [figures["lds"][name][group] for name in names])
        one.axvline(figures["noise_ceiling"][group]["ceiling"], color="grey", linestyle=":")
        one.set(title=f"LDS, {group} (dotted: ceiling)", xlabel="Spearman over halves")
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
