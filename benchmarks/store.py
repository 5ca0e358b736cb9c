"""What does a row cost on the disk, and how fast is it written, read and found?

Compares a store with plain Zarr arrays and a plain `numpy.memmap` of the same shape, in one run.
Measures the effect of each dtype on the scores of real gradients, and the requests of a store under
an S3 URL.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from scipy.stats import spearmanr

from benchmarks.harness.command import command
from benchmarks.harness.results import Target, notes, processor, save, spread, target_table
from benchmarks.worlds import s3
from gradstore import open_store
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows, given_dtype
from gradstore.store.format.spec import CheckpointSpec, Identity, LayoutSpec, PartSpec, StoreSpec
from gradstore.store.writer import create, write_shard
from indexer import Features, ReTrac, build_index, open_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

DTYPES = ("float16", "int8", "float32")


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        rows: rows of the store, one event each.
        dim: projection dimension.
        scattered: rows of a scattered read.
        repeats: repetitions of each timing.
        train: training digits for the scores.
        epochs: training epochs of their model.
    """

    rows: int
    dim: int
    scattered: int
    repeats: int
    train: int
    epochs: int


PRESETS = {
    "cpu": Preset(10_000, 4096, 1000, 9, 600, 12),
    "tiny": Preset(40, 64, 5, 1, 12, 2),
}


