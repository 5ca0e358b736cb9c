"""Checkpoints are dropped from a store and numbered."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradstore import drop_checkpoint, open_store, vacuum
from gradstore.errors import StoreError
from gradstore.store.changes.checkpoints import begin_checkpoint, next_number
from gradstore.store.format.rows import ARRAYS
from gradstore.store.format.spec import CheckpointSpec
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.written_stores import (
    everything,
    filled,
    grown,
    other_store,
    require_equal,
)


def test_a_dropped_checkpoint(store: Store) -> None:
    before = everything(store)
    after = drop_checkpoint(store, 0)
    assert after.numbers == [1]
    assert after.etas == [1]
    assert after.spec.fingerprint != store.spec.fingerprint
    require_equal(everything(after), {f"0/{name}": before[f"1/{name}"] for name in ARRAYS})
    assert {report.problem for report in verify(after)} == {None}
    assert (store.path / "checkpoints/0").exists()
    vacuum(after)
    assert not (store.path / "checkpoints/0").exists()
    assert not (store.path / "seals/0").exists()
    require_equal(
        everything(open_store(store.path)), {f"0/{name}": before[f"1/{name}"] for name in ARRAYS}
    )
    with pytest.raises(StoreError, match="only this checkpoint"):
        drop_checkpoint(after, 0)
    with pytest.raises(StoreError, match="no 7"):
        drop_checkpoint(after, 7)


def test_the_weights_of_those_that_stay(tmp_path: Path) -> None:
    """As without the dropped one: η is the difference of learning rate sums."""
    checkpoints = [
        CheckpointSpec(path=str(k), eta=eta, learning_rate_sum=total, number=k)
        for k, (eta, total) in enumerate([(0.5, 0.5), (0.25, 0.75)])
    ]
    made = other_store(tmp_path / "a.gradstore", ["p"], checkpoints=checkpoints)
    assert drop_checkpoint(made, 0).etas == [0.75]


def test_a_dropped_checkpoint_s_number_is_not_given_again(tmp_path: Path) -> None:
    store = drop_checkpoint(filled(tmp_path / "s.gradstore"), 1)
    assert next_number(store, "w") == 2
    assert next_number(vacuum(store), "w") == 2


def test_a_checkpoint_s_number_is_of_its_weights(store: Store) -> None:
    """Two processes add different checkpoints at once, or one was killed."""
    store = grown(store, ["a", "b"])
    begin_checkpoint(store, next_number(store, "w"), "w")
    assert next_number(store, "w") == 2  # resumes
    assert next_number(store, "v") == 3
    with pytest.raises(StoreError, match="another process has begun another checkpoint"):
        begin_checkpoint(store, 2, "v")
    assert next_number(vacuum(store), "v") == 3
