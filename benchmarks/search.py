"""How fast does each engine find samples, and what are the index's cost and recall?

Measured on random vectors like a real store's, so that there can be a million, and on the real
store. The same run measures the fastest exact engines over vectors in memory and the search
methods of peers.
"""

from __future__ import annotations

import gc
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.harness.plots import canvas, keep
from benchmarks.harness.results import Target, interleaved, notes, processor, save, target_table
from benchmarks.worlds.setting import Setting, command, prepare
from benchmarks.worlds.vectors import Spectrum, generated
from gradstore.arithmetic import precision_of
from indexer import ExactEngine, Features, SearchIndex, TracIn, build_index
from indexer.approximate.factory import DEFAULT
from indexer.approximate.first_stage import QUERY_BITS, FirstStage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.worlds.setting import Folders
    from gradstore.store.reader import Store

    Found = NDArray[np.int64]

K: Final = 10
_PROBES: Final = 64
_CANDIDATES: Final = (50, 100, 200, 400)
_BITS: Final = (1, 2, 4, 8)
_PIECE: Final = 1 << 20
# Most rows in memory beside a store in the system's cache; seconds of larger stores are scaled up.
_HELD: Final = 250_000
# Ratios up to this count as equally fast, on a machine that others use.
_AS_FAST: Final = 1.1


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: setting of the real store; the generator is fitted to it.
        rows: rows of the generated stores.
        batches: numbers of queries at once.
        repeats: repetitions of each timing.
        flat: most rows for FAISS's Flat, which takes twice the store's bytes.
        peers: rows of the store that peers search.
    """

    setting: Setting
    rows: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int
    flat: int
    peers: int


_REAL = Setting(
    model="small",
    size=16,
    planes=5000,
    zeros=0,
    epochs=4,
    checkpoint_every=1,
    batch_size=32,
    learning_rate=1e-4,
    proj_dim=4096,
    queries=(("plane", 64),),
    timesteps=10,
    draws=1,
)
PRESETS = {
    "cpu": Preset(_REAL, (10_000, 100_000, 1_000_000), (1, 16, 256), 3, 100_000, 10_000),
    "tiny": Preset(
        Setting(
            model="tiny",
            size=8,
            planes=60,
            zeros=0,
            epochs=2,
            checkpoint_every=1,
            batch_size=16,
            learning_rate=1e-3,
            proj_dim=256,
            queries=(("plane", 6),),
            timesteps=3,
            draws=1,
        ),
        (300, 1500),
        (1, 4),
        1,
        1500,
        300,
    ),
}


class InMemory:
    """The fastest exact engine that needs no store: products with weighted rows in memory.

    Args:
        store: the store of the rows.
        features: computes features from rows.
        dtype: dtype of the rows: float32 or bfloat16, whichever this machine multiplies faster.

    Attributes:
        times: scale factor of the seconds, because at most `_HELD` rows are held.
    """

    def __init__(self, store: Store, features: Features, dtype: torch.dtype) -> None:
        held = min(store.samples, _HELD)
        self.times = store.samples / held
        self._rows = torch.empty(held, features.dim(store), dtype=dtype)
        for start, block in features.blocks(store):
            if start >= held:
                break
            here = self._rows[start : start + len(block)]
            here.copy_(torch.from_numpy(block)[: len(here)])

    def scores(self, queries: NDArray[np.float32]) -> torch.Tensor:
        """All scores `[queries, samples]`, in the dtype of the rows.

        In float32 the rows are the first factor: for few queries this takes half the time.
        """
        asked = torch.from_numpy(queries).to(self._rows.dtype)
        if self._rows.dtype == torch.float32:
            return (self._rows @ asked.T).T
        return asked @ self._rows.T

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Both ends of each query's scores, `[queries, 2k]`, not rescored."""
        scores = self.scores(queries).float()
        ends = [scores.topk(k, dim=1, largest=largest).indices for largest in (True, False)]
        return np.asarray(torch.cat(ends, dim=1).numpy())


