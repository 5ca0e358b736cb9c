"""Which FAISS index: by name, whose sizes follow the store's, or by FAISS's own factory string."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import ConfigError, DependencyError
from indexer.approximate.codes import code_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

# One bit per dimension, whatever the size: from a few thousand samples on nothing else finds as
# much in as little, and where reading the store is faster the exact engine is taken (`choice`).
DEFAULT: Final = "RaBitQ"
NAMES: Final[Mapping[str, str]] = {
    "rabitq": "RaBitQ",
    "fp16": "SQfp16",
    "flat": "Flat",
    "hnsw": "HNSW32,SQ8",
    "ivf": "IVF{lists},RaBitQ",
}
# Of an inverted file by name, so many lists are searched: a fourth of the time, and most of what
# is to be found.
_SEARCHED: Final = 4
# Indexes that must be trained are trained on so many samples at most, of which FAISS wants so many
# per list.
TRAINED_ON: Final = 16_384
_PER_LIST: Final = 39


def faiss_module() -> Any:
    """FAISS, whichever of its builds is installed.

    Raises:
        DependencyError: if there is none.
    """
    try:
        import faiss
    except ImportError as error:
        raise DependencyError(
            f"FAISS cannot be imported ({error}). Install one of its two builds: `pip install "
            "'gradstore[cpu]'`, or `pip install 'gradstore[gpu]'` on a machine with an NVIDIA GPU."
        ) from error
    return faiss


def recorded(factory: str) -> str:
    """How an index's `index.json` names it: as FAISS does, but for a name whose sizes vary."""
    known = NAMES.get(factory, factory)
    return factory if "{" in known else known


def factory_string(factory: str, samples: int) -> str:
    """What FAISS calls an index, given by one of `NAMES` or by FAISS's own factory string.

    An inverted file by name has about 4·√samples lists, or as many as can be trained; a power of
    two.
    """
    if factory not in NAMES:
        return factory
    lists = min(4 * samples**0.5, min(samples, TRAINED_ON) / _PER_LIST)
    return NAMES[factory].format(lists=1 << int(math.log2(max(1.0, lists))))


def empty_vectors(factory: str, dim: int, samples: int) -> Any:
    """A FAISS index of no vectors, not trained yet.

    Args:
        factory: one of `NAMES`, or a factory string.
        dim: length of a vector.
        samples: how many vectors it will hold.

    Raises:
        ConfigError: if FAISS knows no such factory string.
    """
    faiss = faiss_module()
    try:
        vectors = faiss.index_factory(
            dim, factory_string(factory, samples), faiss.METRIC_INNER_PRODUCT
        )
    except RuntimeError as error:
        raise ConfigError(
            f"FAISS knows no index {factory!r} for vectors of length {dim}: "
            f"{str(error).splitlines()[-1]}. Use {', '.join(NAMES)}, or see the FAISS wiki, 'The "
            "index factory'."
        ) from error
    if factory in NAMES and isinstance(vectors, faiss.IndexIVF):
        vectors.nprobe = max(1, vectors.nlist // _SEARCHED)
    return vectors


def estimated_bytes(factory: str, dim: int, samples: int) -> int:
    """About how many bytes an index will take, in memory and on the disk, before it is built.

    Args:
        factory: one of `NAMES`, or a factory string.
        dim: length of a vector.
        samples: how many vectors it will hold.

    Raises:
        ConfigError: if FAISS knows no such factory string.
    """
    if factory_string(factory, samples) == DEFAULT:  # asked before there may be FAISS
        return samples * code_bytes(dim)
    faiss, vectors = faiss_module(), empty_vectors(factory, dim, samples)
    fixed = len(faiss.serialize_index(vectors))
    if isinstance(vectors, faiss.IndexHNSW):
        links = vectors.hnsw.nb_neighbors(1)
        # Twice as many at the lowest level, of which each has its place and its height; one of so
        # many samples is on the next level, and so on.
        graph = 4 * (2 * links + 3) + 4 * links / (links - 1)
        return fixed + int(samples * (faiss.downcast_index(vectors.storage).sa_code_size() + graph))
    if isinstance(vectors, faiss.IndexIVF):  # with the number of each vector, and the centroids
        return fixed + samples * (int(vectors.code_size) + 8) + 4 * int(vectors.nlist) * dim
    return fixed + samples * int(vectors.sa_code_size())
