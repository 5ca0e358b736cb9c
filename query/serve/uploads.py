"""Images from strangers: bounded in bytes and pixels, decoded in few formats."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from gradstore.errors import DatasetError

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES: Final = 32 * 2**20
_MOST_PIXELS: Final = 50_000_000
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


@dataclass(frozen=True)
class Upload:
    """A decoded image.

    Attributes:
        name: its name in links: a hash of the file, the label and the caption.
        image: the image.
        label: its class, for a class-conditional model.
        caption: for a text-to-image model.
    """

    name: str
    image: Image.Image
    label: str | None = None
    caption: str | None = None

    @classmethod
    def read(cls, content: bytes, label: str | None = None, caption: str | None = None) -> Upload:
        """Decode a file.

        Raises:
            DatasetError: if it is too large, or no image of a known format.
        """
        from PIL import Image

        if len(content) > MOST_BYTES:
            raise DatasetError(
                f"the image has more than {MOST_BYTES // 2**20} MiB. Give a smaller file."
            )
        try:
            with warnings.catch_warnings():
                # Pillow warns of images that this refuses by its own bound.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                    pixels = image.width * image.height
                    if pixels > _MOST_PIXELS:
                        raise DatasetError(
                            f"the image has {pixels:,} pixels, more than {_MOST_PIXELS:,}. Give a "
                            "smaller one."
                        )
                    image.load()
                    decoded = image.copy()
        except DatasetError:
            raise
        except (
            OSError,
            ValueError,
            SyntaxError,
            ArithmeticError,
            Image.DecompressionBombError,
        ) as error:
            raise DatasetError(
                f"the file is not an image that can be read ({type(error).__name__}). Give one of "
                f"{', '.join(_FORMATS)}."
            ) from error
        digest = sha256(content)
        for kind, text in (("label", label), ("caption", caption)):
            if text is not None:
                digest.update(f"\0{kind}\0{text}".encode())
        return cls(digest.hexdigest()[:24], decoded, label, caption)
