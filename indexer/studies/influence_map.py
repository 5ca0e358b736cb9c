"""A map of training samples: samples that teach alike lie near each other.

Features are projected onto their two first principal axes, or arranged by UMAP where that is
installed. A map is a folder `NAME.map` beside the store with `map.json`, which records what it was
made from, and `points.npy`. After samples are added or deleted it is made anew.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from gradstore.errors import SearchIndexError
from gradstore.store.format.spec import Spec
from indexer.artifact import (
    differing,
    exchanged,
    file_hash,
    read_array,
    read_spec,
    stands,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.exact.engine import ExactEngine

_log = logging.getLogger("gradstore")

_SPEC_NAME: Final = "map.json"
_POINTS_NAME: Final = "points.npy"
# Samples, and bytes of their features, that the axes are found from.
_DRAWN: Final = 2048
_DRAWN_BYTES: Final = 512 * 2**20
# Axes that UMAP arranges.
_AXES: Final = 50


class _MadeFrom(Spec):
    """Inputs of a map; `samples`, a hash of ids and digests, is compared last."""

    fingerprint: str
    measure: str
    etas: list[float]
    samples: str


class _MapSpec(_MadeFrom):
    """Content of `map.json`."""

    format_version: Literal[1] = 1
    method: Literal["pca", "umap"]
    shares: list[float]
    sha256: str


@dataclass(frozen=True)
class InfluenceMap:
    """A map of a store's samples.

    Attributes:
        points: float32 `[samples, 2]`.
        method: `pca` or `umap`.
        shares: of `pca`, the share of the features' variance along each axis, as measured on the
            samples that the axes were found from.
    """

    points: NDArray[np.float32]
    method: str
    shares: tuple[float, ...]


def map_path(store: Store) -> Path:
    """Path of a store's map, beside its indexes."""
    name = f"{store.name}.map"
    return Path(name) if store.objects.remote else store.path.with_name(name)


def influence_map(engine: ExactEngine) -> InfluenceMap:
    """The map of an engine's store, made now unless it is there.

    Args:
        engine: its features are what is mapped.

    Raises:
        SearchIndexError: if the map is damaged.
    """
    store = engine.store
    path = map_path(store)
    wanted = _MadeFrom(
        fingerprint=store.spec.fingerprint,
        measure=engine.features.measure.name,
        etas=list(engine.features.etas),
        samples=store.samples_hash,
    )
    if stands(path):
        spec = read_spec("map", path, _SPEC_NAME, _MapSpec, "gradstore serve")
        if differing(spec, wanted) is None:
            return _read(path, spec, store.samples)
    return _made(engine, path, wanted)


def principal(engine: ExactEngine, axes: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Coordinates of all samples along the first principal axes of their features.

    Axes are found from samples drawn at random, or from all if there are few; then one pass over
    the store projects every sample.

    Returns:
        float32 `[samples, axes]`, and each axis's share of the variance; fewer axes if the samples
        span fewer.
    """
    store, features = engine.store, engine.features
    most = min(store.samples, _DRAWN, max(2, _DRAWN_BYTES // (4 * features.dim(store))))
    drawn = np.sort(np.random.default_rng(0).choice(store.samples, most, replace=False))
    vectors = features.take(store, drawn)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    vectors -= mean
    # The products of few samples have the same spectrum as the covariance of many dimensions.
    values, sides = np.linalg.eigh((vectors @ vectors.T).astype(np.float64))
    some = slice(None, -1 - min(axes, most), -1)
    values, sides, whole = values[some], sides[:, some], max(float(values.sum()), 1e-300)
    known = values > 1e-7 * whole
    directions = (sides[:, known] / np.sqrt(values[known])).T.astype(np.float32) @ vectors
    out = np.zeros((store.samples, max(2, len(directions))), np.float32)
    if len(directions):
        offset = directions @ mean
        for samples, scores in engine.scores(directions):
            out[samples, : len(directions)] = scores.T - offset
    return out, values[known] / whole


def _made(engine: ExactEngine, path: Path, wanted: _MadeFrom) -> InfluenceMap:
    method: Literal["pca", "umap"] = "umap" if find_spec("umap") is not None else "pca"
    points, shares = principal(engine, _AXES if method == "umap" else 2)
    if method == "umap":
        arranged = import_module("umap").UMAP(random_state=0).fit_transform(points)
        points, shares = np.ascontiguousarray(arranged, np.float32), shares[:0]
    found = InfluenceMap(points, method, tuple(shares.tolist()))
    try:
        with exchanged("map", path) as building:
            np.save(building / _POINTS_NAME, points, allow_pickle=False)
            spec = _MapSpec(
                **wanted.model_dump(),
                method=method,
                shares=list(found.shares),
                sha256=file_hash(building / _POINTS_NAME),
            )
            (building / _SPEC_NAME).write_text(spec.model_dump_json(indent=2) + "\n")
    except SearchIndexError as error:
        _log.warning("%s The map is made anew next time.", error)
    return found


def _read(path: Path, spec: _MapSpec, samples: int) -> InfluenceMap:
    file = path / _POINTS_NAME
    try:
        points = read_array(file, spec.sha256, (samples, 2), np.float32)
    except (OSError, ValueError, MemoryError) as error:
        raise SearchIndexError(
            f"map {path} is damaged: {error}. Remove {path}; it is made anew."
        ) from error
    return InfluenceMap(points, spec.method, tuple(spec.shares))