def run(preset: Preset, out: Path, seed: int = 0) -> list[Target]:
    """Measure, and write `store.json`, `store.md` and `store.png` into `out`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nbytes = {dtype: _bytes_per_row(preset, dtype, folder, seed) for dtype in DTYPES}
        speed = _sequential(preset, folder, seed)
        scattered = _scattered(preset, folder, seed)
        scores = _scores(preset, folder, seed)
        requests = _requests(preset, folder, seed)
    unflushed = speed["write"]["plain Zarr"]["median"]
    figures = {
        "bytes_per_row": nbytes,
        "gb_per_second": speed,
        "scattered_ms": scattered,
        "scores": scores,
        "requests": requests,
    }
    write = speed["write"]["gradstore"]["median"] / unflushed
    read = speed["read"]["gradstore"]["median"] / speed["read"]["plain Zarr"]["median"]
    found = scattered["gradstore"]["median"]
    opened = found / scattered["memmap, opened for it"]["median"]
    kept = found / scattered["memmap, kept open"]["median"]
    targets = [
        Target("bytes of a row, float16", "≤ 8,300", nbytes["float16"], nbytes["float16"] <= 8300),
        Target("bytes of a row, int8", "≤ 4,200", nbytes["int8"], nbytes["int8"] <= 4200),
        Target("sequential write / plain Zarr", "≥ 0.6", write, write >= 0.6),
        Target("sequential read / plain Zarr", "≥ 0.6", read, read >= 0.6),
        Target("scattered rows / memmap opened for it", "≤ 3", opened, opened <= 3),
        Target("scattered rows / memmap kept open", "≤ 3", kept, kept <= 3),
    ]
    inputs = {
        "rows": preset.rows,
        "dim": preset.dim,
        "scattered": preset.scattered,
        "repeats": preset.repeats,
        "train": preset.train,
        "epochs": preset.epochs,
        "seed": seed,
    }
    page = _page(preset, figures, targets)
    save(out, "store", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "store.png", speed, scattered)
    return targets


def _rows(preset: Preset, dtype: str, seed: int) -> Rows:
    """Rows of random unit directions, like sketches of unit gradients."""
    generator = np.random.default_rng(seed)
    shape = (preset.rows, 1)
    direction = generator.standard_normal((*shape, preset.dim), dtype=np.float32)
    direction /= np.float32(preset.dim**0.5)
    return Rows(
        direction=direction.astype(given_dtype(dtype), copy=False),
        norm=generator.random(shape, dtype=np.float32),
        loss=generator.random(shape, dtype=np.float32),
        timestep=generator.integers(0, 1000, shape, dtype=np.int32),
    )


def _create(preset: Preset, dtype: str, place: str) -> Store:
    layout = Layout.choose(preset.rows, 1, preset.dim, dtype)
    identity: Identity = {"checkpoints": [{"weights": "0", "number": 0}]}
    generator = np.random.default_rng(0)
    manifest = Manifest(
        [f"image-{number:07d}.png" for number in range(preset.rows)],
        [generator.bytes(16).hex() for _ in range(preset.rows)],
        {"label": [str(number % 10) for number in range(preset.rows)]},
    )
    return create(
        place,
        StoreSpec(
            fingerprint=fingerprint(identity),
            identity=identity,
            checkpoints=[CheckpointSpec(path="run/checkpoint", eta=1, number=0)],
            parts=[PartSpec(layout=LayoutSpec.of(layout))],
        ),
        manifest,
    )


def _fill(store: Store, rows: Rows) -> None:
    (part,) = store.parts
    for shard in range(part.layout.shards):
        here = slice(*part.layout.span(shard))
        write_shard(
            part,
            0,
            shard,
            Rows(rows.direction[here], rows.norm[here], rows.loss[here], rows.timestep[here]),
        )


def _bytes_per_row(preset: Preset, dtype: str, folder: Path, seed: int) -> float:
    """All bytes of a store per row: data, checksums, seals, manifest, descriptions."""
    store = _create(preset, dtype, str(folder / f"{dtype}.gradstore"))
    _fill(store, _rows(preset, dtype, seed))
    return store.nbytes / preset.rows


def _sequential(preset: Preset, folder: Path, seed: int) -> dict[str, Any]:
    """GB/s of whole passes over float16 directions, shard by shard."""
    rows = _rows(preset, "float16", seed)
    whole = rows.direction
    step = Layout.choose(preset.rows, 1, preset.dim, "float16").shard_samples
    spans = [(low, min(low + step, preset.rows)) for low in range(0, preset.rows, step)]

    def array(name: str, **options: Any) -> Any:
        path = folder / name
        shutil.rmtree(path, ignore_errors=True)
        return zarr.create_array(path, shape=whole.shape, dtype=whole.dtype, **options)

    same: dict[str, Any] = {"chunks": (step, 1, preset.dim), "compressors": None}

    def ours() -> float:
        shutil.rmtree(folder / "w.gradstore", ignore_errors=True)
        store = _create(preset, "float16", str(folder / "w.gradstore"))
        start = perf_counter()
        _fill(store, rows)
        return perf_counter() - start

    def plain(name: str, *, flush: bool = False, **options: Any) -> float:
        target = array(name, **options)
        start = perf_counter()
        for shard, (low, high) in enumerate(spans):
            target[low:high] = whole[low:high]
            if flush:
                _flush(folder / name, shard)
        return perf_counter() - start

    writers: dict[str, Callable[[], float]] = {
        "gradstore": ours,
        "plain Zarr": lambda: plain("plain", **same),
        "plain Zarr, flushed to the disk": lambda: plain("flushed", flush=True, **same),
        "Zarr as it comes (zstd)": lambda: plain("default"),
    }

    def readers(name: str) -> float:
        target: Any = None if name == "gradstore" else zarr.open_array(folder / name, mode="r")
        store = open_store(folder / "w.gradstore")
        start = perf_counter()
        for low, high in spans:
            if target is None:
                store.rows(0, low, high)
            else:
                target[low:high]
        return perf_counter() - start

    found: dict[str, Any] = {"write": {}, "read": {}}
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for turn in range(preset.repeats + 1):
        for name, write in writers.items():
            os.sync()  # flushes the previous writer's data
            took = write()
            if turn:
                seconds[name].append(whole.nbytes / took / 1e9)
    found["write"] = {name: spread(values) for name, values in seconds.items()}
    names = {"gradstore": "gradstore", "plain": "plain Zarr", "default": "Zarr as it comes (zstd)"}
    seconds = {name: [] for name in names}
    for turn in range(preset.repeats + 1):
        for name in names:
            took = readers(name)
            if turn:
                seconds[name].append(whole.nbytes / took / 1e9)
    found["read"] = {names[name]: spread(values) for name, values in seconds.items()}
    return found


def _flush(array: Path, shard: int) -> None:
    """Flush the one file of a plain array's shard as gradstore does before a seal."""
    file = array / f"c/{shard}/0/0"
    for path in (file, file.parent, file.parent.parent, file.parent.parent.parent):
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)


