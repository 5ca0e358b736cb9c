"""Finds ids, labels and captions in the columns of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.errors import DatasetError
from gradstore.store.format.manifest import composed

if TYPE_CHECKING:
    from collections.abc import Sequence

LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
CAPTION_COLUMNS = ("text", "caption", "prompt", "edit_prompt")
# Further pictures that some models are given, by kind.
PICTURE_COLUMNS = {"original": ("input_image", "original_image"), "mask": ("mask", "mask_image")}


def columns_of(item: Any) -> dict[str, Any]:
    """An item of a dataset as named columns: a mapping, `(image, label)`, or an image."""
    if isinstance(item, dict):
        return item
    if isinstance(item, tuple | list) and len(item) >= 2:
        return {"image": item[0], "label": item[1]}
    return {"image": item[0] if isinstance(item, tuple | list) else item}


def find(columns: Mapping[str, Any], wanted: str | None, usual: Sequence[str], kind: str) -> str:
    """Name of the wanted column, or the first usual one that is there.

    Raises:
        DatasetError: if there is none.
    """
    for name in [wanted] if wanted is not None else usual:
        if name in columns:
            return name
    looked = repr(wanted) if wanted is not None else " or ".join(map(repr, usual))
    flag = "id or metadata column" if kind == "metadata" else f"--{kind}-column"
    raise DatasetError(
        f"the dataset has no column {looked}; its columns are "
        f"{', '.join(map(repr, columns))}. Name one of them as the {flag}."
    )


def find_if_any(
    columns: Mapping[str, Any], wanted: str | None, usual: Sequence[str], kind: str
) -> str | None:
    """`find`, or None if no column is wanted and no usual one is there."""
    if wanted is None and not any(name in columns for name in usual):
        return None
    return find(columns, wanted, usual, kind)


def plain(value: Any, name: str) -> Any:
    """A label or metadata value as a plain Python value.

    Raises:
        DatasetError: if it is an array of several values.
    """
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


def label_of(value: Any, name: str, reading: int) -> Any:
    """A label as a plain value; None for no label.

    NaN is no label, and a float that is whole is an integer: tables with missing labels hold both.
    Of a list of labels, one alone is that label, and none is no label.

    Args:
        value: the label.
        name: the sample's id.
        reading: version of the rules; version 1 left labels as they are.
    """
    value = plain(value, name)
    if reading < 2:
        return value
    if isinstance(value, list | tuple):
        several = [label_of(one, name, reading) for one in value]
        return several if len(several) > 1 else next(iter(several), None)
    if isinstance(value, float):
        return None if isnan(value) else int(value) if value.is_integer() else value
    return value


def label_text(label: Any, features: Any, column: str | None) -> str | None:
    """A label's readable name; None for no label, which hub datasets encode as −1.

    Args:
        label: the label, or a list of labels.
        features: the features of a `datasets.Dataset`, which name classes.
        column: the label's column.
    """
    if isinstance(label, list):
        texts = (label_text(one, features, column) for one in label)
        return ", ".join(text for text in texts if text is not None) or None
    feature = features.get(column) if isinstance(features, Mapping) else None
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names and isinstance(label, int):
        return str(names[label]) if 0 <= label < len(names) else None
    return None if label is None else str(label)


def caption_of(value: Any, name: str) -> str | None:
    """A caption, or None.

    Raises:
        DatasetError: if it is no text.
    """
    if value is not None and not isinstance(value, str):
        raise DatasetError(
            f"sample {name!r} has a {type(value).__name__} as its caption: each sample needs one "
            "text. Name another column with --caption-column."
        )
    return value


def ids_of(values: Sequence[Any], reading: int) -> list[str]:
    """Ids from the values of a column.

    Raises:
        DatasetError: if one is missing.
    """
    for row, value in enumerate(values):
        if reading >= 2 and (value is None or (isinstance(value, float) and isnan(value))):
            raise DatasetError(
                f"row {row} has no id: its id column holds {value}. Give every sample an id, or "
                "name another column with --id-column."
            )
    return [str(plain(value, str(row))) for row, value in enumerate(values)]


def compared(ids: Sequence[str]) -> list[str]:
    """Ids in Unicode's form NFC, in which they are compared.

    Raises:
        DatasetError: if two are equal only after NFC.
    """
    seen: dict[str, str] = {}
    for name in ids:
        first = seen.setdefault(composed(name), name)
        if first != name:
            raise DatasetError(
                f"ids {first!r} ({_points(first)}) and {name!r} ({_points(name)}) look the same "
                "and are equal in Unicode's form NFC, in which ids are compared. Rename one."
            )
    return list(map(composed, ids))


def _points(name: str) -> str:
    """The code points of a text that are not ASCII."""
    return " ".join(f"U+{ord(one):04X}" for one in name if not one.isascii())
