"""What do the alternatives to gradstore cost, and do their scores agree?

Compares gradstore, captum's `TracInCP`, dattri's attributors, TRAK's `TRAKer` and a plain loop on
one model with the same events. TracIn's scores are then the same numbers, TRAK's the same matrix.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.contestants.captum import Captum
from benchmarks.contestants.dattri import DATTRI_DIM, DattriTracIn, DattriTrak
from benchmarks.contestants.ours import Gradstore, Plain
from benchmarks.contestants.protocol import (
    TRACIN,
    TRAK,
    Asked,
    Contestant,
    Kernel,
    Trial,
    gradients,
)
from benchmarks.contestants.traker import Traker
from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import (
    Target,
    interleaved,
    machine,
    notes,
    save,
    spread,
    target_table,
)
from benchmarks.worlds.denoiser import event_tensors
from benchmarks.worlds.models import build
from benchmarks.worlds.setting import Folders, command, digest, train_and_heldout
from benchmarks.worlds.training import fit
from gradstore.collect import EventSpec, PlannedEvents, ReplayedEvents, Samples
from indexer import build_index
from query import search
from query.evaluation.figures import top
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

_TIMESTEPS: Final = 1000  # of the models' training schedule
_PIECE: Final = 1 << 16
_K: Final = 10
PACKAGES: Final = ("traker", "dattri", "captum")


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        dataset: `digits`, or `cifar2`: CIFAR-10's automobiles and horses.
        model: of `benchmarks.worlds.models`.
        samples: training samples.
        queries: number of held-out samples in a batch of queries; there are two batches.
        epochs: training epochs.
        checkpoint_every: epochs between checkpoints.
        batch_size: samples per step.
        learning_rate: Adam's.
        timesteps: timesteps of each query, with one noise each.
        proj_dim: dimension of projections; 2,048 is `TRAKer`'s default.
        batch: number of training gradients that a peer holds at once.
        few: the same for captum.
        repeats: how often the second batch is queried.
    """

    dataset: str
    model: str
    samples: int
    queries: int
    epochs: int
    checkpoint_every: int
    batch_size: int
    learning_rate: float
    timesteps: int
    proj_dim: int
    batch: int
    few: int
    repeats: int


PRESETS = {
    "cpu": Preset(
        dataset="digits",
        model="digits",
        samples=400,
        queries=20,
        epochs=80,
        checkpoint_every=20,
        batch_size=32,
        learning_rate=1e-3,
        timesteps=10,
        proj_dim=2048,
        batch=400,
        few=8,
        repeats=2,
    ),
    "paper": Preset(
        dataset="cifar2",
        model="small",
        samples=1000,
        queries=50,
        epochs=100,
        checkpoint_every=25,
        batch_size=32,
        learning_rate=1e-4,
        timesteps=10,
        proj_dim=2048,
        batch=500,
        few=8,
        repeats=3,
    ),
    "tiny": Preset(
        dataset="digits",
        model="digits",
        samples=12,
        queries=3,
        epochs=2,
        checkpoint_every=1,
        batch_size=4,
        learning_rate=1e-3,
        timesteps=2,
        proj_dim=64,
        batch=8,
        few=5,
        repeats=1,
    ),
}


