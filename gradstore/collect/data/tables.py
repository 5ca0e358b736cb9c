"""Loads datasets that are tables: Parquet files, and what `datasets` saves, lends and streams."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize

from gradstore.errors import DatasetError
from gradstore.store.format.parquet import open_bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger("gradstore")

# Words by which names of shards tell their split, as on the hub.
_SPLITS: Final = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_STATE: Final = "state.json"


def parquet(path: Path) -> Any:
    """A Parquet file as a dataset.

    Raises:
        DatasetError: if it cannot be read.
    """
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            table = open_bounded(file, shared=False).read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return _encoded(_dataset(table, path))


def shards(root: Path, files: Sequence[Path], split: str) -> Any:
    """Parquet files of a folder as one dataset.

    Files whose names tell their split, as `train-00000-of-00002.parquet`, are those of the wanted
    one. The library `datasets` keeps the decoded table in its cache.

    Raises:
        DatasetError: if a file cannot be read, or none is of the split.
    """
    import datasets
    import pyarrow as pa

    chosen = of_split(root, files, split)
    path = root
    try:
        for path in chosen:
            with path.open("rb") as file:
                open_bounded(file, shared=False)
        path = root
        found = datasets.load_dataset(
            "parquet", data_files=[str(path) for path in chosen], split="train"
        )
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(path, error) from error
    return _encoded(found)


def of_split(root: Path, files: Sequence[Path], split: str) -> list[Path]:
    """The files of a split, by their names; all if no name tells a split.

    Raises:
        DatasetError: if names tell splits, but none the wanted one.
    """
    own = _SPLITS.get(split, {split})
    known = own.union(*_SPLITS.values())
    told = {
        file: set(re.split(r"[^a-z0-9]+", file.relative_to(root).as_posix().lower())) & known
        for file in files
    }
    if not any(told.values()):
        return list(files)
    chosen = [file for file in files if told[file] & own]
    if not chosen:
        raise DatasetError(
            f"dataset {root} has no split {split!r}: its files are {files[0].name} and "
            f"{len(files) - 1} more. Choose another --split."
        )
    return chosen


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` of the library `datasets` made a folder."""
    return (root / _STATE).is_file() or (root / "dataset_dict.json").is_file()


def saved(root: Path, split: str) -> Any:
    """A dataset that `save_to_disk` of the library `datasets` made.

    Raises:
        DatasetError: if it cannot be read, or lacks the split.
    """
    import datasets
    import pyarrow as pa

    if not (root / _STATE).is_file():
        splits = sorted(file.parent.name for file in root.glob(f"*/{_STATE}"))
        if split not in splits:
            raise DatasetError(
                f"dataset {root} has no split {split!r}; it has {', '.join(splits) or 'none'}. "
                "Choose another --split."
            )
        root = root / split
    try:
        # The file names its shards: they must be files beside it.
        state = json.loads((root / _STATE).read_text(encoding="utf-8"))
        for one in state["_data_files"]:
            if Path(one["filename"]).name != one["filename"]:
                raise ValueError(f"{_STATE} names {one['filename'][:200]!r}, which is not in it")
        found = datasets.load_from_disk(str(root)).with_format(None)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        pa.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise _unreadable(root, error) from error
    return _encoded(found)


def hub(name: str, split: str) -> Any:
    """A dataset of the hub, `NAME` or `NAME:CONFIG`.

    Raises:
        DatasetError: if it cannot be loaded.
    """
    import datasets

    repository, _, config = name.partition(":")
    try:
        return datasets.load_dataset(repository, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(
            f"dataset hf://{name} (split {split!r}) cannot be loaded: {error}. Check the name and "
            "split, and that the hub can be reached."
        ) from error


class Streamed:
    """A `datasets.IterableDataset`, read once into a table on disk that lasts as long as this.

    Args:
        stream: the dataset.
        limit: number of items to read; by default all.
    """

    def __init__(self, stream: Any, limit: int | None) -> None:
        import datasets
        import fsspec  # type: ignore[import-untyped]
        from datasets.arrow_writer import ArrowWriter

        place = mkdtemp(prefix="gradstore-stream-")
        finalize(self, rmtree, place, ignore_errors=True)
        images = _images(stream)
        for name in images:
            stream = stream.cast_column(name, datasets.Image(decode=False))
        file = Path(place) / "stream.arrow"
        with ArrowWriter(path=str(file), features=stream.features) as writer:
            for item in stream if limit is None else stream.take(limit):
                for name in images:
                    value = item[name]
                    if value is not None and value["bytes"] is None:
                        with fsspec.open(value["path"], "rb") as content:
                            item[name] = {"bytes": content.read(), "path": None}
                writer.write(item)
            writer.finalize()
        self._table = datasets.Dataset.from_file(str(file))
        self.features = self._table.features

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = self._table[row]
        return found

    def select_columns(self, names: Sequence[str]) -> Any:
        """A dataset of some of the columns."""
        return self._table.select_columns(list(names))


def _dataset(table: Any, path: Path) -> Any:
    """A table as a dataset; the features that `datasets` noted in it need not be those it knows."""
    import datasets

    try:
        return datasets.Dataset(table)
    except Exception:  # it may raise anything on another version's note
        _log.warning("%s: its note of features is not understood and is not used", path)
    try:
        return datasets.Dataset(table.replace_schema_metadata(None))
    except Exception as error:
        reason = " ".join((str(error) or repr(error)).split())[:300]
        raise DatasetError(
            f"dataset {path} cannot be used: {reason}. Write it anew with columns of numbers, "
            "texts and images."
        ) from error


def _encoded(dataset: Any) -> Any:
    """A dataset that gives the files of its pictures, which `Decoder` decodes."""
    import datasets

    for name in _images(dataset):
        dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _images(dataset: Any) -> list[str]:
    import datasets

    features = dataset.features or {}
    return [name for name, one in features.items() if isinstance(one, datasets.Image)]


def _unreadable(path: Path, error: Exception) -> DatasetError:
    return DatasetError(
        f"dataset {path} cannot be read: {error}. Check the file, or write it anew with "
        "pyarrow.parquet.write_table(table, path, use_dictionary=False)."
    )