def recall(found: Found, truth: Found) -> float:
    """Share of the true samples that are found."""
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def resident(field: str) -> int:
    """Memory of this process in bytes: `VmRSS` is the present, `VmHWM` the peak."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def run(preset: Preset, out: Path, folders: Folders) -> list[Target]:
    """Measure, and write `search.json`, `search.md` and `search.png` into `out`."""
    world = prepare(preset.setting, folders)
    spectrum = Spectrum.of(world.store)
    scratch = folders.cache / "search"
    real_queries = Features.of(world.store, TracIn()).range(world.queries)
    figures: dict[str, Any] = {
        "spectrum": spectrum.described(),
        "real": measured(preset, world.store, real_queries, scratch),
        "folding": folding(world.store, real_queries, preset.repeats),
        "drawn": {},
    }
    asked = spectrum.asked(max(*preset.batches, _PROBES), 7)
    for rows in preset.rows:
        store = generated(scratch, world.store, spectrum, rows, seed=1)
        figures["drawn"][str(rows)] = measured(preset, store, asked, scratch)
        if rows == preset.rows[-1]:
            figures["rounding"] = rounding(store, asked, preset.repeats)
        if rows == preset.peers:
            figures["peers"] = peers(store, asked[:_PROBES], preset.repeats, scratch)
    targets = _targets(preset, figures)
    inputs = asdict(preset)
    page = _page(inputs, figures, targets)
    save(out, "search", inputs=inputs, figures=figures, targets=targets, page=page)
    _plot(out / "search.png", figures)
    return targets


def measured(
    preset: Preset, store: Store, queries: NDArray[np.float32], folder: Path
) -> dict[str, Any]:
    """Measure one store: build and read times, and every engine at every batch.

    Args:
        preset: sizes.
        store: the store to search.
        queries: features, repeated to fill a batch.
        folder: folder of the index.
    """
    features = Features.of(store, TracIn())
    place = folder / f"{store.name}.index"

    def read() -> None:
        for start, stop in features.spans(store):
            for checkpoint in features.checkpoints:
                store.rows(checkpoint, start, stop)

    def build() -> SearchIndex:
        shutil.rmtree(place, ignore_errors=True)
        return build_index(store, TracIn(), place)

    cold = {"read": _cold(store, read), "build": _cold(store, build)}
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    index = build()
    peak = resident("VmHWM") - before
    times = interleaved({"read": read, "build": build}, max(1, preset.repeats // 2))
    index = build()
    exact = ExactEngine(store, features)
    truth = exact.search(queries[:_PROBES], K)
    found = index.approximate(queries[:_PROBES], K)
    figures: dict[str, Any] = {
        "rows": store.samples,
        "checkpoints": store.checkpoints,
        "seconds, from memory": times,
        "seconds, from the disk": cold,
        "index bytes per sample": index.nbytes / store.samples,
        # Includes the kept weights of rows, four bytes each.
        "memory per sample": index.nbytes / store.samples + 4 * store.checkpoints * store.slots,
        "build's peak memory over the index": peak - index.nbytes,
        "measured by the index": index.spec.measured.model_dump(),
        "exact from": index.spec.exact_from,
        "recall@10": {
            end: recall(f.samples, t.samples)
            for end, f, t in zip(("proponents", "opponents"), found, truth, strict=True)
        },
        "raw read": _raw_read(store, preset.repeats),
    }
    memory = InMemory(store, features, getattr(torch, precision_of("auto", "cpu")))
    flat = _flat(store, features) if store.samples <= preset.flat else None
    cells = {}
    for batch in preset.batches:
        some = np.resize(queries, (batch, queries.shape[1]))
        jobs: dict[str, Callable[[], object]] = {
            "index": partial(index.approximate, some, K),
            "exact": partial(exact.search, some, K),
            "chosen": partial(index.search, some, K),
            "in memory": partial(memory.search, some, K),
            "product": partial(memory.scores, some),
        }
        if flat is not None:
            jobs["FAISS Flat"] = partial(_both_ends, flat, some)
        cell = interleaved(jobs, preset.repeats)
        for name in ("in memory", "product"):
            cell[name] = {key: memory.times * value for key, value in cell[name].items()}
        cells[str(batch)] = cell
    figures["searching"] = cells
    return figures


def folding(store: Store, queries: NDArray[np.float32], repeats: int) -> dict[str, Any]:
    """One-bit first stages of concatenated and of summed checkpoints.

    Recall@10 against exact scores of concatenated features, by number of candidates.
    """
    features = Features.of(store, TracIn())
    whole, checkpoints = features.range(store), len(features.etas)
    queries = queries[:_PROBES]
    truth = np.argsort(-(queries @ whole.T), axis=1, kind="stable")[:, :K]

    def folded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(vectors.reshape(len(vectors), checkpoints, -1).sum(axis=1))

    figures = {}
    for name, trained, asked in (
        ("concatenated", whole, queries),
        ("folded", folded(whole), folded(queries)),
    ):
        stage = _faiss().IndexRaBitQ(trained.shape[1], _faiss().METRIC_INNER_PRODUCT)
        stage.train(np.zeros((1, trained.shape[1]), np.float32))
        stage.add(trained)
        how = _faiss().RaBitQSearchParameters(qb=QUERY_BITS, centered=False)
        most = min(store.samples, _CANDIDATES[-1])
        search = partial(stage.search, np.ascontiguousarray(asked), most, params=how)
        found: Found = search()[1]
        seconds = interleaved({"all": search}, repeats)["all"]
        figures[name] = {
            "bytes per sample": int(stage.code_size),
            "ms per query": {key: 1000 * one / len(queries) for key, one in seconds.items()},
            "recall@10": {str(count): recall(found[:, :count], truth) for count in _CANDIDATES},
        }
    return figures


def rounding(store: Store, queries: NDArray[np.float32], repeats: int) -> dict[str, Any]:
    """The default first stage with query entries rounded to different numbers of bits.

    Recall@10 of both ends against the exact engine, by candidates at each end, and milliseconds.
    """
    features = Features.of(store, TracIn())
    queries = queries[:_PROBES]
    truth = ExactEngine(store, features).search(queries, K)
    stage = FirstStage.empty(DEFAULT, store, features)
    for _, tiles in features.each(store, lambda _, t: [stage.encoded(parts) for _, parts in t]):
        for codes in tiles:
            stage.add(codes)
    both = np.concatenate([queries, -queries])
    ends = both[[0, len(queries)]]
    most = min(store.samples, _CANDIDATES[-1])
    figures = {}
    for bits in _BITS:
        stage.query_bits = bits
        found = np.split(stage.search(both, most), 2)
        seconds = interleaved(
            {"one": partial(stage.search, ends, 50), "all": partial(stage.search, both, 50)},
            repeats,
        )
        figures[str(bits)] = {
            "ms, one query": {key: 1000 * value for key, value in seconds["one"].items()},
            "ms per query of all": {
                key: 1000 * value / len(queries) for key, value in seconds["all"].items()
            },
            "recall@10": {
                str(count): float(
                    np.mean(
                        [recall(f[:, :count], t.samples) for f, t in zip(found, truth, strict=True)]
                    )
                )
                for count in _CANDIDATES
            },
        }
    return figures


def peers(store: Store, queries: NDArray[np.float32], repeats: int, folder: Path) -> dict[str, Any]:
    """Other search methods: build, one query, recall and bytes.

    DMin searches with hnswlib by inner products; TRAK, LESS and bergson score by dense products
    over a memory map.
    """
    import hnswlib

    features = Features.of(store, TracIn())
    vectors = features.range(store)
    count, dim = vectors.shape
    truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :K]
    figures: dict[str, Any] = {}

    def contestant(
        name: str,
        build: Callable[[], Any],
        find: Callable[[Any, NDArray[np.float32]], Found],
        nbytes: Callable[[Any], int],
    ) -> None:
        start = perf_counter()
        made = build()
        seconds = perf_counter() - start
        found = find(made, queries)
        one = interleaved(
            {"one": lambda: find(made, queries[:1]), "all": lambda: find(made, queries)}, repeats
        )
        figures[name] = {
            "build s": seconds,
            "ms, one query": {key: 1000 * value for key, value in one["one"].items()},
            "ms per query of all": {
                key: 1000 * value / len(queries) for key, value in one["all"].items()
            },
            "recall@10": recall(found, truth),
            "bytes per sample": nbytes(made) / count,
        }

    def ours() -> SearchIndex:
        shutil.rmtree(folder / "peers.index", ignore_errors=True)
        return build_index(store, TracIn(), folder / "peers.index")

    contestant(
        "gradstore, index (both ends)",
        ours,
        lambda index, some: np.asarray(index.approximate(some, K)[0].samples),
        lambda index: int(index.nbytes),
    )
    contestant(
        "gradstore, exact (both ends)",
        lambda: ExactEngine(store, features),
        lambda engine, some: np.asarray(engine.search(some, K)[0].samples),
        lambda _: 0,
    )

    start = perf_counter()
    graph = hnswlib.Index(space="ip", dim=dim)
    graph.init_index(max_elements=count, ef_construction=200, M=16)
    graph.add_items(vectors, num_threads=os.cpu_count() or 1)
    built = perf_counter() - start
    graph.save_index(str(folder / "hnsw.bin"))
    size = (folder / "hnsw.bin").stat().st_size
    for ef in (50, 200, 800):

        def of_hnsw(index: Any, some: NDArray[np.float32], ef: int = ef) -> Found:
            index.set_ef(ef)
            return np.asarray(index.knn_query(some, K)[0].astype(np.int64))

        contestant(f"hnswlib ip, ef {ef}", lambda: graph, of_hnsw, lambda _: size)
        figures[f"hnswlib ip, ef {ef}"]["build s"] = built

    def memmap() -> NDArray[np.float32]:
        np.save(folder / "dense.npy", vectors)
        return np.asarray(np.load(folder / "dense.npy", mmap_mode="r"))

    contestant(
        "float32 product over a memory map",
        memmap,
        lambda rows, some: np.argpartition(-(some @ rows.T), K, axis=1)[:, :K].astype(np.int64),
        lambda rows: int(rows.nbytes),
    )

    def by_faiss(factory: str) -> Callable[[], Any]:
        def build() -> Any:
            index = _faiss().index_factory(dim, factory, _faiss().METRIC_INNER_PRODUCT)
            index.train(vectors)
            index.add(vectors)
            return index

        return build

    for factory, size_of in (("Flat", 4 * dim), ("SQfp16", 2 * dim)):
        contestant(
            f"FAISS {factory}",
            by_faiss(factory),
            lambda index, some: np.asarray(index.search(some, K)[1]),
            lambda _, size_of=size_of: size_of * count,  # type: ignore[misc]
        )
    return figures


def _faiss() -> Any:  # lacks type hints
    import faiss

    return faiss


def _files(store: Store) -> list[Path]:
    """Files of the directions of a store in a folder."""
    return [
        file
        for part in store.parts
        for number in store.numbers
        for file in Path(part.location, "checkpoints", str(number), "direction").glob("c.*")
    ]


def _cold(store: Store, job: Callable[[], object]) -> float:
    """Seconds of a job with nothing of the store in the system's cache."""
    os.sync()
    for file in _files(store):
        opened = os.open(file, os.O_RDONLY)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(opened)
    start = perf_counter()
    job()
    return perf_counter() - start


