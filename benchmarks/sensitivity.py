"""Does gradstore work for data other than images, and how unusual must a row be to be found?

Trains a diffusion model of a table, scikit-learn's breast cancer measurements, through the same
public API. The training set contains planted copies of some rows, from exact to noisy, and planted
outliers, from mild to gross. Measures how many copies are proponents of their originals, and how
many outliers are found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from diffusers import UNet1DModel

from benchmarks.harness.plots import band, canvas, keep
from benchmarks.harness.results import Target, machine, notes, save, target_table
from benchmarks.worlds.setting import METRICS, Folders, command, digest
from benchmarks.worlds.training import fit
from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect
from query import collect_queries
from query.evaluation.figures import distinctness, top
from query.evaluation.methods import own_influence, scores
from query.statistics import interval, rank_correlation, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

# Measures of replayed rows, as in the paper; then of rows at a query's timesteps, in a metric.
MEASURES: Final = (
    *("tracin", "power:0.5", "clip:0.5", "calibrated", "retrac", "trak"),
    *(f"{measure}, {metric}" for metric in METRICS for measure in ("tracin", "retrac", "trak")),
)
DETECTORS: Final = tuple(name for name in MEASURES if not name.startswith("trak"))
NEAREST: Final = "nearest row"
_WIDTH: Final = 32  # 30 columns and two zeros, because a UNet halves its input


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        rows: rows of the table in the training set.
        heldout: other rows, used as queries.
        copied: number of copies planted with each strength of noise.
        copies: standard deviations of the noise added to a copy.
        outlying: number of outliers planted with each strength of displacement.
        outliers: standard deviations by which every column is moved, up or down at random.
        epochs: training epochs.
        checkpoint_every: epochs between checkpoints.
        proj_dim: dimension of the rows, by sjlt.
        timesteps: per query.
        draws: noises averaged at each timestep.
        seeds: seeds of the training runs.
        k: number of proponents to analyse.
    """

    rows: int
    heldout: int
    copied: int
    copies: tuple[float, ...]
    outlying: int
    outliers: tuple[float, ...]
    epochs: int
    checkpoint_every: int
    proj_dim: int
    timesteps: int
    draws: int
    seeds: tuple[int, ...]
    k: int


PRESETS = {
    "cpu": Preset(
        rows=400,
        heldout=100,
        copied=10,
        copies=(0.0, 0.1, 0.3, 1.0),
        outlying=10,
        outliers=(0.5, 1.0, 2.0, 4.0),
        epochs=100,
        checkpoint_every=20,
        proj_dim=4096,
        timesteps=10,
        draws=4,
        seeds=(0, 1, 2),
        k=10,
    ),
    "paper": Preset(
        rows=400,
        heldout=100,
        copied=20,
        copies=(0.0, 0.1, 0.3, 1.0),
        outlying=20,
        outliers=(0.5, 1.0, 2.0, 4.0),
        epochs=500,
        checkpoint_every=50,
        proj_dim=16384,
        timesteps=50,
        draws=16,
        seeds=(0, 1, 2, 3, 4),
        k=10,
    ),
    "tiny": Preset(
        rows=30,
        heldout=4,
        copied=2,
        copies=(0.0, 1.0),
        outlying=2,
        outliers=(1.0, 4.0),
        epochs=2,
        checkpoint_every=1,
        proj_dim=128,
        timesteps=3,
        draws=2,
        seeds=(0, 1),
        k=3,
    ),
}


@dataclass(frozen=True)
class Table:
    """The planted training set, and the queries.

    Attributes:
        values: training rows, float32 `[samples, 32]`.
        labels: `malignant` or `benign`, for every training row.
        strange: strength of each outlier; 0 for ordinary rows, `[samples]`.
        copy_of: index of each planted copy's original; −1 for others, `[samples]`.
        noisy: strength of each copy's noise; −1 for others, `[samples]`.
        asked: held-out rows.
        asked_labels: their labels.
    """

    values: NDArray[np.float32]
    labels: list[str]
    strange: NDArray[np.float64]
    copy_of: NDArray[np.int64]
    noisy: NDArray[np.float64]
    asked: NDArray[np.float32]
    asked_labels: list[str]

    def train(self) -> Samples:
        """The training rows as `Samples`, `[1, 32]` each."""
        return _samples(self.values, self.labels, "row")

    def query_values(self) -> NDArray[np.float32]:
        """Held-out rows, then the originals of the copies, in the order of the copies."""
        return np.concatenate([self.asked, self.values[self.copy_of[self.copy_of >= 0]]])

    def queries(self) -> Samples:
        """`query_values` as `Samples`."""
        originals = self.copy_of[self.copy_of >= 0]
        labels = [*self.asked_labels, *[self.labels[row] for row in originals]]
        return _samples(self.query_values(), labels, "query")


