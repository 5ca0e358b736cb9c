"""Choice of the FAISS index: a name, whose sizes depend on the store, or a factory string."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import ConfigError, DependencyError
from indexer.approximate.codes import code_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

# One bit per dimension for every store size. From a few thousand samples on, no other encoding
# finds as much in as few bytes. Where a pass is faster, the exact engine is used (`exact_from`).
DEFAULT: Final = "RaBitQ"
NAMES: Final[Mapping[str, str]] = {
    "rabitq": "RaBitQ",
    "fp16": "SQfp16",
    "flat": "Flat",
    "hnsw": "HNSW32,SQ8",
    "ivf": "IVF{lists},RaBitQ",
}
# A quarter of a named inverted file's lists is searched. This takes a quarter of the time and finds
# most of the nearest samples.
_SEARCHED: Final = 4
# Maximum number of training samples of indexes that need training, and the number of training
# samples that FAISS requests per list.
TRAINED_ON: Final = 16_384
_PER_LIST: Final = 39
# Bytes of the file of an index: of names and sizes, per dimension of a vector, and per vector.
_FREE_BYTES: Final = 1 << 20
_DIMENSION_BYTES: Final = 8
_VECTOR_BYTES: Final = 4096


def faiss_module() -> Any:
    """Import FAISS, whichever of its two builds is installed.

    Raises:
        DependencyError: if FAISS is not installed.
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
    """Factory as recorded in `index.json`: FAISS's string, or the name if its sizes vary."""
    known = NAMES.get(factory, factory)
    return factory if "{" in known else known


def factory_string(factory: str, samples: int) -> str:
    """FAISS factory string for one of `NAMES`; other strings are returned unchanged.

    A named inverted file has about 4·√samples lists, limited by the number of training samples and
    rounded down to a power of two.
    """
    if factory not in NAMES:
        return factory
    lists = min(4 * samples**0.5, min(samples, TRAINED_ON) / _PER_LIST)
    return NAMES[factory].format(lists=1 << int(math.log2(max(1.0, lists))))


def empty_vectors(factory: str, dim: int, samples: int) -> Any:
    """Create an empty, untrained FAISS index.

    Args:
        factory: one of `NAMES`, or a factory string.
        dim: length of a vector.
        samples: number of vectors it will hold.

    Raises:
        ConfigError: if FAISS rejects the factory string.
    """
    faiss = faiss_module()
    try:
        vectors = faiss.index_factory(
            dim, factory_string(factory, samples), faiss.METRIC_INNER_PRODUCT
        )
    except (RuntimeError, TypeError) as error:  # the string may be no Unicode text
        raise ConfigError(
            f"FAISS knows no index {factory!r} for vectors of length {dim}: "
            f"{str(error).splitlines()[-1]}. Use {', '.join(NAMES)}, or see the FAISS wiki, 'The "
            "index factory'."
        ) from error
    if factory in NAMES and isinstance(vectors, faiss.IndexIVF):
        vectors.nprobe = max(1, vectors.nlist // _SEARCHED)
    return vectors


def most_bytes(factory: str, dim: int, samples: int) -> int:
    """Bytes that the file of an index may have, however it is trained.

    Flat vectors take 4 bytes per dimension, a named kind's links 300 bytes a vector. Centroids and
    codebooks are no more than the samples that they are trained on.

    Args:
        factory: as `recorded`.
        dim: length of a vector.
        samples: number of vectors.

    Examples:
        >>> from indexer.approximate.factory import most_bytes
        >>> most_bytes("RaBitQ", 4096, 1000) < most_bytes("Flat", 4096, 1000) < 60e6
        True
    """
    if factory == DEFAULT:  # a centroid, and one code a vector
        return _FREE_BYTES + 4 * dim + samples * code_bytes(dim)
    trained = 4 * dim * min(samples, TRAINED_ON)
    return _FREE_BYTES + trained + samples * (_DIMENSION_BYTES * dim + _VECTOR_BYTES)


def estimated_bytes(factory: str, dim: int, samples: int) -> int:
    """Estimate the bytes of an index in memory and on disk before it is built.

    Args:
        factory: one of `NAMES`, or a factory string.
        dim: length of a vector.
        samples: number of vectors it will hold.

    Raises:
        ConfigError: if FAISS rejects the factory string.
    """
    if factory_string(factory, samples) == DEFAULT:  # avoids FAISS, which may not be installed
        return samples * code_bytes(dim)
    faiss, vectors = faiss_module(), empty_vectors(factory, dim, samples)
    fixed = len(faiss.serialize_index(vectors))
    if isinstance(vectors, faiss.IndexHNSW):
        links = vectors.hnsw.nb_neighbors(1)
        # The lowest level has 2 × links per sample, plus an offset and a level number. Each higher
        # level has 1/links of the samples of the level below.
        graph = 4 * (2 * links + 3) + 4 * links / (links - 1)
        return fixed + int(samples * (faiss.downcast_index(vectors.storage).sa_code_size() + graph))
    if isinstance(vectors, faiss.IndexIVF):  # plus the 8-byte id of each vector, and the centroids
        return fixed + samples * (int(vectors.code_size) + 8) + 4 * int(vectors.nlist) * dim
    return fixed + samples * int(vectors.sa_code_size())
