"""Scores of blocks of stored rows with many queries."""

from __future__ import annotations

from threading import local
from typing import TYPE_CHECKING

import numpy as np

from indexer.product import Multiplier

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features, Tile


class Products:
    """Multiplies queries with the parts of features.

    Args:
        store: the training store.
        features: computes features from its rows.
        queries: features of the queries, float32 `[queries, dim]`.
        exact: multiply in float32; by default the fastest way on this machine. It may round both
            sides to two bytes, with an error of about 0.3% of the typical score of two unrelated
            gradients of the same norms.

    Attributes:
        rounds: whether products are rounded to two bytes.
    """

    def __init__(
        self,
        store: Store,
        features: Features,
        queries: NDArray[np.float32],
        *,
        exact: bool = False,
    ) -> None:
        width = features.width(store)
        dtype = features.dtype(store)
        self._parts = {
            place: Multiplier(queries[:, place * width : (place + 1) * width], dtype, exact=exact)
            for place in features.checkpoints
        }
        self.rounds = any(one.rounds for one in self._parts.values())
        self._queries = len(queries)
        self._own = local()

    def __call__(self, samples: int, tiles: Iterable[Tile]) -> NDArray[np.float32]:
        """Scores of a block of `samples` samples, float32 `[queries, samples]`.

        The result is overwritten by this thread's next call: allocating memory for every block
        would cost as much as reading the block.
        """
        import torch

        if getattr(self._own, "samples", 0) < samples:
            self._own.samples = samples
            self._own.products = {place: one.empty(samples) for place, one in self._parts.items()}
            self._own.scales = {place: np.empty(samples, np.float32) for place in self._parts}
            self._own.scores = torch.empty(self._queries * samples)
        products, scales = self._own.products, self._own.scales
        for here, parts in tiles:
            for place, (rows, scale) in parts.items():
                self._parts[place].multiply(rows, products[place][here])
                scales[place][here] = scale
        scores: torch.Tensor = self._own.scores[: self._queries * samples].view(-1, samples)
        for number, (place, one) in enumerate(self._parts.items()):
            factor = torch.from_numpy(scales[place][:samples] * one.largest)
            product = products[place][:samples].T.float()
            if number == 0:
                torch.mul(product, factor, out=scores)
            else:
                scores.addcmul_(product, factor)
        return np.asarray(scores.numpy())
