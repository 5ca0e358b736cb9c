"""Decodes the pictures of every source by the same rules.

The rules have a version, which stores record: a store is read again as it was collected. Version 1
took pictures as their files hold them.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageCms, ImageOps

from gradstore.errors import DatasetError, UnreadableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger("gradstore")

_ORIENTATION: Final = 0x0112
# How the pixels of each EXIF orientation are turned to stand upright.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY: Final = {"1", "L", "LA"}
# PostScript is a program, which Ghostscript would run.
_BY_PROGRAMS: Final = {"EPS"}


@dataclass(frozen=True)
class Encoded:
    """The file of a picture.

    Attributes:
        content: its bytes.
        turned: whether version 1 of the rules turned it by its EXIF orientation.
    """

    content: bytes
    turned: bool = False

    def opened(self) -> Image.Image:
        """The first picture in the file, as it is there."""
        image = Image.open(io.BytesIO(self.content), formats=_formats())
        image.load()
        return image


@cache
def _formats() -> list[str]:
    """The formats of pictures that are read: not those that Pillow hands to another program."""
    Image.init()
    return [name for name in Image.ID if name not in _BY_PROGRAMS]


class Decoder:
    """Decodes pictures; says once what of them is not kept.

    The picture stands as its EXIF orientation says. It has mode `L`, `RGB`, or `mode`; or `F`, 0 …
    255, if it has 16 bits of grey. Colours are sRGB: ICC profiles are applied, CMYK and palettes
    converted. What is transparent is composed on white, unless `mode` is `RGBA`. Of several frames
    the first is taken.

    Args:
        mode: mode of all pictures, `L`, `RGB` or `RGBA`; by default each is grey or RGB, as it was.
        reading: version of the rules.
    """

    def __init__(self, mode: str | None, reading: int) -> None:
        self._mode, self._reading = mode, reading
        self._told: set[str] = set()

    def __call__(self, given: Encoded | Image.Image, name: str) -> Image.Image:
        """Decode the picture of a sample.

        Raises:
            UnreadableError: if it is damaged.
            DatasetError: if its values have no known range.
        """
        try:
            image = given.opened() if isinstance(given, Encoded) else given
            if self._reading < 2:
                return self._as_before(image, turned=isinstance(given, Encoded) and given.turned)
            found = self._decoded(image, name)
        except DatasetError:
            raise
        except Exception as error:  # decoders of damaged files raise any: SyntaxError, struct.error
            raise unreadable(name, str(error) or type(error).__name__) from error
        found.info = {}  # what has been applied, the orientation too, must not be applied again
        return found

    def _as_before(self, image: Image.Image, *, turned: bool) -> Image.Image:
        image = ImageOps.exif_transpose(image) if turned else image
        return image if self._mode in {None, image.mode} else image.convert(self._mode)

    def _decoded(self, image: Image.Image, name: str) -> Image.Image:
        if getattr(image, "is_animated", False):
            self._tell("frames", name, "has several frames, of which the first is taken")
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        profile = image.info.get("icc_profile")
        if image.mode.startswith(("I", "F")):
            colour, alpha = _grey(image, name)
        else:
            colour, alpha = _parts(image)
            if profile:
                colour = self._standard(colour, profile, name)
            if colour.mode not in {"L", "RGB"}:
                colour = colour.convert("RGB")
        if self._mode is not None and colour.mode == "F":
            colour = shown(colour)
        if self._mode == "RGBA":
            colour = colour.convert("RGBA")
            if alpha is not None:
                colour.putalpha(alpha)
        else:
            colour = colour if self._mode is None else colour.convert(self._mode)
            if alpha is not None:
                colour = self._on_white(colour, alpha, name)
        return colour.copy() if turn is None else colour.transpose(turn)

    def _on_white(self, colour: Image.Image, alpha: Image.Image, name: str) -> Image.Image:
        if alpha.getextrema()[0] == 255:
            return colour
        self._tell(
            "transparency", name, "is transparent and composed on white; --mode RGBA keeps it"
        )
        white = Image.new(colour.mode, colour.size, "white" if colour.mode != "F" else 255.0)
        return Image.composite(colour, white, alpha)

    def _standard(self, image: Image.Image, profile: bytes, name: str) -> Image.Image:
        """The picture in sRGB; as it is if its profile does not fit it."""
        grey = image.mode == "L"
        try:
            found = ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            self._tell("profile", name, "has a colour profile that cannot be applied")
            return image
        return image if found is None else found.convert("L") if grey else found

    def _tell(self, what: str, name: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("sample %r %s (said once for all samples)", name, text)


def unreadable(name: str, reason: str) -> UnreadableError:
    """The error of a damaged sample."""
    return UnreadableError(
        f"sample {name!r} cannot be read: {reason}. Repair or remove it, or go on without it by "
        "--skip-unreadable."
    )


def shown(image: Image.Image) -> Image.Image:
    """A picture of mode `F`, 0 … 255, in 8 bits; any other as it is."""
    if image.mode != "F":
        return image
    return Image.fromarray(np.asarray(image).clip(0, 255).round().astype(np.uint8))


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours as grey, RGB, or what a profile may be for; and opacity, if the picture has any."""
    grey = image.mode in _GREY
    if not image.has_transparency_data:
        if image.mode in {"P", "RGBX"}:
            return image.convert("RGB"), None
        return (image.convert("L") if grey else image), None
    whole = image.convert("RGBA")
    colour = whole.getchannel("R") if grey else whole.convert("RGB")
    return colour, whole.getchannel("A")


def _grey(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 bits as floats 0 … 255, and opacity.

    Raises:
        DatasetError: if the values have no known range.
    """
    if not image.mode.startswith("I;16"):
        kind = "floats" if image.mode == "F" else "whole numbers of 32 bits"
        raise DatasetError(
            f"sample {name!r} is a picture of {kind}, whose range is not known. Save it with 8 or "
            "16 bits per channel, or give float tensors in the model's range from Python."
        )
    pixels: NDArray[np.uint16] = np.asarray(image)
    found = Image.fromarray(pixels.astype(np.float32) * np.float32(255 / 65535))
    clear = image.info.get("transparency")
    if clear is None:
        return found, None
    return found, Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8))
