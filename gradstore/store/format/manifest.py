"""The manifest: the samples of a store, in row order, with their metadata.

The manifest is a Parquet table of one row per sample, `samples/manifest.parquet`, which pandas and
pyarrow can read. Column `id` is the sample's stable name, `digest` a hash of the content that the
model sees; every other column is the user's own metadata (label, group, caption, path).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, sha256
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from unicodedata import normalize

from gradstore.errors import DatasetError, StoreError
from gradstore.store.format.parquet import read_bounded, values_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

RESERVED = ("id", "digest")
MAX_ID_LENGTH = 512
_FREE_BYTES: Final = 64 << 20
_SAMPLE_BYTES: Final = 64 << 10
_PIECE: Final = 1 << 16


@dataclass(frozen=True)
class Manifest:
    """The samples of a store, in row order.

    Attributes:
        ids: unique, non-empty names, at most 512 characters each.
        digests: hash of each sample's content as the model sees it.
        metadata: more columns, each as long as `ids`.
    """

    ids: Sequence[str]
    digests: Sequence[str]
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ids(self.ids)
        for name in RESERVED:
            if name in self.metadata:
                raise DatasetError(
                    f"metadata column {name!r} has a name that gradstore uses itself. Rename it, "
                    "or use it with --id-column."
                )
        for name, column in {"digest": self.digests, **self.metadata}.items():
            if len(column) != len(self.ids):
                raise DatasetError(
                    f"column {name!r} has {len(column)} values for {len(self.ids)} samples"
                )
        if not all(isinstance(one, str) for one in self.digests):
            raise DatasetError("column 'digest' has values that are not text")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def position(self) -> dict[str, int]:
        """Row number of each id."""
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def _composed(self) -> dict[str, int]:
        return {composed(name): row for row, name in enumerate(self.ids)}

    def row(self, name: str) -> int | None:
        """Row number of an id, in whatever Unicode form it is given; None if there is none."""
        found = self.position.get(name)
        return self._composed.get(composed(name)) if found is None else found

    def hash(self) -> str:
        """BLAKE2b-128 (32 hex digits) of `[ids, digests]` as JSON."""
        found = blake2b(digest_size=16)
        for before, column in (("[[", self.ids), ("], [", self.digests)):
            for start in range(0, len(column), _PIECE):
                texts = json.dumps(list(column[start : start + _PIECE]))[1:-1]
                found.update(f"{', ' if start else before}{texts}".encode())
        found.update(b"]]")
        return found.hexdigest()

    def samples_sha256(self, start: int, stop: int) -> str:
        """SHA-256 (64 hex digits) of the samples in rows `start` to `stop`, in order.

        The hash is that of `[ids, digests]` as JSON without spaces, in ASCII.
        """
        samples = [list(self.ids[start:stop]), list(self.digests[start:stop])]
        return sha256(json.dumps(samples, separators=(",", ":")).encode()).hexdigest()

    def require_same(self, other: Manifest, *, store: str) -> None:
        """Raise unless `other`, the current dataset, holds the samples of this manifest.

        Raises:
            DatasetError: with the first sample that is missing, new, moved or changed.
        """
        mend = (
            f"Restore the dataset that {store} was made from, or collect into a new store "
            "(another --store)."
        )
        if len(other) != len(self):
            raise DatasetError(
                f"the dataset changed since {store} was made: it had {len(self)} samples and "
                f"now has {len(other)}. {mend}"
            )
        for row, (mine, theirs) in enumerate(zip(self.ids, other.ids, strict=True)):
            if mine != theirs:
                raise DatasetError(
                    f"the dataset changed since {store} was made: row {row} was sample {mine!r} "
                    f"and is now {theirs!r}. {mend}"
                )
        for name, mine, theirs in zip(self.ids, self.digests, other.digests, strict=True):
            if mine != theirs:
                raise DatasetError(
                    f"the dataset changed since {store} was made: the content of sample "
                    f"{name!r} differs. {mend}"
                )

    @staticmethod
    def most_bytes(samples: int) -> int:
        """Bytes that the file of a manifest may have: 64 MiB, and 64 KiB per sample."""
        return _FREE_BYTES + _SAMPLE_BYTES * samples

    def content(self) -> bytes:
        """The manifest as the bytes of a Parquet file.

        Raises:
            DatasetError: if a column holds values of several types.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"id": list(self.ids), "digest": list(self.digests)}
        columns |= {name: list(column) for name, column in self.metadata.items()}
        arrays = {}
        for name, column in columns.items():
            try:
                arrays[name] = pa.array(column)
            except (pa.ArrowException, OverflowError, UnicodeError) as error:
                raise DatasetError(
                    f"metadata column {name!r} cannot be stored as one type: {error}. Leave it "
                    "out, or give all its values one type: text, 64-bit numbers, …"
                ) from error
        out = BytesIO()
        pq.write_table(pa.table(arrays), out)
        return out.getvalue()

    @classmethod
    def parse(cls, content: bytes, *, where: str, samples: int) -> Manifest:
        """Read the bytes of `manifest.parquet`.

        Args:
            content: the bytes of the file.
            where: name of the file in an error message.
            samples: number of samples that it must list.

        Raises:
            StoreError: if the content is not such a table.
        """
        import pyarrow as pa

        try:
            columns = _columns(content, samples)
            return cls(columns.pop("id"), columns.pop("digest"), columns)
        except (
            OSError,
            LookupError,
            ValueError,
            OverflowError,  # a time before the year 1 or after 9999
            pa.ArrowException,
            DatasetError,
        ) as error:
            raise StoreError(
                f"{where} cannot be read as a manifest: {error}. Restore the file from a copy of "
                "the store, or collect again."
            ) from error

    def chosen(self, rows: NDArray[np.int64]) -> Manifest:
        """The manifest of some of the samples, by row number."""
        numbers = rows.tolist()

        def of(column: Sequence[Any]) -> list[Any]:
            return [column[row] for row in numbers]

        return Manifest(
            of(self.ids), of(self.digests), {name: of(c) for name, c in self.metadata.items()}
        )

    @classmethod
    def joined(cls, manifests: Sequence[Manifest]) -> Manifest:
        """Concatenate manifests. A column that one of them lacks is None for its samples."""
        names = dict.fromkeys(name for manifest in manifests for name in manifest.metadata)
        return cls(
            [name for manifest in manifests for name in manifest.ids],
            [one for manifest in manifests for one in manifest.digests],
            {
                name: [
                    value
                    for manifest in manifests
                    for value in manifest.metadata.get(name, [None] * len(manifest))
                ]
                for name in names
            },
        )


