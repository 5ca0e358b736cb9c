"""Converts dataset values to images and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

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


def cropped(image: Image.Image, size: int) -> tuple[Image.Image, int, int]:
    """Resize the shorter side of an image and crop the centre, as diffusers' scripts do.

    Args:
        image: the image.
        size: side of the result, in pixels.

    Returns:
        The result, and top and left of the crop.
    """
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image.crop((left, top, left + size, top + size)), top, left


def image_tensor(image: Image.Image, name: str) -> Tensor:
    """Convert an image to float32 in −1 … 1, `[channels, height, width]`."""
    if image.mode not in {"L", "RGB", "RGBA"}:
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