@dataclass(frozen=True)
class Exact:
    """Inner products of whole gradients at each checkpoint, the reference for all contestants.

    Attributes:
        etas: weights of the checkpoints.
        cross: between queries and training samples, float64 `[checkpoints, queries, samples]`.
        grams: among training samples, float64 `[checkpoints, samples, samples]`.
    """

    etas: Sequence[float]
    cross: NDArray[np.float64]
    grams: NDArray[np.float64]

    @classmethod
    def of(cls, trial: Trial, batches: Sequence[Asked]) -> Exact:
        """From one backward pass per sample and checkpoint, with float64 sums."""
        model = trial.denoiser()
        cross, grams = [], []
        for checkpoint in range(len(trial.etas)):
            model.load(checkpoint)
            asked = [row for one in batches for row in gradients(model, one.events)]
            left, right = torch.stack(asked), torch.stack(list(gradients(model, trial.training)))
            products = torch.zeros(
                len(left) + len(right), len(right), dtype=torch.float64, device=left.device
            )
            for start in range(0, left.shape[1], _PIECE):
                piece = slice(start, start + _PIECE)
                trained = right[:, piece].double()
                products += torch.cat([left[:, piece].double(), trained]) @ trained.T
            cross.append(products[: len(left)].cpu().numpy())
            grams.append(products[len(left) :].cpu().numpy())
        return cls(trial.etas, np.stack(cross), np.stack(grams))

    def tracin(self) -> NDArray[np.float64]:
        """Scores `[queries, samples]`."""
        found: NDArray[np.float64] = np.tensordot(self.etas, self.cross, axes=1)
        return found

    def trak(self, kernel: Kernel) -> NDArray[np.float64]:
        """TRAK's scores, `[queries, samples]`, without a projection.

        `(ΦᵀΦ + λI)⁻¹ Φᵀ = Φᵀ (ΦΦᵀ + λI)⁻¹`: a matrix as large as the training set is enough.
        """
        total = np.zeros(self.cross.shape[1:])
        for weight, ridge, cross, gram in zip(
            kernel.weights, kernel.lambdas, self.cross, self.grams, strict=True
        ):
            total += weight * np.linalg.solve(gram + ridge * np.eye(len(gram)), cross.T).T
        return total

    def ridge(self, proj_dim: int) -> float:
        """λ by gradstore's rule, averaged over checkpoints for peers that take a single λ.

        A projected ΦᵀΦ has at most min(dim, samples) eigenvalues other than zero, of sum Σ‖g‖².
        """
        total = float(np.trace(self.grams, axis1=1, axis2=2).mean())
        return total / min(proj_dim, len(self.grams[0]))


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `peers.json`, `.md` and `.png` into `out`."""
    train, heldout, checkpoints = trained(preset, folders)
    with tempfile.TemporaryDirectory(dir=checkpoints[0].parent) as folder:
        trial = trial_of(preset, train, checkpoints, Path(folder))
        batches = asked_of(preset, heldout, checkpoints)
        exact = Exact.of(trial, batches)
        contestants = contestants_of(trial, exact.ridge(preset.proj_dim))
        costs, found = _costs(contestants, batches, preset.repeats)
        agreement = {
            one.name: _agreement(found[one.name], expected(exact, one)) for one in contestants
        }
        searches = _searches(contestants, batches[1], preset.repeats)
    names = [one.name for one in contestants]
    pairs = [[float(rank_correlation(found[a], found[b]).mean()) for b in names] for a in names]
    for one in contestants:
        costs[one.name] |= {"measure": one.measure, "computes": one.computes, "where": one.where}
    targets = _targets(costs, agreement, preset)
    inputs = {
        "preset": asdict(preset),
        "num_parameters": sum(p.numel() for p in build(preset.model).parameters()),
        "checkpoints": len(checkpoints),
        "etas": list(trial.etas),
        "ridge": exact.ridge(preset.proj_dim),
        "versions": {name: version(name) for name in PACKAGES},
    }
    figures = {
        "costs": costs,
        "agreement": agreement,
        "spearman of each with each": pairs,
        "search": searches,
    }
    page = _page(inputs, figures, targets)
    save(out, "peers", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "peers.png", figures)
    return targets


def trained(preset: Preset, folders: Folders) -> tuple[Samples, Samples, list[Path]]:
    """Training samples, queries, and a model's checkpoints, cached by a hash of their inputs."""
    train, heldout = train_and_heldout(preset.dataset, preset.samples, 2 * preset.queries, folders)
    made = {name: getattr(preset, name) for name in ("dataset", "model", "samples")}
    options = {
        name: getattr(preset, name)
        for name in ("epochs", "checkpoint_every", "batch_size", "learning_rate")
    }
    key = digest(made, options, train.manifest.digests)
    folder = folders.cache / f"peers-{preset.dataset}-{key}" / "checkpoints"
    return train, heldout, fit(partial(build, preset.model), train, folder, seed=0, **options)


