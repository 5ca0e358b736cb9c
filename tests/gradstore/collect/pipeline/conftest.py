"""A store that tests of collecting are compared with."""

from __future__ import annotations

import pytest

from gradstore.collect import (
    collect,
)
from gradstore.store.reader import Store
from tests.support.collected import SMALL
from tests.support.worlds import World


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("reference") / "train.gradstore"
    return collect(world.train, world.checkpoints, path, **SMALL)
