"""Influence of a sample on itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from indexer.dots import dots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features


def self_influence(store: Store, features: Features) -> NDArray[np.float32]:
    """Influence of every sample on itself, ⟨feature, feature⟩, float32 `[samples]`; one pass.

    Hard, mislabelled and atypical samples have high self-influence (TracIn, arXiv 2002.08484,
    section 4.1).

    Examples:
        >>> import gradstore as gs
        >>> store = gs.open_store("train.gradstore")
        >>> gs.self_influence(store, gs.Features.of(store, "tracin")).shape
        (7,)
    """
    found = [dots(block, block) for _, block in features.blocks(store)]
    return np.concatenate(found).astype(np.float32)