def trial_of(preset: Preset, train: Samples, checkpoints: list[Path], folder: Path) -> Trial:
    """The inputs of all contestants."""
    visits = preset.checkpoint_every  # of each sample since the previous checkpoint
    return Trial(
        folder=folder,
        checkpoints=checkpoints,
        etas=[preset.learning_rate * visits] * len(checkpoints),
        train=train,
        training=event_tensors(
            _images(train), ReplayedEvents(checkpoints, _TIMESTEPS), train.ids, checkpoints
        ),
        timesteps=preset.timesteps,
        proj_dim=preset.proj_dim,
        batch=preset.batch,
        few=preset.few,
    )


def asked_of(preset: Preset, heldout: Samples, checkpoints: list[Path]) -> list[Asked]:
    """Two batches of queries."""
    spec = EventSpec(events="planned", timesteps=preset.timesteps)
    plan = PlannedEvents(spec, _TIMESTEPS, "query")
    batches = []
    for name, start in (("first", 0), ("another", preset.queries)):
        samples = heldout.only(heldout.ids[start : start + preset.queries])
        events = event_tensors(_images(samples), plan, samples.ids, checkpoints)
        batches.append(Asked(name, samples, events))
    return batches


def contestants_of(trial: Trial, ridge: float) -> list[Contestant]:
    """All contestants, in the order of the page."""
    return [
        Plain(trial),
        Captum(trial),
        DattriTracIn(trial),
        DattriTracIn(trial, min(DATTRI_DIM, trial.proj_dim)),
        Gradstore(trial, "identity"),
        Gradstore(trial, "sjlt"),
        Gradstore(trial, "trak"),
        Traker(trial, ridge),
        DattriTrak(trial, ridge),
        Gradstore(trial, "sjlt", TRAK),
        Gradstore(trial, "trak", TRAK),
    ]


def expected(exact: Exact, one: Contestant) -> NDArray[np.float64]:
    """The reference scores of a contestant."""
    kernel = one.kernel()
    return exact.tracin() if kernel is None else exact.trak(kernel)


def _costs(
    contestants: Sequence[Contestant], batches: Sequence[Asked], repeats: int
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray[np.float32]]]:
    """Seconds and bytes of each contestant, and its scores `[queries, samples]`."""
    costs: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[NDArray[np.float32]]] = {}
    for one in contestants:
        own = costs[one.name] = {}
        for step in ("set_up", "collect"):
            start = perf_counter()
            getattr(one, step)()
            own[step] = perf_counter() - start
        own["bytes"] = one.nbytes()
        start = perf_counter()
        scores[one.name] = [one.ask(batches[0])]
        own["first"] = perf_counter() - start
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    for number in range(repeats):  # in turns: other load affects all equally
        for one in contestants:
            asked = Asked(f"another-{number}", batches[1].samples, batches[1].events)
            start = perf_counter()
            found = one.ask(asked)
            seconds[one.name].append(perf_counter() - start)
            if number == 0:
                scores[one.name].append(found)
    for name, values in seconds.items():
        costs[name]["another"] = spread(values)
    return costs, {name: np.concatenate(found) for name, found in scores.items()}


def _agreement(found: NDArray[np.float32], exact: NDArray[np.float64]) -> dict[str, Any]:
    """Agreement of a contestant's scores with the reference."""
    k = min(_K, exact.shape[1] - 1)
    wanted, own = top(exact.astype(np.float32), k), top(found, k)
    pearson = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, exact, strict=True)]
    size = np.abs(exact).max(axis=1)
    return {
        "spearman": interval(rank_correlation(found, exact)).json(),
        "pearson": interval(pearson).json(),
        "overlap": interval(
            [len(set(a) & set(b)) / k for a, b in zip(own, wanted, strict=True)]
        ).json(),
        "deviation": float((np.abs(found - exact).max(axis=1) / size).max()),
    }


def _searches(
    contestants: Sequence[Contestant], asked: Asked, repeats: int
) -> dict[str, dict[str, Any]]:
    """Time of gradstore's search alone, by the exact engine and by an index."""
    figures = {}
    for one in contestants:
        if not isinstance(one, Gradstore) or one.measure != TRACIN or one.name.endswith("identity"):
            continue
        queries = one.rows(asked, "searched")
        start = perf_counter()
        index = build_index(one.store, "tracin")
        built = perf_counter() - start
        k = min(_K, one.store.samples)
        exact = search(one.engine, queries, k).proponents.samples
        found = index.approximate(index.features.range(queries), k)[0].samples
        jobs: dict[str, Callable[[], object]] = {
            "exact": partial(search, one.engine, queries, k),
            "index": partial(index.approximate, index.features.range(queries), k),
        }
        figures[one.name] = {
            "build": built,
            "bytes": index.nbytes,
            "recall": float(
                np.mean([len(set(a) & set(b)) / k for a, b in zip(found, exact, strict=True)])
            ),
            "seconds": interleaved(jobs, max(3, repeats)),
        }
    return figures