def _columns(content: bytes, samples: int) -> dict[str, list[Any]]:
    """The columns of an untrusted Parquet file, whose claimed sizes are checked first."""
    # Digests do not compress: a real manifest has about thirty bytes per sample.
    if samples > len(content):
        raise ValueError(f"{len(content)} bytes cannot hold {samples} samples")
    table = read_bounded(content, samples)
    if table.num_rows != samples:
        raise ValueError(f"it lists {table.num_rows} samples, the layout says {samples}")
    return {
        name: values_of(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def composed(name: str) -> str:
    """An id in Unicode's form NFC, in which ids are compared.

    Examples:
        >>> composed("e\u0301") == "\u00e9"
        True
    """
    return name if name.isascii() else normalize("NFC", name)


def check_ids(ids: Sequence[str]) -> None:
    """Raise `DatasetError` unless every id is a non-empty, short, unique string."""
    if not ids:
        raise DatasetError(
            "the dataset is empty: there is no sample to collect. Check its path, split and limit."
        )
    for row, name in enumerate(ids):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_ID_LENGTH:
            raise DatasetError(
                f"row {row} has id {str(name)[:40]!r}: an id is a string of 1 to "
                f"{MAX_ID_LENGTH} characters. Name another column with --id-column."
            )
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise DatasetError(
                    f"row {row} has id {name[:40]!a}, which is no Unicode text, for example a file "
                    "name in another encoding. Rename it."
                ) from error
    if len(set(ids)) != len(ids):
        name, times = Counter(ids).most_common(1)[0]
        rows = [row for row, other in enumerate(ids) if other == name][:3]
        raise DatasetError(
            f"id {name!r} occurs {times} times (rows {', '.join(map(str, rows))}, …): ids must "
            "be unique. Remove the duplicates or name another column with --id-column."
        )
