"""Commands that are killed: what each makes, how much of it is finished, and whether it is whole.

Each runs in a process of its own, in a folder of its own, and is small enough to be killed often.
Blocks are made small, so that a kill falls among them.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gradstore import delete, open_store
from gradstore.errors import SearchIndexError
from gradstore.store import writer
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import ARRAYS, Rows
from gradstore.store.format.spec import CheckpointSpec, Identity, LayoutSpec, PartSpec, StoreSpec
from gradstore.store.opening import looks_like_store
from gradstore.store.verify import verify
from gradstore.store.writer import create, write_shard

if TYPE_CHECKING:
    from gradstore.store.reader import Store

_BLOCK = 64
STORE, ASKED = "train.gradstore", "asked.gradstore"


class Victim(Protocol):
    """A command that is killed. The present folder is the trial's."""

    @property
    def name(self) -> str:
        """What it does."""

    def make(self) -> None:
        """Make the command's inputs."""

    def run(self) -> None:
        """Run the command."""

    def finished(self, reference: dict[str, Any]) -> tuple[int, int]:
        """How much of its work counts as finished, and how much of that is not whole.

        Args:
            reference: content of an undisturbed run.
        """

    def content(self) -> dict[str, Any]:
        """All that it made."""


@dataclass(frozen=True)
class Collecting:
    """`collect` of random images at two checkpoints.

    Attributes:
        name: as in `Victim`.
        checkpoints: folder of the checkpoints.
        samples: number of images.
        die: a step of writing, and how often it is reached before the process kills itself.
    """

    checkpoints: Path
    samples: int
    die: tuple[str, int] | None = None
    name: str = "collect"

    def make(self) -> None:
        """See `Victim`."""

    def run(self) -> None:
        """See `Victim`."""
        import torch

        from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect

        torch.set_num_threads(1)
        if self.die is not None:
            seen = Counter[str]()

            def reached(step: str) -> None:
                seen[step] += 1
                if (step, seen[step]) == self.die:
                    os.kill(os.getpid(), signal.SIGKILL)

            writer.reached = reached
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(self.samples, 3, 8, 8, generator=generator) * 2 - 1
        collect(
            Samples(images),
            self.checkpoints,
            STORE,
            objective="l1",
            etas=[1.0, 1.0],
            events=EventSpec(events="planned", timesteps=2),
            metric="none",
            # Not `auto`: after a kill before the store exists, a new run may choose another
            # precision, and bytes are compared.
            projector=ProjectorSpec(proj_dim=128, precision="float32"),
            shard_samples=4,
            engine="streaming",
        )

    def finished(self, reference: dict[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        """Sealed shards, and those whose bytes are not what their seals say."""
        reports = list(verify(open_store(STORE))) if looks_like_store(STORE) else []
        sealed = [report for report in reports if report.sealed]
        return len(sealed), sum(report.problem is not None for report in sealed)

    def content(self) -> dict[str, Any]:
        """All data bytes and all seals."""
        store = open_store(STORE)
        (part,) = store.parts
        tasks = [(number, shard) for number in store.numbers for shard in range(part.layout.shards)]
        return {
            "seals": {task: part.seal(*task) for task in tasks},
            "manifest": store.manifest,
            "identity": store.spec.identity,
            **{
                f"{k}/{name}": getattr(store.rows(k), name).tobytes()
                for k in range(store.checkpoints)
                for name in ARRAYS
            },
        }


@dataclass(frozen=True)
class Indexing:
    """`index` of a drawn store.

    Attributes:
        name: as in `Victim`.
        stores: folder of the drawn store, and of an index of more samples than it has now.
        replacing: whether that index is there already, and is brought up to date.
    """

    stores: Path
    replacing: bool
    name: str

    def make(self) -> None:
        """See `Victim`."""
        shutil.copytree(self.stores / STORE, STORE)
        if self.replacing:
            shutil.copytree(self.stores / "train.retrac.index", "train.retrac.index")

    def run(self) -> None:
        """See `Victim`."""
        import torch

        from indexer import build_index

        torch.set_num_threads(1)
        build_index(STORE, "retrac")

    def finished(self, reference: dict[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        """One if there is an index; it is not whole if it cannot be used, or the earlier is gone.

        The earlier one may still be there, which is refused because samples were deleted since.
        """
        from indexer import index_path, open_index
        from indexer.artifact import stands

        store = open_store(STORE)
        if not stands(index_path(store, "retrac")):
            return 0, int(self.replacing)
        try:
            open_index(index_path(store, "retrac"), store, "retrac")
        except SearchIndexError as error:
            return 1, int(not (self.replacing and "Update the index" in str(error)))
        return 1, 0

    def content(self) -> dict[str, Any]:
        """All but measured times, and the names beside the store that `verify` does not tell."""
        from indexer import index_path, open_index

        store = open_store(STORE)
        index = open_index(index_path(store, "retrac"), store, "retrac")
        return {
            "spec": index.spec.model_dump(exclude={"exact_from"}),
            "files": {
                file.name: sha256(file.read_bytes()).hexdigest()
                for file in index.path.iterdir()
                if file.name != "index.json"
            },
            "beside": beside(),
        }


@dataclass(frozen=True)
class Scoring:
    """`scores` of all queries, to Parquet: a matrix is written block by block, then a table.

    Attributes:
        name: as in `Victim`.
        stores: folder of the drawn stores.
    """

    stores: Path
    name: str = "scores"

    def make(self) -> None:
        """See `Victim`."""
        copied(self.stores)

    def run(self) -> None:
        """See `Victim`."""
        import torch

        from indexer import ExactEngine
        from query import scores

        torch.set_num_threads(1)
        scores._CHUNK = (_BLOCK, _BLOCK)  # type: ignore[misc]
        scores._MOST_QUERIES = _BLOCK  # type: ignore[misc]
        engine = ExactEngine(STORE, "retrac")
        scores.write_scores(engine, open_store(ASKED), Path("scores.parquet"))

    def finished(self, reference: dict[str, Any]) -> tuple[int, int]:
        """Finished blocks, and those with other scores than the reference."""
        import zarr

        matrix = Path(".scores.parquet.zarr")
        if not matrix.exists():
            return 0, 0
        group: Any = zarr.open_group(matrix, mode="r")
        done, scores = group["done"][:], group["scores"][:]
        expected = np.frombuffer(reference["scores"], np.float32).reshape(scores.shape)
        wrong = 0
        for row, column in np.argwhere(done).tolist():
            here = (
                slice(row * _BLOCK, (row + 1) * _BLOCK),
                slice(column * _BLOCK, (column + 1) * _BLOCK),
            )
            wrong += not np.array_equal(scores[here], expected[here])
        return int(done.sum()), wrong

    def content(self) -> dict[str, Any]:
        """The table, and the names of all files that `verify` does not tell."""
        import pyarrow.parquet as pq

        table = pq.read_table("scores.parquet")
        return {
            "scores": table["score"].to_numpy().tobytes(),
            "ids": [table[name].to_pylist() for name in ("query_id", "sample_id")],
            "beside": beside(),
        }


@dataclass(frozen=True)
class Querying:
    """`query` by two measures, of which one builds its kernel: block by block, then page and table.

    Attributes:
        name: as in `Victim`.
        stores: folder of the drawn stores.
    """

    stores: Path
    name: str = "query"

    def make(self) -> None:
        """See `Victim`."""
        copied(self.stores)

    def run(self) -> None:
        """See `Victim`."""
        import torch

        from gradstore.flags.query import QueryConfig
        from query import answering
        from query.ask import ask

        torch.set_num_threads(1)
        vars(answering)["block_size"] = lambda *_: _BLOCK
        measures = ["tracin", "trak"]
        ask(QueryConfig(store=STORE, queries=ASKED, out="answers", k=4, measures=measures))

    def finished(self, reference: dict[str, Any]) -> tuple[int, int]:
        """Blocks and results, and those that hold other rows than the reference."""
        known = set(reference["rows"])
        files = [*Path("answers").glob("blocks/*-*.parquet"), *Path("answers").glob("*.parquet")]
        return len(files), sum(not known.issuperset(_rows(file)) for file in files)

    def content(self) -> dict[str, Any]:
        """Table, page and kernel, and the names of all files that `verify` does not tell."""
        return {
            "rows": _rows(Path("answers/results.parquet")),
            "page": Path("answers/report.html").read_text(encoding="utf-8"),
            "files": sorted(str(file) for file in Path("answers").rglob("*")),
            "kernel": kernel(),
            "beside": beside(),
        }


def kernel() -> dict[str, str]:
    """The digest of each file of the kernel in the present folder."""
    return {
        file.name: sha256(file.read_bytes()).hexdigest()
        for file in Path("train.trak.kernel").iterdir()
    }


def beside() -> set[str]:
    """The names in the present folder that `verify` does not tell."""
    from query.leftovers import left_beside

    told = {left.name for left in left_beside(open_store(STORE))}
    return {file.name for file in Path().iterdir()} - told


def copied(stores: Path) -> None:
    """Copy the training and the query store of a folder into the present one."""
    for name in (STORE, ASKED):
        shutil.copytree(stores / name, name)


def _rows(file: Path) -> list[str]:
    """The rows of a table as texts: NaN does not equal itself."""
    import pyarrow.parquet as pq

    return [repr(row) for row in pq.read_table(file).to_pylist()]


def make_stores(folder: Path) -> None:
    """Draw the stores of `Indexing`, `Scoring` and `Querying`, and an index that is out of date."""
    from indexer import build_index

    store = drawn(folder / STORE, 600, seed=0)
    build_index(store, "retrac")
    delete(store, ["s3", "s500"])
    drawn(folder / ASKED, 200, seed=1)


def drawn(path: Path, samples: int, seed: int) -> Store:
    """A store of random rows at two checkpoints."""
    dim = 64
    layout = Layout(
        samples=samples, slots=1, dim=dim, dtype="float16", chunk_samples=2, shard_samples=200
    )
    identity: Identity = {
        "model": {"num_parameters": 1000},
        "projector": {"name": "identity"},
        "events": {"kind": "planned"},
        "checkpoints": [{"weights": "a", "number": 0}, {"weights": "b", "number": 1}],
    }
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        checkpoints=[CheckpointSpec(path=str(n), eta=1, number=n) for n in range(2)],
        parts=[PartSpec(layout=LayoutSpec.of(layout))],
    )
    store = create(path, spec, Manifest([f"s{n}" for n in range(samples)], ["0"] * samples))
    generator = np.random.default_rng(seed)
    for number in range(2):
        for shard in range(layout.shards):
            start, stop = layout.span(shard)
            direction = generator.standard_normal((stop - start, 1, dim)).astype(np.float16)
            rows = Rows(
                direction=direction,
                norm=generator.random((stop - start, 1), dtype=np.float32),
                loss=generator.random((stop - start, 1), dtype=np.float32),
                timestep=np.zeros((stop - start, 1), np.int32),
            )
            write_shard(store.parts[0], number, shard, rows)
    return open_store(path)