def _raw_read(store: Store, repeats: int) -> dict[str, float]:
    """Seconds of reading the bytes of all directions into reused memory.

    Reads one mebibyte at a time, which stays in the processor's cache: whole files take up to four
    times as long.
    """
    threads = torch.get_num_threads()
    files = _files(store)
    room = [np.empty(_PIECE, np.uint8) for _ in range(threads)]

    def read(thread: int) -> None:
        for file in files[thread::threads]:
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(room[thread].data):
                    pass

    def all_of_it() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(threads)))

    return interleaved({"raw": all_of_it}, repeats)["raw"]


def _flat(store: Store, features: Features) -> Any:
    flat = _faiss().IndexFlatIP(features.dim(store))
    for _, block in features.blocks(store):
        flat.add(block)
    return flat


def _both_ends(flat: Any, queries: NDArray[np.float32]) -> None:
    flat.search(np.concatenate([queries, -queries]), K)


def _fastest_exact(cell: Mapping[str, Mapping[str, float]]) -> float:
    names = ("in memory", "FAISS Flat")
    return min(cell[name]["median"] for name in names if name in cell)


def _engine(store: Mapping[str, Any], batch: str) -> str:
    """The chosen engine."""
    exact_from = store["exact from"]
    return "exact" if exact_from is not None and int(batch) >= exact_from else "index"