def _targets(
    costs: Mapping[str, Mapping[str, Any]], agreement: Mapping[str, Any], preset: Preset
) -> list[Target]:
    exact = ("captum, TracInCP", "dattri, TracIn", "gradstore, identity")
    own, own_trak = "gradstore, sjlt", "gradstore, trak, measure trak"
    another = {name: one["another"]["median"] for name, one in costs.items()}
    apart = max(agreement[name]["deviation"] for name in exact)
    spearman = {name: one["spearman"]["mean"] for name, one in agreement.items()}
    targets = [
        Target(
            "largest deviation from exact TracIn of captum, dattri and gradstore's identity",
            "≤ 0.001 of a query's largest score: they compute one thing",
            apart,
            apart <= 1e-3,
        ),
        *(
            Target(
                f"Spearman of gradstore's {projector} at {preset.proj_dim:,} with exact TracIn",
                "≥ 0.95",
                spearman[f"gradstore, {projector}"],
                spearman[f"gradstore, {projector}"] >= 0.95,
            )
            for projector in ("sjlt", "trak")
        ),
    ]
    for name in exact[:2]:
        ratio = another[name] / another[own]
        targets.append(
            Target(f"another batch of queries, {name} / {own}", "≥ 5 times", ratio, ratio >= 5)
        )
    for name in ("TRAKer", "dattri, TRAK"):
        ratio = another[name] / another[own_trak]
        targets.append(
            Target(f"another batch of queries, {name} / {own_trak}", "≥ 1 times", ratio, ratio >= 1)
        )
    ratio = costs["TRAKer"]["collect"] / costs[own_trak]["collect"]
    targets.append(Target(f"collecting, TRAKer / {own_trak}", "≥ 1 times", ratio, ratio >= 1))
    gap = spearman[own_trak] - spearman["TRAKer"]
    targets.append(
        Target(f"Spearman with exact TRAK, {own_trak} less TRAKer", "≥ −0.02", gap, gap >= -0.02)
    )
    stored = costs["TRAKer"]["bytes"] / costs["gradstore, trak"]["bytes"]
    targets.append(Target("bytes, TRAKer / gradstore, trak", "≥ 1.5 times", stored, stored >= 1.5))
    return targets


