"""Codes of the first stage with one bit per dimension, computed faster than FAISS's encoder.

RaBitQ (arXiv 2405.12497) keeps the signs of a vector's entries and one factor that makes the
estimate of an inner product unbiased. FAISS subtracts a centroid and expects randomly rotated
entries. Directions *are* random projections, so no rotation is needed. On real stores a centroid
did not change the candidates, so none is learned, and samples added later are encoded as well as
the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.product import lengths

if TYPE_CHECKING:
    from numpy.typing import NDArray


def code_bytes(dim: int) -> int:
    """Bytes of a code: one bit per dimension, and two float32."""
    return (dim + 7) // 8 + 8


def encode(vectors: NDArray[Any], scale: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Encode vectors as `faiss.IndexRaBitQ` does for inner products with a zero centroid.

    A code is `⌈dim/8⌉` bytes of signs, lowest bit first, and two float32: |x|² - |x|², which is 0
    without a centroid, and `√dim · |x|² / Σ|x_i|`, which scales the product with the signs.

    Args:
        vectors: float16 or float32 `[vectors, dim]`.
        scale: factor ≥ 0 of each vector, by default 1. It changes no sign.

    Returns:
        uint8 `[vectors, ⌈dim/8⌉ + 8]`.
    """
    count, dim = vectors.shape
    width = (dim + 7) // 8
    codes = np.zeros((count, code_bytes(dim)), np.uint8)
    # A float is above 0 if and only if the integer with the same bits is.
    bits: NDArray[Any] = vectors.view(np.int16 if vectors.dtype == np.float16 else np.int32)
    above: NDArray[np.bool_] = bits > 0
    codes[:, :width] = np.packbits(above, axis=1, bitorder="little")
    size, square = lengths(vectors)
    factor = np.zeros(count, np.float32)
    np.divide(square * np.float32(np.sqrt(dim)), size, out=factor, where=size > 0)
    if scale is not None:
        factor *= scale
    codes[:, width + 4 :] = factor.view(np.uint8).reshape(count, 4)
    return codes