def _limit(figures: Mapping[str, Any], batch: str) -> float:
    """Lower bound of the exact engine's seconds: reading or multiplying, whichever is slower."""
    product = figures["searching"][batch]["product"]["median"]
    return float(max(product, figures["raw read"]["median"]))


def _targets(preset: Preset, figures: Mapping[str, Any]) -> list[Target]:
    largest = figures["drawn"][str(preset.rows[-1])]
    stores = {"real": figures["real"], **figures["drawn"]}
    one, many = (largest["searching"][str(preset.batches[place])] for place in (0, -1))
    speedup = _fastest_exact(one) / one["index"]["median"]
    ratio = many["chosen"]["median"] / _fastest_exact(many)
    recalls = [value for store in stores.values() for value in store["recall@10"].values()]
    wrong = [
        cell[_engine(store, batch)]["median"]
        / min(cell["index"]["median"], cell["exact"]["median"])
        for store in stores.values()
        for batch, cell in store["searching"].items()
    ]
    shares = {
        batch: _limit(largest, batch) / cell["exact"]["median"]
        for batch, cell in largest["searching"].items()
    }
    memory = max(store["memory per sample"] for store in stores.values())
    extra = max(store["build's peak memory over the index"] for store in stores.values())
    rows = f"{preset.rows[-1]:,}"
    cold = largest["seconds, from the disk"]
    warm = largest["seconds, from memory"]
    over = {
        "the disk": cold["build"] / cold["read"],
        "memory": warm["build"]["median"] / warm["read"]["median"],
    }
    return [
        Target("recall@10, the least of all stores", "≥ 0.99", min(recalls), min(recalls) >= 0.99),
        Target("bytes of memory per sample, the most", "≤ 600", memory, memory <= 600),
        Target(
            f"one query among {rows}: the fastest exact engine in memory / the index, re-scoring "
            "included",
            "≥ 10",
            speedup,
            speedup >= 10,
        ),
        Target(
            f"{preset.batches[-1]} queries among {rows}: what is chosen / the fastest exact engine "
            "in memory",
            "≤ 1",
            ratio,
            ratio <= 1,
        ),
        Target(
            "the engine that is chosen / the faster of both, the worst of all cells",
            f"1, or within {_AS_FAST}",
            max(wrong),
            max(wrong) <= _AS_FAST,
        ),
        *(
            Target(
                f"building the index / reading the store from {where}, {rows}",
                "≤ 4",
                value,
                value <= 4,
            )
            for where, value in over.items()
        ),
        Target("peak memory of building, over the index, GB", "≤ 1", extra / 1e9, extra <= 1e9),
        *(
            Target(
                f"the exact engine's share of the machine's limit, {batch} queries, {rows}",
                "≥ 0.7",
                share,
                share >= 0.7,
            )
            for batch, share in shares.items()
        ),
    ]


