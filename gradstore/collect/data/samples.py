"""Presents every kind of dataset as samples with stable ids."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from gradstore.collect.data import sources
from gradstore.collect.data.pictures import cropped, image_tensor, to_image, to_tensor
from gradstore.collect.data.sources import IMAGE_COLUMNS
from gradstore.errors import DatasetError
from gradstore.flags.dataset import DatasetSpec
from gradstore.progress import track
from gradstore.store.format.manifest import Manifest, check_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


_LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_CAPTION_COLUMNS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class Sample:
    """One sample, read from its dataset.

    Attributes:
        name: its id.
        tensor: input of the model, float32; images in −1 … 1, `[channels, height, width]`.
        picture: the PIL image, if the sample came as one.
        label: its label in the dataset, if it has one.
        conditions: further inputs of the model by keyword.
        columns: all columns of the item.
        caption: its caption, if it has one.
        geometry: of a picture, height and width before resizing, top and left of the crop, height
            and width after it; in pixels.
        content: hash of picture, caption and encoders, if it is encoded.
    """

    name: str
    tensor: Tensor
    picture: Image.Image | None
    label: Any
    conditions: dict[str, Tensor]
    columns: Mapping[str, Any]
    caption: str | None = None
    geometry: tuple[int, ...] = ()
    content: str = ""

    def class_label(self, classes: int) -> Tensor:
        """The label as a class number, for class-conditional models.

        Raises:
            DatasetError: if there is no label in 0 … classes − 1.
        """
        number = self.label
        if isinstance(number, str) and number.isdecimal():  # for example a folder's name
            number = int(number)
        if not isinstance(number, int) or not 0 <= number < classes:
            raise DatasetError(
                f"sample {self.name!r} has label {self.label!r}, but the model is conditioned on "
                f"class numbers 0 … {classes - 1}. Name the right column with --label-column; in a "
                "folder of images, name the sub-folders by class number."
            )
        return torch.tensor(number)

    def digest(self) -> str:
        """Hash of everything in the sample that the model may see.

        Of an encoded sample it is that of the picture and the caption: encoders round differently
        on different machines.
        """
        if self.content:
            return self.content
        digest = blake2b(repr(self.label).encode(), digest_size=16)
        for name, tensor in {"": self.tensor, **self.conditions}.items():
            # numpy has no bfloat16: its bits are hashed, with its own name.
            kind = "bfloat16" if tensor.dtype == torch.bfloat16 else tensor.numpy().dtype.str
            bits = tensor.view(torch.int16) if kind == "bfloat16" else tensor
            array = np.ascontiguousarray(bits.numpy())
            digest.update(f"{name}{kind}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()


class Samples:
    """A dataset as an ordered sequence of samples with stable ids.

    Takes a `datasets.Dataset`, any map-style `torch.utils.data.Dataset`, a sequence, or text as of
    `--dataset`: a folder of images, a `.parquet` file, `digits` or `hf://NAME`. An item is
    an image (PIL, or a float tensor in the model's range, `[channels, height, width]` for images),
    a tuple `(image, label)`, or a mapping with named columns. PIL images become float32 tensors in
    −1 … 1.

    Args:
        dataset: the dataset to wrap.
        ids: one id per item, instead of a column.
        id_column: column of ids; by default a sample's id is its row number.
        image_column: column of images, if its name is unusual.
        label_column: column of labels, if its name is unusual.
        caption_column: column of captions, if its name is not `text`, `caption` or `prompt`.
        metadata_columns: further columns to keep in the manifest.
        size: resize PIL images to this many pixels per side.
        resize: `squash`, or `crop` as diffusers' scripts do: the shorter side, then the centre.
        mode: convert PIL images to this mode, such as `RGB`.
        limit: use only this many samples, from the start.

    Raises:
        DatasetError: if the dataset is empty, lacks a column, or repeats an id.

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
        metadata_columns: Sequence[str] = (),
        size: int | None = None,
        resize: str = "squash",
        mode: str | None = None,
        limit: int | None = None,
    ) -> None:
        if isinstance(dataset, str | Path):
            dataset, found = sources.load(DatasetSpec(dataset=str(dataset)))
            ids = found if ids is None else ids
        self._dataset = dataset
        self._size = size
        self._resize = resize
        self._encode: Callable[[Sample], Sample] | None = None
        self._mode = mode
        self._manifest: Manifest | None = None
        length = _length(dataset)
        if ids is not None and len(ids) != length:
            raise DatasetError(f"{len(ids)} ids were given for {length} samples")
        length = length if limit is None else min(limit, length)
        if length == 0:
            check_ids([])
        first = self._item(0, "0")
        self._image_column = _find(first, image_column, IMAGE_COLUMNS, "image")
        self._label_column = (
            _find(first, label_column, _LABEL_COLUMNS, "label")
            if label_column is not None or any(name in first for name in _LABEL_COLUMNS)
            else None
        )
        self._caption_column = (
            _find(first, caption_column, _CAPTION_COLUMNS, "caption")
            if caption_column is not None or any(name in first for name in _CAPTION_COLUMNS)
            else None
        )
        self._metadata_columns = [c for c in metadata_columns if c != self._label_column]
        for name in (*metadata_columns, *([id_column] if id_column else [])):
            _find(first, name, (), "metadata")
        if ids is not None:
            self.ids = list(ids)[:length]
        elif id_column is not None:
            self.ids = [
                str(_plain(value, str(row)))
                for row, value in enumerate(self._column(id_column, length))
            ]
        else:
            self.ids = [str(row) for row in range(length)]
        check_ids(self.ids)
        self._rows: Sequence[int] = range(length)
        self._read: Sequence[Sample] | None = None

    @classmethod
    def of(cls, dataset: Any) -> Samples:
        """`dataset` itself if it is already `Samples`, else wrapped with the defaults.

        Args:
            dataset: what `Samples` accepts; or text, as for `--dataset`: a folder of images, a
                `.parquet` file, `digits` or `hf://NAME`.
        """
        return dataset if isinstance(dataset, cls) else cls(dataset)

    @classmethod
    def from_spec(cls, spec: DatasetSpec) -> Samples:
        """Load the dataset of a specification.

        Raises:
            DatasetError: if the dataset does not exist or cannot be read.
        """
        dataset, ids = sources.load(spec)
        return cls(
            dataset,
            ids=ids,
            id_column=spec.id_column,
            image_column=spec.image_column,
            label_column=spec.label_column,
            caption_column=spec.caption_column,
            metadata_columns=spec.metadata_columns,
            size=spec.size,
            resize=spec.resize,
            mode=spec.mode,
            limit=spec.limit,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, ids: Sequence[str]) -> Samples:
        """The samples with these ids, in this order.

        Raises:
            DatasetError: if one of the ids is missing.
        """
        place = {name: row for row, name in enumerate(self.ids)}
        lacking = [name for name in ids if name not in place]
        if lacking:
            raise DatasetError(
                f"the dataset has no sample {lacking[0]!r} (and lacks {len(lacking) - 1} more). "
                "Restore the dataset that the store was made from."
            )
        chosen = copy(self)
        chosen.ids = list(ids)
        chosen._rows = [self._rows[place[name]] for name in ids]
        chosen._manifest = None
        chosen._read = None
        return chosen

    def encoded(self, encode: Callable[[Sample], Sample]) -> Samples:
        """The same samples, each encoded when it is read."""
        chosen = copy(self)
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
        if self._read is not None:
            return self._read[row]
        name = self.ids[row]
        item = self._item(self._rows[row], name)
        value = item[self._image_column]
        picture = None
        geometry: tuple[int, ...] = ()
        if isinstance(value, Image.Image):
            picture, geometry = self._converted(value)
        given = item.get("conditions")
        sample = Sample(
            name=name,
            tensor=to_tensor(value, name) if picture is None else image_tensor(picture, name),
            picture=picture,
            label=_plain(item.get(self._label_column), name) if self._label_column else None,
            conditions={key: torch.as_tensor(condition) for key, condition in given.items()}
            if isinstance(given, Mapping)
            else {},
            columns=item,
            caption=_caption(item.get(self._caption_column), name)
            if self._caption_column
            else None,
            geometry=geometry,
        )
        return sample if self._encode is None else self._encode(sample)

    def _item(self, row: int, name: str) -> Mapping[str, Any]:
        try:
            return _columns(self._dataset[row])
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DatasetError(
                f"sample {name!r} cannot be read: {error}. Repair or remove it."
            ) from error
        except (LookupError, TypeError, ArithmeticError, RuntimeError) as error:
            kind = type(self._dataset)
            if isinstance(self._dataset, Mapping) or not hasattr(kind, "__getitem__"):
                raise DatasetError(
                    f"a {kind.__name__} cannot be indexed by row number ({error!r}). Give one "
                    "split of a map-style dataset."
                ) from error
            raise DatasetError(
                f"sample {name!r} cannot be read: {kind.__name__} raised {error!r} for item {row}. "
                "Repair the dataset or the sample."
            ) from error

    def _column(self, name: str, length: int) -> list[Any]:
        if hasattr(self._dataset, "select_columns"):  # datasets.Dataset: decodes no other column
            return list(self._dataset.select_columns([name])[:length][name])
        return [self._item(row, str(row))[name] for row in range(length)]

    def image(self, row: int) -> Image.Image | None:
        """The sample as a PIL image, or None if it is not an image."""
        sample = self[row]
        return to_image(sample.tensor) if sample.picture is None else sample.picture.copy()

    def _converted(self, image: Image.Image) -> tuple[Image.Image, tuple[int, ...]]:
        """An image in the wanted mode and size, and its geometry: see `Sample`."""
        if self._mode is not None and image.mode != self._mode:
            image = image.convert(self._mode)
        before, top, left = (image.height, image.width), 0, 0
        if self._size is not None and image.size != (self._size, self._size):
            if self._resize == "crop":
                image, top, left = cropped(image, self._size)
            else:
                image = image.resize((self._size, self._size), Image.Resampling.BICUBIC)
        return image, (*before, top, left, image.height, image.width)

    @property
    def manifest(self) -> Manifest:
        """Ids, digests and metadata; reads every sample on first use."""
        return self._manifest or self.scan(lambda _: None)

    def scan(self, check: Callable[[Sample], None]) -> Manifest:
        """Read every sample once, check it, and return ids, digests and metadata.

        Raises:
            DatasetError: if a sample cannot be read.
        """
        digests = []
        metadata: dict[str, list[Any]] = {name: [] for name in self._metadata_columns}
        if self._label_column is not None:
            metadata["label"] = []
        for row in track(range(len(self)), "reading the dataset", "samples"):
            sample = self[row]
            check(sample)
            digests.append(sample.digest())
            for name in self._metadata_columns:
                metadata[name].append(_plain(sample.columns.get(name), sample.name))
            if self._label_column is not None:
                metadata["label"].append(self._label_name(sample.label))
        self._manifest = Manifest(self.ids, digests, metadata)
        return self._manifest

    def _label_name(self, label: Any) -> str | None:
        """A label's readable name; None for no label, which hub datasets encode as −1."""
        features = getattr(self._dataset, "features", None)
        feature = features.get(self._label_column) if isinstance(features, Mapping) else None
        names = getattr(feature, "names", None)
        if names and isinstance(label, int):
            return str(names[label]) if 0 <= label < len(names) else None
        return None if label is None else str(label)


