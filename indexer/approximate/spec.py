"""Specification of an index, and its default path."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from gradstore.store.format.spec import Identity, Spec
from gradstore.store.opening import as_store
from indexer.approximate.recall import Measured
from indexer.measures.registry import indexed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from indexer.feature import Features
    from indexer.measure import Measure


FORMAT_VERSION: Final = 1

SPEC_NAME = "index.json"

VECTORS_NAME = "vectors.faiss"

SAMPLES_NAME = "samples.parquet"


class BuiltFrom(Spec):
    """Inputs of an index, compared to decide whether an existing index can be used.

    Attributes:
        fingerprint: fingerprint of the store.
        measure: identity of the measure.
        etas: checkpoint weights η_k.
        matched: whether slots are matched by timestep.
        factory: FAISS factory string.
        dim: length of a vector.
        samples: hash of the samples in order. It is compared last: an index that differs
            only here can be updated.
    """

    fingerprint: str
    measure: Identity
    etas: list[float]
    matched: bool
    factory: str
    dim: Annotated[int, Field(ge=1)]
    samples: str


class IndexSpec(BuiltFrom):
    """Content of `index.json`: the inputs and properties of an index.

    Attributes:
        format_version: version of the index format.
        count: number of vectors.
        measured: measured recall.
        exact_from: smallest batch of queries for which the exact engine is used, because it is
            faster by the build's measurement; None if it never is.
        sha256: SHA-256 of `vectors.faiss`, verified before FAISS reads the file.
    """

    format_version: Literal[1] = FORMAT_VERSION
    count: Annotated[int, Field(ge=1)]
    measured: Measured
    exact_from: Annotated[int, Field(ge=1)] | None = None
    sha256: str


def index_path(
    store: StoreLike,
    measure: Measure | str,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
) -> Path:
    """Default path of the index of a store under a measure.

    Other checkpoint weights than the store's, and matched slots, have their own paths.

    Examples:
        >>> import gradstore as gs
        >>> gs.index_path("train.gradstore", "power:0.5").name
        'train.power-0.5.index'
    """
    store = as_store(store)
    name = f"{store.name}.{indexed(measure).name.replace(':', '-')}"
    if matched:
        name += ".matched"
    if etas is not None and list(etas) != store.etas:
        given = ",".join(f"{eta:g}" for eta in etas)
        name += f".etas-{blake2b(given.encode(), digest_size=4).hexdigest()}"
    name += ".index"
    # FAISS reads local files, so the index of a store under a URL is in the current folder.
    return Path(name) if store.objects.remote else store.path.with_name(name)


def update(store: Store, features: Features) -> str:
    """Command that builds or updates an index."""
    command = f"gradstore index --store {store.location} --measures {features.measure.name}"
    if list(features.etas) != store.etas:
        command += f" --etas {','.join(f'{eta:g}' for eta in features.etas)}"
    return command + (" --matched" if features.slots is not None else "")


def built_from(store: Store, features: Features, factory: str) -> BuiltFrom:
    """Inputs of an index of these features of a store."""
    return BuiltFrom(
        fingerprint=store.spec.fingerprint,
        measure=features.measure.identity(),
        etas=list(features.etas),
        matched=features.slots is not None,
        factory=factory,
        dim=features.width(store),
        samples=store.samples_hash,
    )