def _scattered(preset: Preset, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one read of scattered rows, from the page cache."""
    store = open_store(folder / "float16.gradstore")
    whole = np.lib.format.open_memmap(
        folder / "rows.npy", mode="w+", dtype=np.float16, shape=(preset.rows, 1, preset.dim)
    )
    for low, high in store.blocks():
        whole[low:high] = store.rows(0, low, high).direction
    whole.flush()
    kept = np.load(folder / "rows.npy", mmap_mode="r")
    np.asarray(kept).sum(dtype=np.float64)  # maps every page
    plain: Any = zarr.open_array(folder / "plain", mode="r")
    generator = np.random.default_rng(seed)
    jobs: dict[str, Callable[[NDArray[np.int64]], object]] = {
        "gradstore": lambda rows: store.take(0, rows),
        "memmap, opened for it": lambda rows: np.asarray(
            np.load(folder / "rows.npy", mmap_mode="r")[rows]
        ),
        "memmap, kept open": lambda rows: np.asarray(kept[rows]),
        "plain Zarr": lambda rows: plain.oindex[rows],
    }
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(3 * preset.repeats + 1):
        for name, job in jobs.items():
            if name == "plain Zarr" and turn > 3:
                continue
            rows = np.sort(generator.choice(preset.rows, preset.scattered, replace=False))
            start = perf_counter()
            job(rows)
            if turn:
                taken[name].append(1000 * (perf_counter() - start))
    return {name: spread(values) for name, values in taken.items()}


def _scores(preset: Preset, folder: Path, seed: int) -> dict[str, Any]:
    """Agreement of the scores of real gradients with those of float32 rows."""
    from gradstore.collect import EventSpec, ProjectorSpec, TrainConfig, collect, train
    from gradstore.collect.data.samples import Samples
    from gradstore.flags.dataset import DatasetSpec
    from query import collect_queries

    config = TrainConfig(
        dataset="digits", out=str(folder / "run"), limit=preset.train, epochs=preset.epochs,
        checkpoint_every=preset.epochs // 2, seed=seed,
    )  # fmt: skip
    checkpoints = train(config)
    samples = Samples.from_spec(config)
    asked = Samples.from_spec(
        DatasetSpec(dataset="digits", split="test", limit=max(4, preset.train // 15))
    )
    collected = []
    for proj_seed in (0, 1):
        store = collect(
            samples,
            checkpoints,
            folder / f"scores-{proj_seed}.gradstore",
            projector=ProjectorSpec(projector="sjlt", proj_dim=preset.dim, proj_seed=proj_seed),
            events="replayed",
            metric="none",
            dtype="float32",
        )
        queries = collect_queries(
            store,
            asked,
            folder / f"asked-{proj_seed}.gradstore",
            events=EventSpec(events="planned", timesteps=5, draws=2),
            dtype="float32",
        )
        collected.append((store, queries))
    found: dict[str, Any] = {}
    for measure in ("tracin", "retrac"):
        exact = _score(*collected[0], "float32", measure)
        for name, pair, dtype in (
            ("float16", collected[0], "float16"),
            ("int8", collected[0], "int8"),
            ("float32, another projection seed", collected[1], "float32"),
        ):
            scores = _score(*pair, dtype, measure)
            found.setdefault(name, {})[measure] = _nearness(exact, scores)
    return found


def _score(store: Store, queries: Store, dtype: str, measure: str) -> NDArray[np.float64]:
    """Influence of every training sample on every query, with rows stored in a dtype."""

    def vectors(one: Store) -> list[NDArray[np.float64]]:
        made = []
        for checkpoint, eta in enumerate(one.etas):
            rows = one.rows(checkpoint)
            given = Rows(
                rows.direction.astype(given_dtype(dtype)), rows.norm, rows.loss, rows.timestep
            )
            kept = Rows.restored(given.stored(dtype))
            weights = kept.norm if measure == "tracin" else np.ones_like(kept.norm)
            weighted = kept.direction.astype(np.float64) * weights[:, :, None]
            made.append(eta**0.5 * weighted.mean(axis=1))
        return made

    scores = np.zeros((queries.samples, store.samples))
    for left, right in zip(vectors(queries), vectors(store), strict=True):
        scores += left @ right.T
    return scores


def _nearness(right: NDArray[np.float64], scores: NDArray[np.float64]) -> dict[str, float]:
    """Spearman's correlation with exact scores per query, and the shared part of the top 10."""
    rank = [float(spearmanr(a, b).statistic) for a, b in zip(right, scores, strict=True)]
    k = min(10, right.shape[1])
    best, other = (np.argsort(-one, axis=1)[:, :k] for one in (right, scores))
    shared = [len(set(a) & set(b)) / k for a, b in zip(best.tolist(), other.tolist(), strict=True)]
    return {
        "spearman_mean": float(np.mean(rank)),
        "spearman_least": float(np.min(rank)),
        "top10_shared": float(np.mean(shared)),
    }


def _requests(preset: Preset, folder: Path, seed: int) -> dict[str, dict[str, int]]:
    """Requests counted by an S3 server."""
    few = Preset(min(preset.rows, 1024), preset.dim, preset.scattered, 1, 1, 1)
    rows = _rows(few, "float16", seed)
    found: dict[str, dict[str, int]] = {}
    with s3.serve(folder) as server:
        old = dict(os.environ)
        os.environ.update({**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": server.url})
        try:
            store = _create(few, "float16", "s3://bucket/s.gradstore")
            shards = store.parts[0].layout.shards

            def count(name: str, job: Callable[[], object]) -> None:
                with server.counted() as counts:
                    job()
                found[name] = {**counts, "all": counts.total()}

            count(f"write and seal {shards} shards", lambda: _fill(store, rows))
            count("open", lambda: open_store("s3://bucket/s.gradstore").manifest)
            count("read one shard", lambda: store.rows(0, 0, 1))
            picked = np.random.default_rng(seed).choice(few.rows, min(100, few.rows), replace=False)
            count(f"read {len(picked)} scattered rows", lambda: store.take(0, picked))
            count("norms of all samples", lambda: store.column("norm", 0))
            count("is it still the same store", store.is_current)
            place = build_index(store, "retrac", folder / "retrac.index").path
            index = open_index(place, store, "retrac")
            asked = Features.of(store, ReTrac()).range(store, 0, 1)
            count("first query of an index", lambda: index.search(asked, min(10, few.rows)))
            count("each query after it", lambda: index.search(asked, min(10, few.rows)))
        finally:
            os.environ.clear()
            os.environ.update(old)
    return found


def _page(preset: Preset, figures: dict[str, Any], targets: list[Target]) -> str:
    def spreads(table: dict[str, dict[str, float]], form: str) -> list[str]:
        return [
            f"| {name} | {form.format(one['median'])} | {form.format(one['low'])} … "
            f"{form.format(one['high'])} |"
            for name, one in table.items()
        ]

    lines = [
        "# What does a row cost on the disk, and how fast is it written, read and found?",
        "",
        (
            f"`python -m benchmarks.store`; {preset.rows:,} rows of one event at "
            f"{preset.dim:,} dimensions, {processor()}, "
            f"medians of {preset.repeats} interleaved turns."
        ),
        "",
        target_table(targets),
        "",
        "## Bytes and scores",
        "",
        (
            f"Scores of real gradients ({preset.train} digits, {preset.epochs} epochs, "
            f"two checkpoints, sjlt to {preset.dim:,}) against those of float32 rows: Spearman's "
            "correlation per query (mean, least) and the shared part of the top 10. The last line "
            "shows the effect of the projection itself."
        ),
        "",
        "| directions | bytes a row | TracIn | ReTrac |",
        "|---|---|---|---|",
    ]
    for name, one in figures["scores"].items():
        size = figures["bytes_per_row"].get(name)
        cells = [
            f"{one[m]['spearman_mean']:.5f}, {one[m]['spearman_least']:.5f}; "
            f"{one[m]['top10_shared']:.2f}"
            for m in ("tracin", "retrac")
        ]
        shown = f"{size:,.0f}" if size else f"{figures['bytes_per_row']['float32']:,.0f}"
        lines.append(f"| {name} | {shown} | {' | '.join(cells)} |")
    for title, key, form in (
        ("Sequential write, GB/s", "write", "{:.2f}"),
        ("Sequential read, GB/s", "read", "{:.2f}"),
    ):
        table = figures["gb_per_second"][key]
        lines += ["", f"## {title}", "", "| | median | range |", "|---|---|---|"]
        lines += spreads(table, form)
    lines += [
        "",
        f"## {preset.scattered:,} scattered rows in one read, ms",
        "",
        "| | median | range |",
        "|---|---|---|",
        *spreads(figures["scattered_ms"], "{:.1f}"),
        "",
        "## Requests to an S3 server",
        "",
        "| | requests |",
        "|---|---|",
        *[
            f"| {name} | {', '.join(f'{n} {kind}' for kind, n in one.items() if kind != 'all')} |"
            for name, one in figures["requests"].items()
        ],
        "",
        notes("store"),
    ]
    return "\n".join(lines)


def _plot(path: Path, speed: dict[str, Any], scattered: dict[str, dict[str, float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    panels = (
        ("sequential write, GB/s", speed["write"]),
        ("sequential read, GB/s", speed["read"]),
        ("scattered rows, ms", scattered),
    )
    for panel, (title, table) in zip(axes, panels, strict=True):
        bars = panel.barh(list(table), [one["median"] for one in table.values()])
        panel.bar_label(bars, fmt="%.2g", padding=3)
        panel.margins(x=0.2)
        panel.set_title(title)
        panel.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