def _ms(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{1000 * cell['median']:.1f} ({1000 * cell['low']:.1f} … {1000 * cell['high']:.1f})"


_ENGINES: Final = ("index", "exact", "chosen", "in memory", "FAISS Flat", "product")


def _page(inputs: dict[str, Any], figures: dict[str, Any], targets: Sequence[Target]) -> str:
    spectrum, setting = figures["spectrum"], inputs["setting"]
    stores = {"real": figures["real"], **figures["drawn"]}
    lines = [
        "# How fast are samples found, and what are the index's cost and recall?",
        "",
        (
            f"`python -m benchmarks.search`; {processor()}; "
            f" k = {K}, proponents and opponents both; medians of {inputs['repeats']} "
            f"interleaved turns and their range. Real: {setting['planes']:,} planes of "
            f"{setting['size']} × {setting['size']}, "
            f"{figures['real']['checkpoints']} checkpoints, {setting['proj_dim']:,} dimensions, "
            "TracIn. Drawn: directions of one checkpoint with the real ones' "
            f"{spectrum['components']} first components ({spectrum['all components']:.2f} of the "
            f"square; the first ten {spectrum['first ten']:.2f}) and equal noise in the rest, and "
            "norms drawn from the real ones. The stores are in the system's cache, unless marked "
            "as from the disk."
        ),
        "",
        target_table(targets),
        "",
        "## Searching, ms",
        "",
        (
            "*index*: one bit per dimension, then exact scores from the store. *exact*: one pass "
            "over the store, then exact scores of candidates. *chosen*: the default choice of "
            "`search`. *in memory*: products with weighted rows kept as "
            f"{precision_of('auto', 'cpu')}, the faster of float32 and bfloat16 here, not "
            f"rescored; *product*: without finding the highest. At most {_HELD:,} rows are held; "
            "seconds of larger stores are scaled up."
        ),
        "",
        "| store | queries | " + " | ".join(_ENGINES) + " |",
        "|---|---|" + "---|" * len(_ENGINES),
    ]
    for name, store in stores.items():
        for batch, cell in store["searching"].items():
            cells = " | ".join(_ms(cell.get(engine)) for engine in _ENGINES)
            lines.append(f"| {_name(name)} | {batch} | {cells} |")
    lines += [
        "",
        "## Building",
        "",
        (
            "| store | read, s | build, s | read from the disk, s | build from the disk, s | "
            "bytes per sample | peak memory over it, GB | candidates | recall@10, proponents and "
            "opponents | exact from |"
        ),
        "|---|" + "---|" * 9,
    ]
    for name, store in stores.items():
        warm, cold = store["seconds, from memory"], store["seconds, from the disk"]
        found = ", ".join(f"{value:.3f}" for value in store["recall@10"].values())
        lines.append(
            f"| {_name(name)} | {warm['read']['median']:.2f} | {warm['build']['median']:.2f} | "
            f"{cold['read']:.2f} | {cold['build']:.2f} | {store['memory per sample']:.0f} | "
            f"{store[_PEAK] / 1e9:.2f} | {store['measured by the index']['candidates']} | "
            f"{found} | {store['exact from']} |"
        )
    lines += [
        "",
        "## Concatenated or summed checkpoints",
        "",
        (
            "First stages of one bit per dimension on the real store: recall@10 by number of "
            "candidates, which the store then scores exactly."
        ),
        "",
        "| | bytes per sample | ms per query | "
        + " | ".join(f"{count} candidates" for count in _CANDIDATES)
        + " |",
        "|---|---|---|" + "---|" * len(_CANDIDATES),
    ]
    for name, one in figures["folding"].items():
        cells = " | ".join(f"{value:.3f}" for value in one["recall@10"].values())
        lines.append(
            f"| {name} | {one['bytes per sample']} | {one['ms per query']['median']:.2f} | "
            f"{cells} |"
        )
    lines += [
        "",
        f"## Bits of a query's entries, {inputs['rows'][-1]:,} drawn",
        "",
        (
            f"The first stage alone, both ends; {QUERY_BITS} is the default. Recall@10 of both, by "
            "number of candidates at each end."
        ),
        "",
        "| bits | ms, one query | ms a query of 64 | "
        + " | ".join(f"{count} candidates" for count in _CANDIDATES)
        + " |",
        "|---|---|---|" + "---|" * len(_CANDIDATES),
    ]
    for name, one in figures["rounding"].items():
        cells = " | ".join(f"{value:.4f}" for value in one["recall@10"].values())
        lines.append(
            f"| {name} | {one['ms, one query']['median']:.1f} | "
            f"{one['ms per query of all']['median']:.1f} | {cells} |"
        )
    lines += [
        "",
        f"## Other search methods, on {inputs['peers']:,} drawn rows",
        "",
        (
            "Proponents only, except for gradstore, which finds both ends. DMin searches with "
            "hnswlib by inner products (M 16, ef_construction 200); TRAK, LESS and bergson score "
            "by dense products."
        ),
        "",
        "| | build, s | ms, one query | ms a query of 64 | recall@10 | bytes per sample |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in figures["peers"].items():
        lines.append(
            f"| {name} | {one['build s']:.2f} | {one['ms, one query']['median']:.2f} | "
            f"{one['ms per query of all']['median']:.2f} | {one['recall@10']:.3f} | "
            f"{one['bytes per sample']:,.0f} |"
        )
    lines += ["", "![Times](search.png)", "", notes("search")]
    return "\n".join(lines)


_PEAK: Final = "build's peak memory over the index"


def _name(store: str) -> str:
    return f"{int(store):,} drawn" if store.isdecimal() else store


def _plot(path: Path, figures: dict[str, Any]) -> None:
    drawn = figures["drawn"]
    batches = list(next(iter(drawn.values()))["searching"])
    figure, axes = canvas(1, len(batches), width=11)
    for one, batch in zip(axes[0], batches, strict=True):
        for engine in _ENGINES[:-1]:
            points = [
                (int(rows), store["searching"][batch][engine])
                for rows, store in drawn.items()
                if engine in store["searching"][batch]
            ]
            if points:
                one.plot(
                    [rows for rows, _ in points],
                    [1000 * cell["median"] for _, cell in points],
                    marker=".",
                    linestyle=":" if engine == "chosen" else "-",
                    label=engine,
                )
        one.set(title=f"{batch} at once", xscale="log", yscale="log", xlabel="samples")
    axes[0, 0].set_ylabel("ms")
    axes[0, 0].legend(fontsize=7)
    keep(figure, path)


if __name__ == "__main__":
    command(PRESETS, run, __doc__)
