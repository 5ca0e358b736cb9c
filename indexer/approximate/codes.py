"""One bit per dimension: the codes of the first stage, made without FAISS's slower encoder.

RaBitQ (arXiv 2405.12497) keeps of a vector the signs of its entries, and one factor that makes the
estimate of an inner product unbiased. FAISS subtracts a centroid and expects entries that were
rotated at random. Directions *are* random projections, so no rotation is needed; and on real
stores a centroid did not change which candidates are found, so none is learned, and codes of
samples that are added later are as good as the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.product import lengths

if TYPE_CHECKING:
    from numpy.typing import NDArray


def code_bytes(dim: int) -> int:
    """Bytes of a code: a bit per dimension, and two float32."""
    return (dim + 7) // 8 + 8


def encode(vectors: NDArray[Any], scale: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    """Codes as `faiss.IndexRaBitQ` for inner products has them, with a centroid of zero.

    A code is `⌈dim/8⌉` bytes of signs, the lowest bit first, and two float32: |x|² less |x|², which
    is 0 without a centroid, and `√dim · |x|² / Σ|x_i|`, which scales the product with the signs.

    Args:
        vectors: float16 or float32 `[vectors, dim]`.
        scale: what each of them is multiplied with, ≥ 0; by default 1. It changes no sign.

    Returns:
        uint8 `[vectors, ⌈dim/8⌉ + 8]`.
    """
    count, dim = vectors.shape
    width = (dim + 7) // 8
    codes = np.zeros((count, code_bytes(dim)), np.uint8)
    # A float is above 0 just when the integer of the same bits is.
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
