"""A small store to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradstore.store.reader import Store
from tests.support.written_stores import (
    filled,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")
