"""The manifest: the samples of a store, in row order, with their metadata.

The manifest is a Parquet table of one row per sample, `samples/manifest.parquet`, which pandas and
pyarrow can read. Column `id` is the sample's stable name, `digest` a hash of the content that the
model sees; every other column is the user's own metadata (label, group, caption, path).

Of a store that was opened, columns are read from the file when they are needed: see `columns`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from unicodedata import normalize

import numpy as np

from gradstore.errors import DatasetError
from gradstore.store.format.columns import Column, readable
from gradstore.store.format.parquet import open_bounded
from gradstore.store.format.pieces import Pieces
from gradstore.store.format.spec import ManifestSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

RESERVED = ("id", "digest")
MAX_ID_LENGTH = 512
PIECE: Final = 1 << 16
"""Samples of a row group: so many are decoded to read one."""
_FREE_BYTES: Final = 64 << 20
_SAMPLE_BYTES: Final = 64 << 10


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
        if not isinstance(self.ids, Column):  # whose pieces are checked when they are read
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
        if isinstance(self.digests, Column):
            return
        if not all(isinstance(one, str) for one in self.digests):
            raise DatasetError("column 'digest' has values that are not text")

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, names: Iterable[str]) -> dict[str, int]:
        """Row numbers of those ids that there are, in whatever Unicode form they are given.

        All ids are looked through once, so ask for all names together.
        """
        wanted = dict.fromkeys(names)
        found = self._rows(wanted)
        left = [name for name in wanted if name not in found]
        if left:
            rows = self._rows(map(composed, left), _composed)
            found |= {name: rows[composed(name)] for name in left if composed(name) in rows}
        return found

    def row(self, name: str) -> int | None:
        """Row number of an id, as `find`; None if there is none."""
        return self.find([name]).get(name)

    def shared(self, other: Manifest) -> list[str]:
        """Ids that another manifest has as well."""
        fewer, more = sorted((self, other), key=len)
        return list(more._rows(fewer.ids))

    def _rows(
        self, names: Iterable[str], change: Callable[[Any], Any] | None = None
    ) -> dict[str, int]:
        """Row numbers of those ids, after a change of them, that are among some names."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(dict.fromkeys(filter(_is_text, names)), pa.string())
        ids = _arrays(self.ids)
        if len(wanted) > PIECE:  # a table of them is made for each array that is looked through
            ids = iter([pa.chunked_array(ids)])
        found: dict[str, int] = {}
        start = 0
        for piece in ids:
            changed = piece if change is None else change(piece)
            places = pc.index_in(changed, value_set=wanted)
            rows = pc.indices_nonzero(pc.is_valid(places)).to_numpy()
            if len(rows):
                own = wanted.take(places.take(rows)).to_pylist()
                found.update(zip(own, (start + rows.astype(np.int64)).tolist(), strict=True))
            start += len(piece)
        return found

    def hash(self) -> str:
        """BLAKE2b-128 (32 hex digits) of `[ids, digests]` as JSON."""
        found = blake2b(digest_size=16)
        for before, column in (("[[", self.ids), ("], [", self.digests)):
            for start in range(0, len(column), PIECE):
                texts = json.dumps(list(column[start : start + PIECE]))[1:-1]
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

        arrays = {}
        for name, column in {"id": self.ids, "digest": self.digests, **self.metadata}.items():
            try:
                arrays[name] = pa.chunked_array(list(_arrays(column)))
            except (pa.ArrowException, OverflowError, UnicodeError) as error:
                raise DatasetError(
                    f"metadata column {name!r} cannot be stored as one type: {error}. Leave it "
                    "out, or give all its values one type: text, 64-bit numbers, …"
                ) from error
        out = BytesIO()
        pq.write_table(
            pa.table(arrays),
            out,
            row_group_size=PIECE,
            use_dictionary=list(self.metadata),
            write_page_checksum=True,
        )
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
        with readable(where):
            _require_fitting(len(content), samples)
            source = BytesIO(content)
            metadata = open_bounded(source, shared=True, plain=RESERVED).metadata
            found = cls._of(source, metadata, where, samples)
            found.require_unique()
            return found

    @classmethod
    def stored(cls, source: BinaryIO, spec: ManifestSpec, *, where: str, samples: int) -> Manifest:
        """Read only the footer of a long `manifest.parquet`, and the rest when it is needed.

        Args:
            source: the file.
            spec: what the store says of it.
            where: name of the file in an error message.
            samples: number of samples that it must list.

        Raises:
            StoreError: if the content is not such a table, or has changed.
        """
        import pyarrow.parquet as pq

        with readable(where):
            _require_fitting(spec.nbytes, samples)
            source.seek(spec.nbytes - spec.footer_nbytes)
            footer = source.read(spec.footer_nbytes)
            if sha256(footer).hexdigest() != spec.footer_sha256:
                raise ValueError("its footer has changed since the part was created")
            metadata = pq.read_metadata(BytesIO(footer))
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            if any(group.num_rows > PIECE for group in groups):
                raise ValueError(f"a row group holds more than {PIECE:,} samples")
            return cls._of(source, metadata, where, samples)

    @classmethod
    def _of(cls, source: BinaryIO, metadata: Any, where: str, samples: int) -> Manifest:
        file = Pieces(source, metadata, where=where, plain=RESERVED)
        columns = {name: file.column(name) for name in file.names if name not in RESERVED}
        if len(columns) + len(RESERVED) != len(file.names) or not {*RESERVED} <= {*file.names}:
            raise ValueError("its columns are not 'id', 'digest', and others of different names")
        found = cls(file.column("id", _check_ids), file.column("digest", _check_texts), columns)
        if len(found) != samples:
            raise ValueError(f"it lists {len(found)} samples, the layout says {samples}")
        return found

    def require_unique(self) -> None:
        """Raise `DatasetError` if two samples have the same id."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if pc.count_distinct(pa.chunked_array(list(_arrays(self.ids)))).as_py() < len(self):
            check_ids(list(self.ids))

    def chosen(self, rows: NDArray[np.int64]) -> Manifest:
        """The manifest of some of the samples, by row number."""
        numbers = rows.tolist()

        def of(column: Sequence[Any]) -> Sequence[Any]:
            if isinstance(column, Column):
                return column.chosen(rows)
            return [column[row] for row in numbers]

        return Manifest(
            of(self.ids), of(self.digests), {name: of(c) for name, c in self.metadata.items()}
        )

    @classmethod
    def joined(cls, manifests: Sequence[Manifest]) -> Manifest:
        """Concatenate manifests. A column that one of them lacks is None for its samples."""
        names = dict.fromkeys(name for manifest in manifests for name in manifest.metadata)
        return cls(
            _joined([manifest.ids for manifest in manifests]),
            _joined([manifest.digests for manifest in manifests]),
            {
                name: _joined([one.metadata.get(name, len(one)) for one in manifests])
                for name in names
            },
        )


def manifest_spec(content: bytes) -> ManifestSpec:
    """What a store says of the file of a manifest."""
    nbytes = int.from_bytes(content[-8:-4], "little") + 8
    footer = sha256(content[-nbytes:]).hexdigest()
    return ManifestSpec(nbytes=len(content), footer_nbytes=nbytes, footer_sha256=footer)


def _joined(columns: Sequence[Sequence[Any] | int]) -> Sequence[Any]:
    """Columns one after another; a number stands for so many times None."""
    stored = [one for one in columns if isinstance(one, Column | int)]
    if len(stored) == len(columns):
        return Column.joined(stored)
    return list(chain.from_iterable([None] * c if isinstance(c, int) else c for c in columns))


def _arrays(column: Sequence[Any]) -> Iterator[pa.Array]:
    """The values of a column as arrays."""
    import pyarrow as pa

    if not isinstance(column, Column):
        found = pa.array(list(column))
        yield from found.chunks if isinstance(found, pa.ChunkedArray) else [found]
        return
    for piece in column.pieces():
        yield piece.dictionary_decode() if isinstance(piece, pa.DictionaryArray) else piece


def _require_fitting(nbytes: int, samples: int) -> None:
    # Digests do not compress: a real manifest has about thirty bytes per sample.
    if samples > nbytes:
        raise ValueError(f"{nbytes} bytes cannot hold {samples} samples")


def _check_texts(piece: pa.Array) -> None:
    import pyarrow as pa

    if not pa.types.is_string(piece.type) or piece.null_count:
        raise ValueError(f"ids and digests are {piece.type} with {piece.null_count} nulls, no text")


def _check_ids(piece: pa.Array) -> None:
    import pyarrow.compute as pc

    _check_texts(piece)
    for length in (pc.binary_length, pc.utf8_length):  # the first is faster, and never less
        found = pc.min_max(length(piece)).as_py()
        if not len(piece) or 0 < found["min"] <= found["max"] <= MAX_ID_LENGTH:
            return
    raise ValueError(f"an id has {found['min']} or {found['max']} characters")


def _composed(piece: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    if pc.all(pc.string_is_ascii(piece)).as_py():
        return piece
    return pc.utf8_normalize(piece, form="NFC")


def composed(name: str) -> str:
    """An id in Unicode's form NFC, in which ids are compared.

    Examples:
        >>> composed("e\u0301") == "\u00e9"
        True
    """
    return name if name.isascii() else normalize("NFC", name)


def _is_text(name: str) -> bool:
    """Whether a string is Unicode text: the name of a file may be none."""
    try:
        return name.isascii() or bool(name.encode())
    except UnicodeEncodeError:
        return False


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
        if not _is_text(name):
            raise DatasetError(
                f"row {row} has id {name[:40]!a}, which is no Unicode text, for example a file "
                "name in another encoding. Rename it."
            )
    if len(set(ids)) != len(ids):
        name, times = Counter(ids).most_common(1)[0]
        rows = [row for row, other in enumerate(ids) if other == name][:3]
        raise DatasetError(
            f"id {name!r} occurs {times} times (rows {', '.join(map(str, rows))}, …): ids must "
            "be unique. Remove the duplicates or name another column with --id-column."
        )
