"""One sample: what the model is given of it, and what tells it from another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch

from gradstore.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image
    from torch import Tensor


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
        pictures: further pictures that its model is given, by kind: see `Encoders.pictures`.
        content: hash of pictures, caption and encoders, if it is encoded.
        sized: whether the user chose its size, which the model need not have been made for.
    """

    name: str
    tensor: Tensor
    picture: Image.Image | None
    label: Any
    conditions: dict[str, Tensor]
    columns: Mapping[str, Any]
    caption: str | None = None
    geometry: tuple[int, ...] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    content: str = ""
    sized: bool = True

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
        return torch.tensor(int(number))

    def flipped(self) -> Sample:
        """The sample from right to left; its conditions stay."""

        def flip(picture: Image.Image) -> Image.Image:
            return picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)

        return replace(
            self,
            tensor=self.tensor.flip(-1),
            picture=None if self.picture is None else flip(self.picture),
            pictures={kind: flip(picture) for kind, picture in self.pictures.items()},
        )

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
