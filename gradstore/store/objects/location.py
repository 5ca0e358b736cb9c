"""Choice of the storage backend by a path or URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gradstore.store.objects.local import LocalObjects

if TYPE_CHECKING:
    from gradstore.store.objects.protocol import Objects

_URL = re.compile(r"^[a-z][a-z0-9+.-]+://")


def objects_at(location: str | os.PathLike[str] | Objects) -> Objects:
    """The objects at a path or URL: `s3://`, `gs://`, `az://`, `http(s)://`, `file://`.

    Raises:
        StoreError: if a URL is of another kind.
    """
    if not isinstance(location, str | os.PathLike):
        return location
    text = os.fspath(location)
    if text.startswith("file://"):
        return LocalObjects(Path(text.removeprefix("file://")))
    if _URL.match(text):
        from gradstore.store.objects.remote import RemoteObjects

        return RemoteObjects(text)
    return LocalObjects(Path(text))
