"""Converts dataset values to images and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from gradstore.errors import DatasetError

if TYPE_CHECKING:
    from torch import Tensor


def to_image(tensor: Tensor) -> Image.Image | None:
    """Convert a tensor in −1 … 1, `[1, 3 or 4 channels, height, width]`, to an image, else None."""
    if tensor.ndim != 3 or tensor.shape[0] not in {1, 3, 4}:
        return None
    array = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array = array.permute(1, 2, 0)
    return Image.fromarray((array[..., 0] if array.shape[2] == 1 else array).numpy())


def resized(
    image: Image.Image, *, size: int | None, resize: str, interpolation: str | None
) -> tuple[Image.Image, tuple[int, ...]]:
    """Resize an image to a square.

    Args:
        image: the image.
        size: side of the result, in pixels; None to leave the image as it is.
        resize: `squash`: both sides to `size`; `crop`: the shorter side, then the centre, as
            diffusers' scripts do; `pad`: the longer side, then white on both ends of the other.
        interpolation: name of a filter of Pillow; by default `bilinear` of `crop`, else `bicubic`.

    Returns:
        The result, and its geometry: height and width before, top and left of the crop, height and
        width after; in pixels.
    """
    before, top, left = (image.height, image.width), 0, 0
    if size is not None and image.size != (size, size):
        usual = "bilinear" if resize == "crop" else "bicubic"
        pixels = Image.Resampling[(interpolation or usual).upper()]
        if resize == "crop":
            short = min(image.size)
            width, height = (
                size if side == short else int(size * side / short) for side in image.size
            )
            image = image.resize((width, height), pixels)
            top, left = round((image.height - size) / 2), round((image.width - size) / 2)
            image = image.crop((left, top, left + size, top + size))
        elif resize == "pad":
            white = (255,) * len(image.getbands())
            image = ImageOps.pad(image, (size, size), pixels, color=white)
        else:
            image = image.resize((size, size), pixels)
    return image, (*before, top, left, image.height, image.width)


def image_tensor(image: Image.Image, name: str) -> Tensor:
    """Convert an image to float32 in −1 … 1, `[channels, height, width]`."""
    if image.mode not in {"L", "RGB", "RGBA", "F"}:
        raise DatasetError(
            f"sample {name!r} is an image of mode {image.mode!r}, which is not supported. "
            "Convert with --mode RGB or --mode L."
        )
    array = torch.from_numpy(np.array(image, dtype=np.float32))
    array = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
    return (array / 127.5 - 1).contiguous()


def to_tensor(value: Any, name: str) -> Tensor:
    """Convert an array of floats to a float32 tensor.

    Raises:
        DatasetError: if it is not an array of finite floats.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DatasetError(
            f"sample {name!r} is a {type(value).__name__}, neither an image nor an array. Name "
            "the right column with --image-column."
        ) from error
    if not tensor.is_floating_point():
        raise DatasetError(
            f"sample {name!r} is an array of {tensor.dtype}: give floats in the model's range, "
            "or PIL images."
        )
    if not torch.isfinite(tensor).all():
        raise DatasetError(f"sample {name!r} has values that are not finite. Remove or repair it.")
    return tensor.to(torch.float32)
