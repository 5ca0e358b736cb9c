"""TRAK's kernel, kept beside the indexes, so that a store is not read anew for every question.

A kernel is a folder `NAME.trak.kernel` with `kernel.json`, which says what it was built from, and
`K.npy` per checkpoint, ΦᵀΦ in float64. It is refused for any other store, and for the same store
after samples were added or deleted. It serves every λ, and all weights of checkpoints: those weigh
what comes out of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from uuid import uuid4

import numpy as np
from pydantic import Field, ValidationError

from gradstore.errors import SearchIndexError
from gradstore.objects import objects_at
from gradstore.spec import Spec
from indexer.precondition import Trak, grams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gradstore.reader import Store

FORMAT_VERSION: Final = 1
SPEC_NAME: Final = "kernel.json"


class KernelFrom(Spec):
    """What a kernel is made of.

    Attributes:
        fingerprint: fingerprint of the store, which covers the checkpoints' weights.
        dim: length of a direction.
        samples: hash of ids and digests, in row order. It comes last: what differs in nothing else
            can be brought up to date.
    """

    fingerprint: str
    dim: Annotated[int, Field(ge=1)]
    samples: str


class KernelSpec(KernelFrom):
    """What a kernel was built from, and what it is, `kernel.json`.

    Attributes:
        format_version: version of the kernels' format.
        sha256: of each checkpoint's file.
    """

    format_version: Literal[1] = FORMAT_VERSION
    sha256: list[str]


def kernel_path(store: Store) -> Path:
    """Where the kernel of a store stands: beside its indexes."""
    name = f"{store.name}.trak.kernel"
    return Path(name) if store.objects.remote else store.path.with_name(name)


def build_kernel(store: Store) -> Path:
    """Build the kernel of a store by one pass over it, unless it stands there already.

    One that was built before samples were added or deleted is built anew.

    Raises:
        UnsealedError: if the store is not complete.
        SearchIndexError: if another kernel stands there, which is not changed, or it cannot be
            written.
    """
    path, wanted = kernel_path(store), _built_from(store)
    store.require_complete()
    if path.exists() and _differing(_spec(path, store), wanted) != "samples":
        _require_it(path, store)
        return path
    building = path.with_name(f".{path.name}.building-{uuid4().hex}")
    old = path.with_name(f".{path.name}.old-{uuid4().hex}")
    try:
        building.mkdir(parents=True)
        for place, gram in enumerate(grams(store)):
            np.save(building / f"{place}.npy", gram, allow_pickle=False)
            del gram
        hashes = [_sha256(building / f"{place}.npy") for place in range(store.checkpoints)]
        spec = KernelSpec(**wanted.model_dump(), sha256=hashes)
        (building / SPEC_NAME).write_text(spec.model_dump_json(indent=2) + "\n")
        if path.exists():
            path.rename(old)
        building.rename(path)
    except OSError as error:
        raise SearchIndexError(
            f"kernel {path} cannot be written: {error}. Make room, and run the same command again."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return path


def fitted_by_kernel(measure: Trak, store: Store) -> Trak:
    """The measure fitted to a store, from its kernel.

    Raises:
        SearchIndexError: if there is none, it is damaged, or it was built from something else.
    """
    path = kernel_path(store)
    spec = _require_it(path, store)
    return measure.of(_read(path, spec, store))


def _require_it(path: Path, store: Store) -> KernelSpec:
    spec, wanted = _spec(path, store), _built_from(store)
    name = _differing(spec, wanted)
    if name == "samples":
        raise SearchIndexError(
            f"kernel {path} was built from other samples than {store.location} has now. Bring it "
            f"up to date: {_update(store)}"
        )
    if name is not None:
        raise SearchIndexError(
            f"kernel {path} was built from something else: {name} is {getattr(spec, name)!r}, but "
            f"{store.location} needs {getattr(wanted, name)!r}. {_mend(path, store)}"
        )
    if len(spec.sha256) != store.checkpoints:
        raise SearchIndexError(
            f"kernel {path} is damaged: it has {len(spec.sha256)} checkpoints, not "
            f"{store.checkpoints}. {_mend(path, store)}"
        )
    return spec


def _read(path: Path, spec: KernelSpec, store: Store) -> Iterator[NDArray[np.float64]]:
    for place, expected in enumerate(spec.sha256):
        file = path / f"{place}.npy"
        try:
            if not file.is_file() or _sha256(file) != expected:
                raise OSError("it is not what was written")
            gram = np.load(file, allow_pickle=False)
            if gram.dtype != np.float64 or gram.shape != (store.dim, store.dim):
                raise OSError(f"it holds {gram.dtype} {gram.shape}")
        except (OSError, ValueError) as error:
            raise SearchIndexError(
                f"kernel {path} is damaged: {file.name} cannot be read: {error}. "
                f"{_mend(path, store)}"
            ) from error
        yield gram
        del gram


def _spec(path: Path, store: Store) -> KernelSpec:
    if not path.exists():
        raise SearchIndexError(f"there is no kernel {path}. Build it: {_update(store)}")
    try:
        return KernelSpec.model_validate_json(objects_at(path).read(SPEC_NAME))
    except (OSError, ValidationError) as error:
        raise SearchIndexError(
            f"{path} exists and is not a whole kernel ({SPEC_NAME} is missing or damaged, or of "
            f"another version). {_mend(path, store)}"
        ) from error


def _built_from(store: Store) -> KernelFrom:
    content = json.dumps([list(store.manifest.ids), list(store.manifest.digests)])
    return KernelFrom(
        fingerprint=store.spec.fingerprint,
        dim=store.dim,
        samples=blake2b(content.encode(), digest_size=16).hexdigest(),
    )


def _differing(found: KernelFrom, wanted: KernelFrom) -> str | None:
    names = KernelFrom.model_fields
    return next((name for name in names if getattr(found, name) != getattr(wanted, name)), None)


def _update(store: Store) -> str:
    return f"gradstore index --store {store.location} --measures trak"


def _mend(path: Path, store: Store) -> str:
    return f"Remove {path} and build it again: {_update(store)}"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
