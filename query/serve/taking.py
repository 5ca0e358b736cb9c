"""What a selection of training samples is taken away as."""

from __future__ import annotations

import csv
import io
import json
import shlex
import zipfile
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import QueryError
from query.results.pictures import png
from query.serve.answers import detail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from query.serve.library import Library

MOST: Final = 10_000
_MOST_IMAGES: Final = 2000
# Texts that a spreadsheet would take for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
# More ids than this are named in a file.
_MOST_NAMED: Final = 50


def rows(library: Library, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Samples with their columns, in the given order.

    Raises:
        QueryError: if there is no such sample, or there are too many or none.
    """
    if not 0 < len(ids) <= MOST:
        raise QueryError(f"{len(ids):,} samples are selected; select 1 to {MOST:,}.")
    found = [detail(library, library.row("sample", name)) for name in ids]
    return [{"id": one["id"], "digest": one["digest"], **one["columns"]} for one in found]


def as_ids(library: Library, ids: Sequence[str]) -> bytes:
    """One id per line, as `gradstore delete --ids-file` takes them."""
    rows(library, ids)
    return "".join(f"{name}\n" for name in ids).encode()


def as_csv(library: Library, ids: Sequence[str]) -> bytes:
    """A table of text; what a spreadsheet would take for a formula gets a quote before it."""
    table = rows(library, ids)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_safe(name) for name in table[0])
    writer.writerows([_safe(value) for value in row.values()] for row in table)
    return out.getvalue().encode()


def as_parquet(library: Library, ids: Sequence[str]) -> bytes:
    """A Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(library, ids)), out)
    return out.getvalue()


def as_dataset(library: Library, ids: Sequence[str]) -> bytes:
    """A ZIP archive of images and `metadata.jsonl`: unpacked, `load_dataset` takes the folder.

    Files are named by number, because ids may be anything.

    Raises:
        QueryError: if the images cannot be shown, or there are too many.
    """
    table = rows(library, ids)
    if len(table) > _MOST_IMAGES:
        raise QueryError(f"{len(table):,} images are selected; select at most {_MOST_IMAGES:,}.")
    out, lines = io.BytesIO(), []
    with zipfile.ZipFile(out, "w") as archive:
        for number, row in enumerate(table):
            image = library.image("sample", row["id"])
            if image is None:
                raise QueryError("the training images cannot be shown, so they cannot be taken.")
            archive.writestr(f"{number:05d}.png", png(image))
            lines.append(json.dumps({"file_name": f"{number:05d}.png", **row}, ensure_ascii=False))
        archive.writestr("metadata.jsonl", "".join(f"{line}\n" for line in lines))
    return out.getvalue()


def delete_command(library: Library, ids: Sequence[str]) -> str:
    """The command that deletes the samples, for a shell in the folder of the store."""
    rows(library, ids)
    store = shlex.quote(f"{library.store.name}.gradstore")
    lines = any("\n" in name or "\r" in name for name in ids)
    if len(ids) > _MOST_NAMED and not lines:
        return f"gradstore delete {store} --ids-file ids.txt"
    return f"gradstore delete {store} " + " ".join(f"--ids={shlex.quote(name)}" for name in ids)


def _safe(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


FORMS: Final = {
    "ids": (as_ids, "text/plain; charset=utf-8", "ids.txt"),
    "csv": (as_csv, "text/csv; charset=utf-8", "samples.csv"),
    "parquet": (as_parquet, "application/vnd.apache.parquet", "samples.parquet"),
    "dataset": (as_dataset, "application/zip", "samples.zip"),
}
