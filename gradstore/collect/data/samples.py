"""Presents every kind of dataset as samples with stable ids."""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from gradstore.collect.data import sources
from gradstore.collect.data.columns import (
    CAPTION_COLUMNS,
    LABEL_COLUMNS,
    PICTURE_COLUMNS,
    caption_of,
    columns_of,
    compared,
    find,
    find_if_any,
    ids_of,
    label_of,
    label_text,
    plain,
)
from gradstore.collect.data.decoding import Decoder, Encoded, shown, unreadable
from gradstore.collect.data.pictures import image_tensor, resized, to_image, to_tensor
from gradstore.collect.data.sample import Sample
from gradstore.collect.data.sources import IMAGE_COLUMNS
from gradstore.collect.data.tables import Streamed
from gradstore.errors import ConfigError, DatasetError, UnreadableError
from gradstore.flags.dataset import READING, DatasetSpec
from gradstore.progress import track
from gradstore.store.format.manifest import Manifest, check_ids, composed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
_log = logging.getLogger("gradstore")

# Skipped samples that a store names; it counts the others.
_MOST_NAMED = 100


class Samples:
    """A dataset as an ordered sequence of samples with stable ids.

    Takes a `datasets.Dataset`, any map-style `torch.utils.data.Dataset`, a sequence, or what
    `--dataset` takes: a folder, a file, `digits` or `hf://NAME`. A `datasets.IterableDataset` is
    read once, and needs `id_column`. An item is an image (PIL, or a float tensor in the model's
    range, `[channels, height, width]` for images), a tuple `(image, label)`, or a mapping with
    named columns. PIL images are decoded as files are, see `Decoder`, and become float32 tensors
    in −1 … 1.

    Args:
        dataset: the dataset to wrap.
        ids: one id per item, instead of a column.
        id_column: column of ids; by default a sample's id is its row number.
        image_column: column of images, if its name is unusual.
        label_column: column of labels, if its name is unusual.
        caption_column: column of captions, if its name is unusual.
        original_column: column of pictures to edit, of a model that edits, if its name is not
            `input_image` or `original_image`.
        mask_column: column of masks, white where an inpainting model paints, if its name is not
            `mask` or `mask_image`.
        metadata_columns: further columns to keep in the manifest.
        size: resize images to this many pixels per side.
        resize: `squash` to a square; `crop`, as diffusers' scripts do: the shorter side, then the
            centre; `pad`: the longer side, then white; `keep`, without `size`: not at all, since
            the model was trained on images of these sizes.
        interpolation: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`; by default
            `bilinear` of `crop`, else `bicubic`.
        mode: convert PIL images to this mode, such as `RGB`.
        limit: use only this many samples, from the start.
        skip_unreadable: leave out samples that are damaged; they are in `skipped`.
        reading: version of the rules by which a dataset is read; a store records it.

    Attributes:
        ids: the ids, in Unicode's form NFC.
        skipped: reasons by the ids of damaged samples that were left out.

    Raises:
        DatasetError: if the dataset is empty, lacks a column, or lacks or repeats an id.

    Examples:
        >>> samples = Samples([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], ids=["black", "white"])
        >>> samples.ids, samples[1].tensor.shape
        (['black', 'white'], torch.Size([1, 8, 8]))
    """

    def __init__(
        self,
        dataset: Any,
        *,
        ids: Sequence[str] | None = None,
        id_column: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        caption_column: str | None = None,
        original_column: str | None = None,
        mask_column: str | None = None,
        metadata_columns: Sequence[str] = (),
        size: int | None = None,
        resize: str = "squash",
        interpolation: str | None = None,
        mode: str | None = None,
        limit: int | None = None,
        skip_unreadable: bool = False,
        reading: int = READING,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name != "self"}
        if isinstance(dataset, str | Path):
            dataset = DatasetSpec(dataset=str(dataset))
        if hasattr(dataset, "take") and not hasattr(dataset, "__len__"):  # of `datasets`
            dataset = _streamed(dataset, id_column, limit)
        if isinstance(dataset, DatasetSpec):
            dataset, found = sources.load(dataset.model_copy(update={"reading": reading}))
            ids = found if ids is None else ids
        if size is not None and resize == "keep":
            raise ConfigError(f"--resize keep and --size {size} contradict. Omit one of the two.")
        self._dataset = dataset
        self._reading = reading
        self._decoder = Decoder(mode, reading)
        self._resized: dict[str, Any] = {
            "size": size, "resize": resize, "interpolation": interpolation
        }  # fmt: skip
        self._encode: Callable[[Sample], Sample] | None = None
        self._picture_columns: dict[str, str] = {}
        self._manifest: Manifest | None = None
        length = _length(dataset)
        if ids is not None and len(ids) != length:
            raise DatasetError(f"{len(ids)} ids were given for {length} samples")
        length = length if limit is None else min(limit, length)
        if length == 0:
            check_ids([])
        first = self._item(0, "0")
        self._image_column = find(first, image_column, IMAGE_COLUMNS, "image")
        self._label_column = find_if_any(first, label_column, LABEL_COLUMNS, "label")
        self._caption_column = find_if_any(first, caption_column, CAPTION_COLUMNS, "caption")
        self._metadata_columns = [c for c in metadata_columns if c != self._label_column]
        for name in (*metadata_columns, *([id_column] if id_column else [])):
            find(first, name, (), "metadata")
        if ids is not None:
            ids = list(ids)[:length]
        elif id_column is not None:
            ids = ids_of(self._column(id_column, length), reading)
        else:
            ids = [str(row) for row in range(length)]
        check_ids(ids)
        self.ids = compared(ids) if reading >= 2 else ids
        self._rows: Sequence[int] = range(length)
        self._whole = True
        self._read: Sequence[Sample] | None = None
        self.skipped: dict[str, str] = {}
        if skip_unreadable:
            self._skip()

    @classmethod
    def of(cls, dataset: Any) -> Samples:
        """`dataset` itself if it is already `Samples`, else wrapped with the defaults.

        Args:
            dataset: what `Samples` accepts.
        """
        return dataset if isinstance(dataset, cls) else cls(dataset)

    @classmethod
    def from_spec(cls, spec: DatasetSpec) -> Samples:
        """Load the dataset of a specification.

        Raises:
            DatasetError: if the dataset does not exist or cannot be read.
        """
        names = DatasetSpec.model_fields.keys() - {"dataset", "split"}
        return cls(spec, **{name: getattr(spec, name) for name in names})

    def read_as(self, reading: int) -> Samples:
        """The same samples, read by the rules of another version, as a store records it.

        Raises:
            DatasetError: if that version finds other samples.
        """
        if reading == self._reading:
            return self
        whole = type(self)(**{**self._given, "reading": reading})
        return whole if self._whole else whole.only(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, ids: Sequence[str]) -> Samples:
        """The samples with these ids, in this order.

        Raises:
            DatasetError: if one of the ids is missing.
        """
        place = {composed(name): row for row, name in enumerate(self.ids)}
        lacking = [name for name in ids if composed(name) not in place]
        if lacking:
            raise DatasetError(
                f"the dataset has no sample {lacking[0]!r} (and lacks {len(lacking) - 1} more). "
                "Restore the dataset that the store was made from."
            )
        return self._chosen([place[composed(name)] for name in ids])

    def _chosen(self, rows: Sequence[int]) -> Samples:
        chosen = copy(self)
        chosen.ids = [self.ids[row] for row in rows]
        chosen._rows = [self._rows[row] for row in rows]
        chosen._whole = False
        chosen._manifest = None
        chosen._read = None
        return chosen

    def _skip(self) -> None:
        """Leave out the samples that are damaged."""
        good = []
        for row in track(range(len(self)), "looking for damaged samples", "samples"):
            try:
                self[row]
                good.append(row)
            except UnreadableError as error:
                self.skipped[self.ids[row]] = str(error.__cause__ or error)
        if not good:
            raise DatasetError(
                f"none of the {len(self)} samples can be read; the first: "
                f"{next(iter(self.skipped.items()))}. Check the dataset."
            )
        if self.skipped:
            named = "; ".join(f"{name!r} ({why})" for name, why in [*self.skipped.items()][:10])
            _log.warning(
                "%d of %d samples are damaged and left out: %s", len(self.skipped), len(self), named
            )
        self.ids, self._rows = [self.ids[row] for row in good], good

    def record(self) -> dict[str, Any]:
        """How the samples are read, as JSON, for the store to record."""
        named = dict([*self.skipped.items()][:_MOST_NAMED])
        return {
            "reading": self._reading,
            **{name: self._given[name] for name in ("size", "resize", "interpolation", "mode")},
            **({"skipped": len(self.skipped), "first_skipped": named} if self.skipped else {}),
        }

    def encoded(self, encode: Callable[[Sample], Sample], pictures: Sequence[str] = ()) -> Samples:
        """The same samples, each encoded when it is read.

        Args:
            encode: encodes one.
            pictures: kinds of the further pictures that it wants: `original`, `mask`.

        Raises:
            DatasetError: if there is no column of one of them.
        """
        chosen = copy(self)
        first = self._item(self._rows[0], self.ids[0]) if pictures else {}
        chosen._picture_columns = {
            kind: find(first, self._given[f"{kind}_column"], PICTURE_COLUMNS[kind], kind)
            for kind in pictures
        }
        chosen._encode = encode
        chosen._manifest = None
        chosen._read = None
        return chosen

    def in_memory(self) -> Samples:
        """The same samples, read now, so that several threads can use them."""
        chosen = copy(self)
        chosen._read = [self[row] for row in range(len(self))]
        return chosen

    def __getitem__(self, row: int) -> Sample:
        """Read a sample.

        Raises:
            DatasetError: if it cannot be read, or is neither an image nor an array.
        """
        return self._encoded(self._plain(row)) if self._read is None else self._read[row]

    def flipped(self, row: int) -> Sample:
        """Read a sample flipped from left to right, before it is encoded.

        Raises:
            DatasetError: if it cannot be read, or is neither an image nor an array.
        """
        return self._encoded(self._plain(row).flipped())

    def _encoded(self, sample: Sample) -> Sample:
        return sample if self._encode is None else self._encode(sample)

    def _plain(self, row: int) -> Sample:
        """Read a sample without encoding it."""
        name = self.ids[row]
        item = self._item(self._rows[row], name)
        value = _file_or_value(item[self._image_column], name)
        picture = None
        geometry: tuple[int, ...] = ()
        size, resize = self._resized["size"], self._resized["resize"]
        if isinstance(value, Image.Image | Encoded):
            picture, geometry = resized(self._decoder(value, name), **self._resized)
        given = item.get("conditions")
        return Sample(
            name=name,
            tensor=to_tensor(value, name) if picture is None else image_tensor(picture, name),
            picture=picture,
            label=label_of(item.get(self._label_column), name, self._reading)
            if self._label_column
            else None,
            conditions={key: torch.as_tensor(condition) for key, condition in given.items()}
            if isinstance(given, Mapping)
            else {},
            columns=item,
            caption=caption_of(item.get(self._caption_column), name)
            if self._caption_column
            else None,
            geometry=geometry,
            pictures={
                kind: self._further(kind, item[column], name, geometry)
                for kind, column in self._picture_columns.items()
            },
            sized=picture is None or size is not None or resize == "keep",
        )

    def _further(self, kind: str, value: Any, name: str, geometry: tuple[int, ...]) -> Image.Image:
        """A further picture of a sample, resized as its own."""
        value = _file_or_value(value, name)
        if not isinstance(value, Image.Image | Encoded):
            raise DatasetError(
                f"sample {name!r} has no picture as its {kind}, but a {type(value).__name__}. Name "
                f"another column with --{kind}-column."
            )
        decoder = Decoder("L", self._reading) if kind == "mask" else self._decoder
        found, own = resized(decoder(value, name), **self._resized)
        # A crop of a picture of another size may show another part.
        squashed = self._resized["resize"] == "squash"
        if (own[-2:] != geometry[-2:]) if squashed else (own != geometry):
            raise DatasetError(
                f"sample {name!r} is {geometry[1]}×{geometry[0]} pixels, and its {kind} "
                f"{own[1]}×{own[0]}: they must have one size."
            )
        return found

    def _item(self, row: int, name: str) -> Mapping[str, Any]:
        try:
            return columns_of(self._dataset[row])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise unreadable(name, str(error)) from error
        except (LookupError, TypeError, ArithmeticError, RuntimeError, struct.error) as error:
            kind = type(self._dataset)
            if isinstance(self._dataset, Mapping) or not hasattr(kind, "__getitem__"):
                raise DatasetError(
                    f"a {kind.__name__} cannot be indexed by row number ({error!r}). Give one "
                    "split of a map-style dataset."
                ) from error
            raise unreadable(name, f"{kind.__name__} raised {error!r} for item {row}") from error

    def _column(self, name: str, length: int) -> list[Any]:
        if hasattr(self._dataset, "select_columns"):  # datasets.Dataset: decodes no other column
            return list(self._dataset.select_columns([name])[:length][name])
        return [self._item(row, str(row))[name] for row in range(length)]

    def image(self, row: int) -> Image.Image | None:
        """The sample as a PIL image, or None if it is not an image."""
        sample = self[row]
        if sample.picture is None:
            return to_image(sample.tensor)
        return shown(sample.picture).copy()

    @property
    def manifest(self) -> Manifest:
        """Ids, digests and metadata; reads every sample on first use."""
        return self._manifest or self.scan(lambda _: None)

    def scan(self, check: Callable[[Sample], None]) -> Manifest:
        """Read every sample once, check it, and return ids, digests and metadata.

        Raises:
            DatasetError: if a sample cannot be read.
        """
        digests, shapes = [], []
        metadata: dict[str, list[Any]] = {name: [] for name in self._metadata_columns}
        if self._label_column is not None:
            metadata["label"] = []
        for row in track(range(len(self)), "reading the dataset", "samples"):
            sample = self[row]
            check(sample)
            digests.append(sample.digest())
            shapes.append(tuple(sample.tensor.shape))
            for name in self._metadata_columns:
                metadata[name].append(plain(sample.columns.get(name), sample.name))
            if self._label_column is not None:
                features = getattr(self._dataset, "features", None)
                metadata["label"].append(label_text(sample.label, features, self._label_column))
        self._manifest, self._shapes = Manifest(self.ids, digests, metadata), shapes
        return self._manifest

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each sample's tensor; reads every sample on first use, as `manifest`."""
        _ = self.manifest
        return self._shapes


def _file_or_value(value: Any, name: str) -> Any:
    """The value of a cell of a table; a picture's file as `Encoded`."""
    if isinstance(value, bytes):
        return Encoded(value, turned=True)
    return _file_of(value, name) if isinstance(value, Mapping) and "bytes" in value else value


def _file_of(value: Mapping[str, Any], name: str) -> Encoded:
    """The file in a cell of a table. A path there is a stranger's: it is not followed."""
    if not isinstance(value["bytes"], bytes):
        raise unreadable(name, "its table holds no bytes of its picture")
    return Encoded(value["bytes"], turned=True)


def _streamed(stream: Any, id_column: str | None, limit: int | None) -> Streamed:
    if id_column is None:
        raise DatasetError(
            f"a {type(stream).__name__} has no row numbers that stay the same: name a column of "
            "ids with id_column=."
        )
    return Streamed(stream, limit)


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError as error:
        raise DatasetError(
            f"a {type(dataset).__name__} has no length: give a map-style dataset, not an "
            "iterable one, because samples are read repeatedly by number."
        ) from error
