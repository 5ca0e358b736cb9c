"""The map of the training samples, as the page draws it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import QueryError
from indexer.studies.influence_map import influence_map
from query.serve.answers import detail
from query.serve.library import Kept
from query.serve.taking import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from query.serve.library import Library

# Features under this measure are mapped: all gradients have the same weight, so that samples lie
# by what they teach and not by how loud they are. Loudness is a colour.
_MEASURE: Final = "retrac"
# Colours that can be told apart.
_MOST_NAMED: Final = 10
_RANGES: Final = 5
_METHODS: Final = {
    "pca": "The two first principal axes of the samples' features under ReTrac",
    "umap": "UMAP of the 50 first principal axes of the samples' features under ReTrac",
}


class Maps:
    """The map of a library's training samples, and its colours.

    Args:
        library: the stores.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._kept = Kept[dict[str, Any]](8)

    def points(self) -> dict[str, Any]:
        """Where each training sample lies, in store order.

        Returns:
            `x` and `y`: whole numbers from 0 to `width` and `height`, the larger of which is
            65,535; `about`: what they are; `colours`: names for `colours`.
        """
        return self._kept.of("points", self._points)

    def _points(self) -> dict[str, Any]:
        found = influence_map(self._library.exact(_MEASURE, tuple(self._library.store.etas)))
        low, high = found.points.min(axis=0), found.points.max(axis=0)
        scale = 65_535 / max(float((high - low).max()), 1e-30)
        places = np.rint((found.points - low) * scale).astype(np.int64)
        width, height = np.maximum(places.max(axis=0), 1).tolist()
        x, y = places.T.tolist()
        shares = " and ".join(f"{share:.0%}" for share in found.shares)
        about = _METHODS[found.method] + (f": {shares} of their variance." if shares else ".")
        return {
            "x": x,
            "y": y,
            "width": width,
            "height": height,
            "about": about,
            "colours": ["norm", "timestep", *self._columns],
        }

    @property
    def _columns(self) -> list[str]:
        return list(self._library.store.manifest.metadata)

    def colours(self, by: str) -> dict[str, Any]:
        """A value of each training sample to colour it by, in store order.

        Args:
            by: `norm`, the mean norm of its rows; `timestep`, that of its row of largest norm; or a
                column.

        Returns:
            `names` of the colours, `ordered` if they are ranges of a number with as many samples
            each; `values`: the number of each sample's colour; that of rare values and of none is
            the number of names.

        Raises:
            QueryError: if there is no such column.
        """
        if by not in {"norm", "timestep", *self._columns}:
            raise QueryError(f"{self._library.store.name} has no column {by!r}.")
        return self._kept.of(("colours", by), lambda: self._colours(by))

    def _colours(self, by: str) -> dict[str, Any]:
        store = self._library.store
        if by in self._columns:
            column = [None if one is None else str(one) for one in store.manifest.metadata[by]]
            count = Counter(one for one in column if one is not None)
            names = sorted(
                (name for name, _ in count.most_common(_MOST_NAMED)),
                key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name),
            )
            place = {name: number for number, name in enumerate(names)}
            rest = len(names)
            values = [rest if one is None else place.get(one, rest) for one in column]
            return {"names": names, "values": values, "ordered": False}
        norms, steps = (
            np.concatenate([store.column(name, k) for k in range(store.checkpoints)], axis=1)
            for name in ("norm", "timestep")
        )
        found: NDArray[Any] = norms.mean(axis=1, dtype=np.float64)
        if by == "timestep":
            found = np.take_along_axis(steps, norms.argmax(axis=1)[:, None], axis=1)[:, 0]
        # By rank, because a few large norms would leave one colour to all others.
        edges = np.unique(np.quantile(found, np.linspace(0, 1, _RANGES + 1)[:-1]))
        return {
            "names": [f"from {edge:.3g}" for edge in edges.tolist()],
            "values": (np.searchsorted(edges, found, side="right") - 1).tolist(),
            "ordered": True,
        }

    def samples(self, places: Sequence[int]) -> dict[str, Any]:
        """Training samples by their numbers in the store.

        Raises:
            QueryError: if there is no such number, or there are too many or none.
        """
        if not 0 < len(places) <= MOST:
            raise QueryError(f"{len(places):,} samples are selected; select 1 to {MOST:,}.")
        if max(places) >= self._library.store.samples or min(places) < 0:
            raise QueryError(f"there is no training sample {max(places)}.")
        return {"found": [detail(self._library, place) for place in places]}