def planted(preset: Preset) -> Table:
    """The standardised, shuffled table, with copies and outliers after its own rows."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(bunch.data))
    data, kinds = bunch.data[order], bunch.target_names[bunch.target[order]].tolist()
    own = data[: preset.rows]
    data = ((data - own.mean(axis=0)) / own.std(axis=0)).astype(np.float32)
    generator = np.random.default_rng(1)
    copies, strange = len(preset.copies) * preset.copied, len(preset.outliers) * preset.outlying
    chosen = generator.permutation(preset.rows)[: copies + strange]
    noisy = np.repeat(preset.copies, preset.copied)
    moved = np.repeat(preset.outliers, preset.outlying)
    added = data[chosen]
    added[:copies] += noisy[:, None] * generator.normal(size=added[:copies].shape)
    added[copies:] += moved[:, None] * generator.choice([-1, 1], added[copies:].shape)
    stop = preset.rows + preset.heldout
    none = np.full(preset.rows, -1)
    return Table(
        values=_padded(np.concatenate([data[: preset.rows], added])),
        labels=kinds[: preset.rows] + [kinds[row] for row in chosen],
        strange=np.concatenate([np.zeros(preset.rows + copies), moved]),
        copy_of=np.concatenate([none, chosen[:copies], np.full(strange, -1)]),
        noisy=np.concatenate([none, noisy, np.full(strange, -1)]),
        asked=_padded(data[preset.rows : stop]),
        asked_labels=kinds[preset.rows : stop],
    )


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `sensitivity.json`, `.md` and `.png` into `out`."""
    table = planted(preset)
    rows = [_rows(preset, table, folders, seed) for seed in preset.seeds]
    methods = {}
    for name in MEASURES:
        measure, _, metric = name.partition(", ")
        methods[name] = [scores(*one[metric], measure) for one in rows]
    ordinary, given = np.array(table.asked_labels), np.array(table.labels)
    away = ((table.query_values()[:, None] - table.values[None]) ** 2).sum(axis=2)
    methods[NEAREST] = [-away.astype(np.float32)]
    asked: dict[str, Any] = {name: _asked(preset, table, found) for name, found in methods.items()}
    asked["chance"] = float(np.mean([np.mean(given == label) for label in ordinary]))
    asked["chance of outliers"] = float((table.strange > 0).mean())
    detectors = {}
    for name in DETECTORS:
        measure, _, metric = name.partition(", ")
        own = [own_influence(one[metric][0], measure) for one in rows]
        detectors[f"self-influence, {name}"] = own
    stores = [one[""][0] for one in rows]
    detectors["mean loss of the rows"] = [
        np.mean([store.column("loss", place)[:, 0] for place in range(store.checkpoints)], axis=0)
        for store in stores
    ]
    detectors["distance from the mean"] = [np.linalg.norm(table.values, axis=1)]
    found = {name: _detected(preset, table, values) for name, values in detectors.items()}
    bias = [
        [
            float(rank_correlation(*(store.column(c, k)[:, 0] for c in ("norm", "timestep")))[0])
            for k in range(store.checkpoints)
        ]
        for store in stores
    ]
    exact, gross = f"{preset.copies[0]:g}", f"{preset.outliers[-1]:g}"
    tracin, retrac = asked["tracin"], asked["retrac"]
    targets = [
        *(
            Target(
                f"exact copies among the first {preset.k} proponents of their originals, {name}",
                "≥ 0.95",
                asked[name]["copies"][exact]["mean"],
                asked[name]["copies"][exact]["mean"] >= 0.95,
            )
            for name in ("tracin", "retrac", "tracin, kfac", "retrac, kfac")
        ),
        *(
            Target(
                f"AUROC of self-influence for outliers by {gross} standard deviations, {name}",
                "≥ 0.95",
                found[f"self-influence, {name}"][gross]["mean"],
                found[f"self-influence, {name}"][gross]["mean"] >= 0.95,
            )
            for name in ("tracin", "tracin, kfac", "retrac, kfac")
        ),
        Target(
            "outliers among the proponents of held-out rows, ReTrac less TracIn",
            "< 0",
            retrac["outliers"]["mean"] - tracin["outliers"]["mean"],
            retrac["outliers"]["mean"] < tracin["outliers"]["mean"],
        ),
        Target(
            "share of the query's diagnosis among proponents, ReTrac less chance",
            "> 0, interval included",
            retrac["label"]["mean"] - asked["chance"],
            retrac["label"]["low"] > asked["chance"],
        ),
        Target(
            "Spearman of norm with timestep at the last checkpoint",
            "> 0, every seed: as for images",
            float(np.mean([one[-1] for one in bias])),
            all(one[-1] > 0 for one in bias),
        ),
    ]
    inputs = {"preset": asdict(preset), "num_parameters": _parameters()}
    inputs["samples"] = len(table.values)
    figures = {"asked": asked, "detectors": found, "norm with timestep": bias}
    page = _page(inputs, figures, targets)
    save(out, "sensitivity", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "sensitivity.png", preset, figures)
    return targets