def _caption(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DatasetError(
            f"sample {name!r} has a {type(value).__name__} as its caption: each sample needs one "
            "text. Name another column with --caption-column."
        )
    return value


def _columns(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    if isinstance(item, tuple | list) and len(item) >= 2:
        return {"image": item[0], "label": item[1]}
    return {"image": item[0] if isinstance(item, tuple | list) else item}


def _find(columns: Mapping[str, Any], wanted: str | None, usual: Sequence[str], kind: str) -> str:
    for name in [wanted] if wanted is not None else usual:
        if name in columns:
            return name
    looked = repr(wanted) if wanted is not None else " or ".join(map(repr, usual))
    flag = "id or metadata column" if kind == "metadata" else f"--{kind}-column"
    raise DatasetError(
        f"the dataset has no column {looked}; its columns are "
        f"{', '.join(map(repr, columns))}. Name one of them as the {flag}."
    )


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError as error:
        raise DatasetError(
            f"a {type(dataset).__name__} has no length: give a map-style dataset, not an "
            "iterable one, because samples are read repeatedly by number."
        ) from error


def _plain(value: Any, name: str) -> Any:
    """A label or metadata value as a plain Python value."""
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1:
            raise DatasetError(
                f"sample {name!r} has a label or metadata of shape {tuple(value.shape)}: each "
                "sample needs one number or text. Use --label-column or omit it."
            )
        return value.item()
    return value
