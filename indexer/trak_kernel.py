"""TRAK's kernel, cached beside the indexes, so that queries do not read the whole store again.

A kernel is a folder `NAME.trak.kernel` with `kernel.json`, which records what it was built from,
and one `K.npy` per checkpoint, ΦᵀΦ in float64. It is refused for any other store, and for the same
store after samples are added or deleted. It serves every λ and all checkpoint weights, which are
applied to its output.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import numpy as np
from pydantic import Field

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
from indexer.measures.trak import grams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.measure import KernelMeasure

M = TypeVar("M", bound="KernelMeasure")

FORMAT_VERSION: Final = 1
SPEC_NAME: Final = "kernel.json"


class KernelFrom(Spec):
    """Inputs of a kernel.

    Attributes:
        fingerprint: fingerprint of the store, which covers the checkpoints' weights.
        dim: length of a direction.
        samples: hash of ids and digests, in row order. It is compared last: a kernel that differs
            only here can be updated.
    """

    fingerprint: str
    dim: Annotated[int, Field(ge=1)]
    samples: str


class KernelSpec(KernelFrom):
    """Content of `kernel.json`: the inputs and the files of a kernel.

    Attributes:
        format_version: version of the kernel format.
        sha256: SHA-256 of each checkpoint's file.
    """

    format_version: Literal[1] = FORMAT_VERSION
    sha256: list[str]


def kernel_path(store: Store) -> Path:
    """Path of a store's kernel, beside its indexes."""
    name = f"{store.name}.trak.kernel"
    return Path(name) if store.objects.remote else store.path.with_name(name)


def build_kernel(store: Store) -> Path:
    """Build the kernel of a store in one pass over it, unless it exists.

    A kernel built before samples were added or deleted is rebuilt.

    Raises:
        UnsealedError: if the store is not complete.
        SearchIndexError: if a different kernel exists at the path (it is left unchanged), or the
            kernel cannot be written.
    """
    path, wanted = kernel_path(store), _built_from(store)
    store.require_complete()
    if stands(path) and differing(_spec(path, store), wanted) != "samples":
        _require_it(path, store)
        return path
    with exchanged("kernel", path) as building:
        for place, gram in enumerate(grams(store)):
            np.save(building / f"{place}.npy", gram, allow_pickle=False)
            del gram
        hashes = [file_hash(building / f"{place}.npy") for place in range(store.checkpoints)]
        spec = KernelSpec(**wanted.model_dump(), sha256=hashes)
        (building / SPEC_NAME).write_text(spec.model_dump_json(indent=2) + "\n")
    return path


def fitted_by_kernel(measure: M, store: Store) -> M:
    """Fit the measure to a store with the stored kernel.

    Raises:
        SearchIndexError: if the kernel is missing, damaged, or built from other inputs.
    """
    path = kernel_path(store)
    spec = _require_it(path, store)
    return measure.of(_read(path, spec, store), store.samples)


def _require_it(path: Path, store: Store) -> KernelSpec:
    spec, wanted = _spec(path, store), _built_from(store)
    name = differing(spec, wanted)
    if name == "samples":
        raise SearchIndexError(
            f"kernel {path} was built from other samples than {store.location} has now. "
            f"Update the kernel: {_update(store)}"
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
            gram = read_array(file, expected, (store.dim, store.dim), np.float64)
        except (OSError, ValueError, MemoryError) as error:
            raise SearchIndexError(
                f"kernel {path} is damaged: {file.name} cannot be read: {error}. "
                f"{_mend(path, store)}"
            ) from error
        yield gram
        del gram


def _spec(path: Path, store: Store) -> KernelSpec:
    return read_spec("kernel", path, SPEC_NAME, KernelSpec, _update(store))


def _built_from(store: Store) -> KernelFrom:
    return KernelFrom(fingerprint=store.spec.fingerprint, dim=store.dim, samples=store.samples_hash)


def _update(store: Store) -> str:
    return f"gradstore index --store {store.location} --measures trak"


def _mend(path: Path, store: Store) -> str:
    return f"Remove {path} and build it again: {_update(store)}"