def _samples(values: NDArray[np.float32], labels: Sequence[str], prefix: str) -> Samples:
    rows = [{"input": torch.from_numpy(row[None]), "label": label}
            for row, label in zip(values, labels, strict=True)]  # fmt: skip
    return Samples(rows, ids=[f"{prefix}-{number:04d}" for number in range(len(rows))])


def _padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.pad(values, ((0, 0), (0, _WIDTH - values.shape[1]))).astype(np.float32)


def _model() -> UNet1DModel:
    return UNet1DModel(
        sample_size=_WIDTH,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
        mid_block_type="MidResTemporalBlock1D",
        up_block_types=("UpResnetBlock1D",),
        out_block_type="OutConv1DBlock",
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=True,
        freq_shift=0,
        norm_num_groups=8,
        act_fn="mish",
    )


def _parameters() -> int:
    return sum(p.numel() for p in _model().parameters())


def _rows(
    preset: Preset, table: Table, folders: Folders, seed: int
) -> dict[str, tuple[Store, Store]]:
    """Training and query rows of a model of the table, cached by a hash of their inputs.

    Returns:
        The paper's rows, by an empty name, and rows in each metric, by its name.
    """
    train = table.train()
    key = digest(asdict(preset), train.manifest.digests)
    folder = folders.cache / f"table-{key}-{seed}"
    checkpoints = fit(
        _model,
        train,
        folder / "checkpoints",
        epochs=preset.epochs,
        checkpoint_every=preset.checkpoint_every,
        batch_size=32,
        learning_rate=1e-3,
        seed=seed,
    )
    spec = ProjectorSpec(projector="sjlt", proj_dim=preset.proj_dim, proj_seed=seed)
    asked = EventSpec(
        events="planned", timesteps=preset.timesteps, draws=preset.draws, event_seed=seed
    )
    grid = asked.model_copy(update={"draws": 1})
    ways: dict[str, EventSpec | str] = {"": "replayed", **dict.fromkeys(METRICS, grid)}
    found = {}
    for metric, events in ways.items():
        name = f"-{metric}" if metric else ""
        store = collect(
            train,
            checkpoints,
            folder / f"train{name}.gradstore",
            projector=spec,
            events=events,
            metric=metric or "none",
        )
        queries = collect_queries(
            store,
            table.queries(),
            folder / f"queries{name}.gradstore",
            events=asked,
            checkpoints=checkpoints,
        )
        found[metric] = store, queries
    return found