def _images(samples: Samples) -> torch.Tensor:
    return torch.stack([samples[row].tensor for row in range(len(samples))])


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    preset, costs, agreement = inputs["preset"], figures["costs"], figures["agreement"]
    versions = ", ".join(f"{name} {number}" for name, number in inputs["versions"].items())
    lines = [
        "# What do the alternatives to gradstore cost, and do their scores agree?",
        "",
        (
            f"`python -m benchmarks.peers`; {preset['samples']:,} of {preset['dataset']}, a UNet "
            f"of {inputs['num_parameters']:,} parameters, {preset['epochs']} epochs, "
            f"{inputs['checkpoints']} checkpoints, L1 loss, replayed events; two batches of "
            f"{preset['queries']} held-out queries at {preset['timesteps']} timesteps × 1 noise; "
            f"{versions}; {machine()['cpu']}, {machine()['threads']} threads."
        ),
        "",
        (
            "All have the same weights η, timesteps and noises, and the gradient of the same loss. "
            "`TracIn`: Σ_k η_k of inner products of a query's mean gradient with a training "
            "sample's. `TRAK`: Σ_k w_k φ(z')ᵀ (ΦᵀΦ + λI)⁻¹ φ(z), of the same gradients: the output "
            "function is the loss, so its weighting by the loss's derivative is 1. gradstore "
            f"chooses λ at each checkpoint; the others take one λ, the mean. Projections have "
            f"{preset['proj_dim']:,} dimensions unless another number is given."
        ),
        "",
        "| contestant | method |",
        "|---|---|",
        *[f"| {name} | {one['measure']}: {one['computes']} |" for name, one in costs.items()],
        "",
        "## Time and bytes",
        "",
        (
            f"Seconds. Set-up: models and objects. Collect: all work that needs no query. "
            f"First queries: {preset['queries']}; other queries: median of {preset['repeats']} "
            "turns with lowest and highest. Contestants without stored training gradients "
            "recompute them. All but gradstore receive prepared noisy inputs. Set-up, collect and "
            f"the first queries were timed once. Peers take {preset['batch']:,} training samples "
            f"at once, captum {preset['few']} (its backward passes run through the whole batch). "
            "Bytes: data kept for the next query, without models and projection matrices."
        ),
        "",
        "| contestant | set-up | collect | first queries | other queries | bytes kept |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in costs.items():
        again = one["another"]
        other = f"{again['median']:.2f} ({again['low']:.2f} … {again['high']:.2f})"
        kept = f"{one['bytes'] / 1e6:,.1f} MB, {one['where']}" if one["where"] else "none"
        lines.append(
            f"| {name} | {one['set_up']:.2f} | {one['collect']:.2f} | {one['first']:.2f} | "
            f"{other} | {kept} |"
        )
    lines += [
        "",
        "The search alone in gradstore's other queries, for the first ten:",
        "",
        "| store | exact engine | index | index built in | its bytes | recall@10 of the index |",
        "|---|---|---|---|---|---|",
        *[
            f"| {name} | {one['seconds']['exact']['median'] * 1e3:.1f} ms | "
            f"{one['seconds']['index']['median'] * 1e3:.1f} ms | {one['build']:.2f} s | "
            f"{one['bytes'] / 1e3:,.0f} kB | {one['recall']:.2f} |"
            for name, one in figures["search"].items()
        ],
        "",
        "## Agreement",
        "",
        (
            "With the same formula on whole gradients (one backward pass each, float64 sums); "
            "TRAK with each contestant's own λ_k and w_k, by a matrix as large as the training "
            f"set. Means over {2 * preset['queries']} queries with 95% bootstrap intervals; "
            "deviation: the largest of all, relative to the query's largest score."
        ),
    ]
    for measure in (TRACIN, TRAK):
        lines += [
            "",
            f"| {measure} | Spearman | Pearson | overlap of the first ten | deviation |",
            "|---|---|---|---|---|",
        ]
        for name, one in agreement.items():
            if costs[name]["measure"] == measure:
                cells = [text(one["spearman"], 4), text(one["pearson"], 4), text(one["overlap"], 2)]
                lines.append(f"| {name} | {' | '.join(cells)} | {one['deviation']:.1e} |")
    lines += [
        "",
        target_table(targets),
        "",
        "![Seconds by batches of queries, and Spearman of each with each](peers.png)",
        "",
        notes("peers"),
    ]
    return "\n".join(lines)


def _plot(path: Path, figures: dict[str, Any]) -> None:
    costs = figures["costs"]
    names = list(costs)
    figure, axes = canvas(1, 2, width=13, height=6)
    batches = np.arange(0, 51)
    for number, (name, one) in enumerate(costs.items()):
        spent = one["set_up"] + one["collect"] + batches * one["another"]["median"]
        style = "-" if name.startswith("gradstore") else "--"
        axes[0, 0].plot(batches, spent, style, color=f"C{number}", label=name)
    axes[0, 0].set(
        title="seconds by number of batches of queries",
        xlabel="batches",
        ylabel="seconds",
        yscale="log",
    )
    axes[0, 0].legend(fontsize=7)
    pairs = np.array(figures["spearman of each with each"])
    axes[0, 1].imshow(pairs, vmin=0, vmax=1, cmap="viridis")
    for row, values in enumerate(pairs):
        for column, value in enumerate(values):
            colour = "white" if value < 0.6 else "black"
            axes[0, 1].text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour
            )
    places = range(len(names))
    axes[0, 1].set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    axes[0, 1].set_yticks(places, names, fontsize=7)
    axes[0, 1].set_title("Spearman of each with each, mean over queries")
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
