"""Deleted samples of a store: hidden at once, until vacuum removes them."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.errors import StoreError
from gradstore.store.format.parquet import read_bounded, values_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gradstore.store.format.spec import PartSpec

_FREE_BYTES: Final = 1 << 20
_ROW_BYTES: Final = 128


@dataclass(frozen=True)
class Deletions:
    """Deleted samples.

    Attributes:
        by_part: sample numbers within each part, ascending, by the part's path.
    """

    by_part: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.by_part.values())

    def rows(self, part: str) -> NDArray[np.int64]:
        """Numbers of the deleted samples of a part."""
        return self.by_part.get(part, np.empty(0, np.int64))

    def with_more(self, more: Mapping[str, NDArray[np.int64]]) -> Deletions:
        """The union of these deletions and others."""
        paths = self.by_part.keys() | more.keys()
        return Deletions(
            {path: np.union1d(self.rows(path), Deletions(more).rows(path)) for path in paths}
        )

    def content(self, revision: int) -> bytes:
        """The deletions as a Parquet table of columns `part` and `row`, without sample ids.

        Args:
            revision: revision of the changed store. It makes the table of every change unique, so
                that vacuum can remove an abandoned table while another change runs.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        pairs = sorted(self.by_part.items())
        names = [path for path, rows in pairs for _ in range(len(rows))]
        numbers = np.concatenate([rows for _, rows in pairs])
        out = BytesIO()
        table = pa.table(
            {"part": pa.array(names, pa.string()), "row": pa.array(numbers, pa.int64())}
        )
        pq.write_table(table.replace_schema_metadata({"revision": str(revision)}), out)
        return out.getvalue()

    @staticmethod
    def most_bytes(parts: Sequence[PartSpec]) -> int:
        """Bytes that the table may have: 1 MiB, and 128 bytes per sample of the parts."""
        return _FREE_BYTES + _ROW_BYTES * sum(part.layout.samples for part in parts)

    @classmethod
    def parse(cls, content: bytes, *, where: str, parts: Sequence[PartSpec]) -> Deletions:
        """Read the table that `content` returns.

        Raises:
            StoreError: if it is not such a table, or names rows that no part has.
        """
        import pyarrow as pa

        samples = {part.path: part.layout.samples for part in parts}
        try:
            table = read_bounded(content, sum(samples.values()), ["part", "row"])
            names = values_of(table["part"])
            order = {path: place for place, path in enumerate(dict.fromkeys(names))}
            unknown = order.keys() - samples.keys()
            if unknown:
                raise ValueError(f"there is no part {str(min(map(str, unknown)))[:40]!r}")
            places = np.array([order[name] for name in names], np.int64)
            rows = table["row"].to_numpy().astype(np.int64)
            found = {}
            for path, place in order.items():
                own = np.unique(rows[places == place])
                if own[0] < 0 or own[-1] >= samples[path]:
                    raise ValueError(f"part {path!r} has no row {own[-1]}")
                found[path] = own
        except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
            raise StoreError(
                f"{where} cannot be read as a table of deleted rows: {error}. Restore it from a "
                "copy of the store."
            ) from error
        return cls(found)
