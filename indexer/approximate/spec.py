"""What an index was built from, and how its store's place names it."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from gradstore.store.format.spec import Identity, Spec
from indexer.approximate.recall import Measured
from indexer.artifact import samples_hash
from indexer.measure import QuerySide
from indexer.measures.registry import measure_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.reader import Store
    from indexer.feature import Features
    from indexer.measure import Measure


FORMAT_VERSION: Final = 1

SPEC_NAME = "index.json"

VECTORS_NAME = "vectors.faiss"

SAMPLES_NAME = "samples.parquet"


class BuiltFrom(Spec):
    """What an index is made of, by which it is told whether it is the one that is needed.

    Attributes:
        fingerprint: fingerprint of the store.
        measure: identity of the measure.
        etas: checkpoint weights η_k.
        matched: whether slots are matched timestep by timestep.
        factory: FAISS factory string.
        dim: length of a vector.
        samples: hash of ids and digests, in row order. It comes last: what differs in nothing else
            can be brought up to date.
    """

    fingerprint: str
    measure: Identity
    etas: list[float]
    matched: bool
    factory: str
    dim: Annotated[int, Field(ge=1)]
    samples: str


class IndexSpec(BuiltFrom):
    """What an index was built from, and what it is, `index.json`.

    Attributes:
        format_version: version of the index format.
        count: number of vectors.
        measured: what it was measured to find.
        exact_from: from how many queries at once on the exact engine is taken, because it is
            faster by what building told; None if it never is.
        sha256: of `vectors.faiss`, which FAISS is given to read only if it is so.
    """

    format_version: Literal[1] = FORMAT_VERSION
    count: Annotated[int, Field(ge=1)]
    measured: Measured
    exact_from: Annotated[int, Field(ge=1)] | None = None
    sha256: str


def index_path(
    store: Store,
    measure: Measure | str,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
) -> Path:
    """Where the index of a store under a measure stands unless told otherwise.

    One of other checkpoint weights than the store's, or of matched slots, has a place of its own.
    """
    name = f"{store.name}.{indexed(measure).name.replace(':', '-')}"
    if matched:
        name += ".matched"
    if etas is not None and list(etas) != store.etas:
        given = ",".join(f"{eta:g}" for eta in etas)
        name += f".etas-{blake2b(given.encode(), digest_size=4).hexdigest()}"
    name += ".index"
    # FAISS reads files: the index of a store under a URL stands in the current folder.
    return Path(name) if store.objects.remote else store.path.with_name(name)


def indexed(measure: Measure | str) -> Measure:
    """The measure of the vectors: a preconditioned one changes the queries alone."""
    given = measure_of(measure)
    return given.indexed if isinstance(given, QuerySide) else given


def update(store: Store, features: Features) -> str:
    """The command that builds an index, or brings it up to date."""
    command = f"gradstore index --store {store.location} --measures {features.measure.name}"
    if list(features.etas) != store.etas:
        command += f" --etas {','.join(f'{eta:g}' for eta in features.etas)}"
    return command + (" --matched" if features.slots is not None else "")


def built_from(store: Store, features: Features, factory: str) -> BuiltFrom:
    """What an index of these features of a store would be built from."""
    return BuiltFrom(
        fingerprint=store.spec.fingerprint,
        measure=features.measure.identity(),
        etas=list(features.etas),
        matched=features.slots is not None,
        factory=factory,
        dim=features.width(store),
        samples=samples_hash(store),
    )
