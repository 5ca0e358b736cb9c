"""Files of pictures as cameras, scanners and programs make them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageCms

from tests.support.worlds import images

SIDE = 8
GREY, COLOUR = images(1)[0], images(1, mode="RGB")[0]


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    """A picture whose EXIF says how to hold it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(GREY, exif=exif)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def broken_exif() -> bytes:
    """A picture that can be seen, with an EXIF block that cannot be read."""
    whole = file_of(GREY)
    return whole[:33] + _chunk(b"eXIf", b"nonsense") + whole[33:]


def broken_png() -> bytes:
    """A PNG of which Pillow says SyntaxError: its second part has no name."""
    whole = file_of(GREY)
    length = int.from_bytes(whole[33:37], "big")
    first = whole[41 : 41 + length // 2]
    return whole[:33] + _chunk(b"IDAT", first) + _chunk(b"\0\1\2\3", b"")


def swapped_profile() -> bytes:
    """A profile in which the primaries of red and blue are those of each other."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(profile[128:132], "big")):
        at = 132 + 12 * number
        name = bytes(profile[at : at + 4])
        if name in {b"rXYZ", b"bXYZ"}:
            profile[at : at + 1] = b"b" if name == b"rXYZ" else b"r"
    return bytes(profile)


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 1000)


def parquet_of(path: Path, files: dict[str, bytes], **columns: Any) -> Path:
    """A Parquet file as others than `datasets` write it."""
    table = {
        "image": [{"bytes": content, "path": name} for name, content in files.items()],
        "name": list(files),
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
