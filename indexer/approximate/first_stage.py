"""First stage of a search: candidates from encoded features that FAISS holds in memory."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import ConfigError, SearchIndexError
from indexer.approximate.codes import code_bytes, encode
from indexer.approximate.factory import TRAINED_ON, empty_vectors, faiss_module
from indexer.product import as_float32

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import CheckpointPart, Features

# Bits per entry of a quantised query. Compared with 2: 4 bits take 50% longer and need the same
# number of candidates; 1 bit needs twice as many candidates; 0, FAISS's default, takes 1000 times
# as long (`benchmarks/notes/search.md`).
QUERY_BITS: Final = 2
_SPARE_BYTES: Final = 1 << 20
_FEW_LISTS: Final = 1024
_READING = Lock()


class FirstStage:
    """A FAISS index of features, summed over checkpoints.

    Checkpoints are projected independently, so products between their parts are noise. A vector as
    long as one checkpoint's part finds as good candidates as the concatenation of all parts.

    Args:
        vectors: the FAISS index.
        checkpoints: number of parts of a feature.
        query_bits: bits per entry of a quantised query, for vectors of one bit per dimension.

    Attributes:
        query_bits: as given.
    """

    def __init__(self, vectors: Any, checkpoints: int, query_bits: int = QUERY_BITS) -> None:
        self._vectors = vectors
        self._checkpoints = checkpoints
        self.query_bits = query_bits
        # Only one-bit RaBitQ is encoded here; RaBitQ with more bits uses FAISS's encoder.
        signs = isinstance(vectors, faiss_module().IndexRaBitQ)
        self._by_signs = signs and vectors.code_size == code_bytes(vectors.d)

    @classmethod
    def empty(cls, factory: str, store: Store, features: Features) -> FirstStage:
        """Create an empty stage; train it on random samples if its kind needs training.

        Raises:
            ConfigError: if FAISS rejects the factory string, or needs more samples to train.
        """
        dim = features.width(store)
        vectors = empty_vectors(factory, dim, store.samples)
        stage = cls(vectors, len(features.etas))
        if stage._by_signs:
            vectors.train(np.zeros((1, dim), np.float32))  # sets a zero centroid, see `codes`
        elif not vectors.is_trained:
            chosen = np.random.default_rng(0).permutation(store.samples)[:TRAINED_ON]
            try:
                vectors.train(stage._folded(features.take(store, np.sort(chosen))))
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].rpartition("failed: ")[2]
                raise ConfigError(
                    f"FAISS cannot train an index {factory!r} on {len(chosen):,} samples of "
                    f"{store.location}: {reason}. Use --factory rabitq, which needs no training, "
                    "or a string with fewer lists or codes."
                ) from error
        return stage

    @classmethod
    def read(cls, file: Path, features: Features, query_bits: int, lists: int) -> FirstStage:
        """Read a stage from a file, which has at most so many lists.

        FAISS allocates what a file claims before it reads it. No list in it is longer than it is.
        """
        nbytes = file.stat().st_size + _SPARE_BYTES
        with _claims_limited(nbytes, _FEW_LISTS + lists):
            vectors = faiss_module().read_index(str(file))
        return cls(vectors, len(features.etas), query_bits)

    def write(self, file: Path) -> None:
        """Write the stage to a file."""
        faiss_module().write_index(self._vectors, str(file))

    def __len__(self) -> int:
        return int(self._vectors.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.d)

    def encoded(self, parts: Mapping[int, CheckpointPart]) -> NDArray[Any]:
        """Encode samples for `add`, given each checkpoint's part of their features.

        Returns:
            Codes if they are computed here, uint8 `[samples, bytes]`; else vectors, float32
            `[samples, dim]`.
        """
        (vectors, scale), *others = parts.values()
        if others or (scale < 0).any() or not self._by_signs:
            vectors = as_float32(vectors) * scale[:, None]
            for more, factor in others:
                vectors += as_float32(more) * factor[:, None]
            scale = np.ones(len(vectors), np.float32)
        return encode(vectors, scale) if self._by_signs else vectors

    def add(self, encoded: NDArray[Any]) -> None:
        """Add samples encoded by `encoded`.

        Raises:
            ConfigError: if this kind of index takes no samples piece by piece.
        """
        add = self._vectors.add_sa_codes if self._by_signs else self._vectors.add
        try:
            add(encoded)
        except RuntimeError as error:
            raise ConfigError(
                f"{type(self._vectors).__name__} of FAISS cannot be filled piece by piece: "
                f"{str(error).splitlines()[-1]}. Use another --factory."
            ) from error

    def remove(self, rows: NDArray[np.int64]) -> bool:
        """Remove samples; return False if this kind of index cannot."""
        try:
            self._vectors.remove_ids(rows)
        except RuntimeError:
            return False
        return True

    def search(
        self, queries: NDArray[np.float32], count: int, keep: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Candidates of each query, `[queries, count]`, restricted to `keep` if given.

        Indexes that search only a part of their vectors may find fewer; the rest is -1.

        Raises:
            SearchIndexError: if this kind of index cannot search among some samples only.
        """
        asked = np.ascontiguousarray(self._folded(queries))
        parameters = self._parameters(count, keep)
        try:
            found: NDArray[np.int64] = self._vectors.search(asked, count, params=parameters)[1]
        except RuntimeError as error:
            if keep is None:
                raise
            raise SearchIndexError(
                f"{type(self._vectors).__name__} of FAISS cannot search among some samples only: "
                f"{str(error).splitlines()[-1]}. Search without the index, or build another kind."
            ) from error
        return found

    def _parameters(self, count: int, keep: NDArray[np.int64] | None) -> Any:
        """FAISS search parameters; each kind of index has its own class."""
        faiss, vectors = faiss_module(), self._vectors
        given = {} if keep is None else {"sel": faiss.IDSelectorBatch(keep)}
        if self._by_signs:
            return faiss.RaBitQSearchParameters(qb=self.query_bits, centered=False, **given)
        if isinstance(vectors, faiss.IndexIVFRaBitQ):
            return faiss.IVFRaBitQSearchParameters(
                qb=self.query_bits, centered=False, nprobe=vectors.nprobe, **given
            )
        if keep is None:
            return None
        if isinstance(vectors, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=vectors.nprobe, **given)
        if isinstance(vectors, faiss.IndexHNSW):
            reach = max(vectors.hnsw.efSearch, count)
            return faiss.SearchParametersHNSW(efSearch=reach, **given)
        return faiss.SearchParameters(**given)

    def _folded(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._checkpoints == 1:
            return features
        parts = features.reshape(len(features), self._checkpoints, -1)
        return np.asarray(parts.sum(axis=1))


@contextmanager
def _claims_limited(nbytes: int, lists: int) -> Iterator[None]:
    """Context in which FAISS refuses longer lists, or more of them, if this FAISS can (1.15)."""
    faiss = faiss_module()
    limits = {"vector_byte": nbytes, "loop": lists}
    with _READING, ExitStack() as usual:  # the limits are the process's
        for name, most in limits.items():
            setter = getattr(faiss, f"set_deserialization_{name}_limit", None)
            if setter is not None:
                usual.callback(setter, getattr(faiss, f"get_deserialization_{name}_limit")())
                setter(most)
        yield


def faiss_description() -> str:
    """Version, CPU instructions and number of GPUs of the installed FAISS build."""
    faiss = faiss_module()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{faiss.get_compile_options().strip()}, {gpus} GPUs"