def _asked(preset: Preset, table: Table, found: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    """Proponents of held-out rows and originals; each training seed is a run."""
    count = len(table.asked)
    copies = np.flatnonzero(table.copy_of >= 0)
    labels = np.array(table.labels)
    shares = []
    for one in found:
        first = top(one[count:], preset.k)
        shares.append((first == copies[:, None]).any(axis=1))
    held_out = [top(one[:count], preset.k) for one in found]
    distinct = [distinctness(one[:count], preset.k) for one in found]
    return {
        "copies": {
            f"{strength:g}": interval(
                [one[table.noisy[copies] == strength] for one in shares]
            ).json()
            for strength in preset.copies
        },
        "outliers": interval([(table.strange[one] > 0).mean(axis=1) for one in held_out]).json(),
        "label": interval(
            [
                (labels[one] == np.array(table.asked_labels)[:, None]).mean(axis=1)
                for one in held_out
            ]
        ).json(),
        "distinctness": {
            "low": min(distinct),
            "mean": float(np.mean(distinct)),
            "high": max(distinct),
        },
    }


def _detected(
    preset: Preset, table: Table, values: Sequence[NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """AUROC of each strength of outliers against all rows that are not outliers."""
    figures = {}
    for strength in preset.outliers:
        chances = []
        for one in values:
            ordinary = np.sort(one[table.strange == 0])
            places = np.searchsorted(ordinary, one[table.strange == strength])
            chances.append(places / len(ordinary))
        figures[f"{strength:g}"] = interval(chances).json()
    return figures


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    preset, asked = inputs["preset"], figures["asked"]
    seeds = preset["seeds"]
    lines = [
        "# Does gradstore work for data other than images?",
        "",
        (
            f"`python -m benchmarks.sensitivity`; {preset['rows']} rows of scikit-learn's breast "
            f"cancer table (30 columns, standardised), {preset['copied']} copies of each of "
            f"{len(preset['copies'])} strengths of noise and {preset['outlying']} outliers of each "
            f"of {len(preset['outliers'])} strengths planted: {inputs['samples']} training rows. A "
            f"UNet1DModel of {inputs['num_parameters']:,} parameters, {preset['epochs']} epochs, "
            f"training seeds {', '.join(map(str, seeds))}; sjlt to {preset['proj_dim']:,}; queries "
            f"at {preset['timesteps']} timesteps × {preset['draws']} noises; {machine()['cpu']}. "
            "Means over queries and seeds, 95% bootstrap intervals over queries. Training rows are "
            "replayed, as in the paper; `none` and `kfac`: at a query's timesteps, in this metric."
        ),
        "",
        (
            f"Copies: the share among the first {preset['k']} proponents of their original, by "
            "standard deviations of their noise. Held-out rows: the share of their diagnosis "
            f"(chance {asked['chance']:.2f}) and of planted outliers (chance "
            f"{asked['chance of outliers']:.3f}) among as many proponents; distinctness with the "
            "range of seeds."
        ),
        "",
        "| measure | "
        + " | ".join(f"copies, {strength:g}" for strength in preset["copies"])
        + " | diagnosis | outliers | distinct |",
        "|---|" + "---|" * (len(preset["copies"]) + 3),
    ]
    for name in (*MEASURES, NEAREST):
        one = asked[name]
        cells = [f"{figure['mean']:.2f}" for figure in one["copies"].values()]
        cells += [text(one["label"], 2), text(one["outliers"]), text(one["distinctness"], 2)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Outliers, without a query",
        "",
        "AUROC for planted outliers, by the displacement of every column in standard deviations.",
        "",
        "| detector | " + " | ".join(f"{strength:g}" for strength in preset["outliers"]) + " |",
        "|---|" + "---|" * len(preset["outliers"]),
        *[
            f"| {name} | " + " | ".join(text(figure, 2) for figure in one.values()) + " |"
            for name, one in figures["detectors"].items()
        ],
        "",
        "## Norm with timestep",
        "",
        "Spearman over the replayed rows, from the first checkpoint to the last: "
        + "; ".join(
            f"seed {seed}: " + ", ".join(f"{value:.2f}" for value in one)
            for seed, one in zip(seeds, figures["norm with timestep"], strict=True)
        )
        + ".",
        "",
        target_table(targets),
        "",
        notes("sensitivity"),
    ]
    return "\n".join(lines)


def _plot(path: Path, preset: Preset, figures: dict[str, Any]) -> None:
    figure, axes = canvas(1, 2)
    for name, one in figures["asked"].items():
        if isinstance(one, dict):
            band(axes[0, 0], preset.copies, list(one["copies"].values()), name)
    axes[0, 0].set(
        title=f"copies among the first {preset.k} of their original",
        xlabel="noise of the copy, standard deviations",
    )
    for name, one in figures["detectors"].items():
        band(axes[0, 1], preset.outliers, list(one.values()), name)
    axes[0, 1].set(title="AUROC for outliers", xlabel="displacement, standard deviations")
    for one in axes[0]:
        one.legend(fontsize=6)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
