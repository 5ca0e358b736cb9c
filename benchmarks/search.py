"""How fast are samples found, by which engine, and what does the index cost and find?

On vectors that are made by a generator fitted to a real store, so that there may be a million, and
on the real store itself; beside the fastest exact engines over vectors in memory, and what peers
search with, in the same run.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from benchmarks.results import interleaved
from benchmarks.setting import Setting
from gradstore import open_store
from gradstore.fingerprint import fingerprint, only_checkpoints
from gradstore.layout import Layout
from gradstore.manifest import Manifest
from gradstore.progress import progress
from gradstore.rows import Rows
from gradstore.spec import CheckpointSpec, LayoutSpec, PartSpec, StoreSpec
from gradstore.writer import create, write_shard
from indexer import ExactEngine, Features, SearchIndex, TracIn, build_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gradstore.reader import Store

K: Final = 10
_PROBES: Final = 64
_COMPONENTS: Final = 256


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        setting: the model whose store the generator is fitted to, and which is searched as well.
        rows: rows of the generated stores.
        batches: queries at once.
        repeats: how often each timing is taken.
        flat: up to how many rows FAISS's Flat is built: it takes twice the store's bytes.
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
    "cpu": Preset(_REAL, (10_000, 100_000, 1_000_000), (1, 16, 256), 5, 100_000, 10_000),
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


@dataclass(frozen=True)
class Spectrum:
    """Second moments of real directions, and real norms: what vectors are drawn from.

    A direction is `Σ_c z_c σ_c v_c` over the first components, and equal noise in all the others.

    Attributes:
        components: the first eigenvectors times their standard deviations, `[components, dim]`.
        rest: standard deviation of each entry of what they leave.
        norms: of the store's rows.
    """

    components: NDArray[np.float32]
    rest: float
    norms: NDArray[np.float32]

    @classmethod
    def of(cls, store: Store) -> Spectrum:
        """Fitted to a store's last checkpoint."""
        rows = store.rows(store.checkpoints - 1)
        direction = rows.direction[:, 0].astype(np.float32)
        count = min(_COMPONENTS, store.samples // 4, store.dim // 4)
        _, scale, basis = np.linalg.svd(direction, full_matrices=False)
        first = (scale[:count, None] * basis[:count]) / np.float32(len(direction) ** 0.5)
        left = (np.square(direction).sum() - np.square(scale[:count]).sum()) / direction.size
        return cls(first.astype(np.float32), float(left) ** 0.5, rows.norm[:, 0])

    def rows(self, count: int, seed: int) -> Rows:
        """Some rows of one slot each."""
        generator = torch.Generator().manual_seed(seed)
        known, dim = self.components.shape
        vectors = torch.randn(count, dim, generator=generator).mul_(self.rest)
        mixed = torch.randn(count, known, generator=generator)
        vectors.addmm_(mixed, torch.from_numpy(self.components))
        draws = np.random.default_rng(seed)
        return Rows(
            direction=vectors.half().numpy()[:, None],
            norm=draws.choice(self.norms, (count, 1)),
            loss=draws.random((count, 1), dtype=np.float32),
            timestep=draws.integers(0, 1000, (count, 1), dtype=np.int32),
        )


def generated(path: Path, real: Store, spectrum: Spectrum, rows: int, seed: int) -> Store:
    """A store of drawn rows at one checkpoint."""
    identity = only_checkpoints(real.spec.identity, [real.checkpoints - 1])
    layout = Layout.choose(rows, 1, real.dim, "float16")
    names = np.random.default_rng(seed)
    store = create(
        path,
        StoreSpec(
            fingerprint=fingerprint(identity),
            identity=identity,
            checkpoints=[CheckpointSpec(path="drawn", eta=1, number=real.numbers[-1])],
            parts=[PartSpec(layout=LayoutSpec.of(layout))],
        ),
        Manifest(
            [f"drawn-{n:07d}" for n in range(rows)], [names.bytes(16).hex() for _ in range(rows)]
        ),
    )
    (part,) = store.parts
    with progress(rows, f"drawing {rows:,} rows", "rows") as bar:
        for shard in range(layout.shards):
            low, high = layout.span(shard)
            drawn = spectrum.rows(high - low, seed * 1_000_003 + shard)
            write_shard(part, store.numbers[0], shard, drawn)
            bar.update(high - low)
    return open_store(path)


def asked(spectrum: Spectrum, count: int, seed: int) -> NDArray[np.float32]:
    """Features of drawn queries, of ten timesteps each."""
    drawn = spectrum.rows(10 * count, seed)
    vectors = drawn.direction[:, 0].astype(np.float32) * drawn.norm
    return np.asarray(vectors.reshape(count, 10, -1).mean(axis=1))


class InMemory:
    """The fastest exact engine that needs no store: bfloat16 products over weighed rows in memory.

    Args:
        store: where the rows come from.
        features: how they become features.
    """

    def __init__(self, store: Store, features: Features) -> None:
        self._rows = torch.empty(store.samples, features.dim(store), dtype=torch.bfloat16)
        for start, block in features.blocks(store):
            self._rows[start : start + len(block)] = torch.from_numpy(block)

    def scores(self, queries: NDArray[np.float32]) -> torch.Tensor:
        """All scores, bfloat16 `[queries, samples]`."""
        return torch.from_numpy(queries).bfloat16() @ self._rows.T

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Both ends of each query's scores, `[queries, 2k]`, not scored again."""
        scores = self.scores(queries).float()
        ends = [scores.topk(k, dim=1, largest=largest).indices for largest in (True, False)]
        return np.asarray(torch.cat(ends, dim=1).numpy())


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Share of what is to be found that is."""
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def resident(field: str) -> int:
    """Bytes of memory of this process, `VmRSS` now or `VmHWM` at most."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def measured(preset: Preset, store: Store, spectrum: Spectrum, folder: Path) -> dict[str, Any]:
    """One size: the build beside reading, and every engine at every batch."""
    features = Features.of(store, TracIn())

    def read() -> None:
        for start, stop in features.spans(store):
            store.rows(0, start, stop)

    def build() -> SearchIndex:
        shutil.rmtree(folder / "index", ignore_errors=True)
        return build_index(store, TracIn(), folder / "index")

    read()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    index = build()
    peak = resident("VmHWM") - before
    times = interleaved({"read": read, "build": build}, max(1, preset.repeats // 2))
    index = build()
    figures: dict[str, Any] = {
        "rows": store.samples,
        "read_s": times["read"],
        "build_s": times["build"],
        "build_over_read": times["build"]["median"] / times["read"]["median"],
        "index_bytes_per_vector": index.nbytes / store.samples,
        "build_peak_bytes": peak,
        "peak_over_index_bytes": peak - index.nbytes,
        "measured_recall": index.spec.measured.model_dump(),
    }
    exact = ExactEngine(store, features)
    memory = InMemory(store, features)
    queries = asked(spectrum, max(*preset.batches, _PROBES), 7)
    probes = queries[:_PROBES]
    truth = [side.rows for side in exact.search(probes, K)]
    found = [side.rows for side in index.approximate(probes, K)]
    figures["recall_at_10"] = {
        end: recall(f, t)
        for end, f, t in zip(("proponents", "opponents"), found, truth, strict=True)
    }
    flat = _flat(store, features) if store.samples <= preset.flat else None
    cells = {}
    for batch in preset.batches:
        some = queries[:batch]
        jobs: dict[str, Callable[[], object]] = {
            "index": lambda some=some: index.approximate(some, K),
            "exact": lambda some=some: exact.search(some, K),
            "chosen": lambda some=some: index.search(some, K),
            "bf16 in memory": lambda some=some: memory.search(some, K),
        }
        if flat is not None:
            jobs["FAISS Flat"] = lambda some=some: _flat_search(flat, some)
        cells[str(batch)] = interleaved(jobs, preset.repeats)
    figures["seconds"] = cells
    figures["product_s"] = interleaved(
        {str(batch): lambda some=queries[:batch]: memory.scores(some) for batch in preset.batches},
        preset.repeats,
    )
    return figures


def _flat(store: Store, features: Features) -> Any:
    import faiss

    flat = faiss.IndexFlatIP(features.dim(store))
    for _, block in features.blocks(store):
        flat.add(block)
    return flat


def _flat_search(flat: Any, queries: NDArray[np.float32]) -> None:
    flat.search(queries, K)
    flat.search(-queries, K)
