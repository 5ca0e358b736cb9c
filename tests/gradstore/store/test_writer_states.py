"""A store against a model of it: written, killed at any step, damaged, reopened."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gradstore.errors import StoreError, UnsealedError
from gradstore.store import writer
from gradstore.store.format.encoding import encode_column
from gradstore.store.format.rows import ARRAYS
from gradstore.store.opening import open_store
from gradstore.store.verify import verify
from gradstore.store.writer import create, unseal, write_shard
from tests.support.written_stores import LAYOUT, manifest, rows, spec

HARMS = st.sampled_from(["flip", "cut", "gone"])
CHECKPOINTS, SHARDS = st.integers(0, 1), st.integers(0, LAYOUT.shards - 1)
SEALED_FROM = writer.STEPS.index("sealed")


class KilledError(BaseException):
    """The process died."""


class StoreStates(RuleBasedStateMachine):
    """The model: the sealed version of each shard, and the damaged shards."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.sealed: dict[tuple[int, int], int] = {}
        self.damaged: set[tuple[int, int]] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def make(self) -> None:
        self.store = create(self.folder / "s.gradstore", spec(), manifest())

    @rule()
    def open_again(self) -> None:
        self.store = open_store(self.store.path)

    @rule(checkpoint=CHECKPOINTS, shard=SHARDS, version=st.integers(0, 3))
    def write(self, checkpoint: int, shard: int, version: int) -> None:
        write_shard(self.store.parts[0], checkpoint, shard, rows(shard, version))
        self.sealed[checkpoint, shard] = version
        self.damaged.discard((checkpoint, shard))

    @rule(
        checkpoint=CHECKPOINTS,
        shard=SHARDS,
        version=st.integers(0, 3),
        step=st.sampled_from(writer.STEPS),
    )
    def write_and_die(self, checkpoint: int, shard: int, version: int, step: str) -> None:
        def reached(now: str) -> None:
            if now == step:
                raise KilledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "reached", reached)
            with pytest.raises(KilledError):
                write_shard(self.store.parts[0], checkpoint, shard, rows(shard, version))
        place = writer.STEPS.index(step)
        if place >= SEALED_FROM:
            self.sealed[checkpoint, shard] = version
        elif place > writer.STEPS.index("begun"):
            self.sealed.pop((checkpoint, shard), None)
        if place > writer.STEPS.index("begun"):
            self.damaged.discard((checkpoint, shard))

    @precondition(lambda self: self.sealed.keys() - self.damaged)
    @rule(
        data=st.data(),
        name=st.sampled_from(["direction", "columns"]),
        how=st.sampled_from(["flip", "cut", "gone"]),
    )
    def damage(self, data: Any, name: str, how: str) -> None:
        # The same bit flipped twice would be no damage.
        whole = sorted(self.sealed.keys() - self.damaged)
        checkpoint, shard = data.draw(st.sampled_from(whole))
        file = self.store.path / f"checkpoints/{checkpoint}/{name}/c.{shard}.0.0"
        content = bytearray(file.read_bytes()) if file.exists() else bytearray()
        if how == "gone" or not content:
            file.unlink(missing_ok=True)
        else:
            place = data.draw(st.integers(0, len(content) - 1))
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            file.write_bytes(content if how == "flip" else content[:place])
        self.damaged.add((checkpoint, shard))

    @precondition(lambda self: self.sealed)
    @rule(data=st.data())
    def remove_a_seal(self, data: Any) -> None:
        task = data.draw(st.sampled_from(sorted(self.sealed)))
        unseal(self.store.parts[0], *task)
        del self.sealed[task]
        self.damaged.discard(task)

    @rule(checkpoint=CHECKPOINTS, data=st.data())
    def read(self, checkpoint: int, data: Any) -> None:
        start = data.draw(st.integers(0, LAYOUT.samples - 1))
        stop = data.draw(st.integers(start + 1, LAYOUT.samples))
        shards = LAYOUT.shards_of(start, stop)
        if any((checkpoint, shard) not in self.sealed for shard in shards):
            with pytest.raises(UnsealedError):
                self.store.rows(checkpoint, start, stop)
            return
        try:
            found = self.store.rows(checkpoint, start, stop)
        except StoreError:
            assert any((checkpoint, shard) in self.damaged for shard in shards)
            return
        for shard in shards:
            if (checkpoint, shard) in self.damaged:
                continue  # damage outside this read
            low, high = LAYOUT.span(shard)
            first, last = max(low, start), min(high, stop)
            for name in ARRAYS:
                expected = getattr(rows(shard, self.sealed[checkpoint, shard]), name)
                np.testing.assert_array_equal(
                    getattr(found, name)[first - start : last - start],
                    expected[first - low : last - low],
                )

    @invariant()
    def what_is_sealed_is_known(self) -> None:
        if hasattr(self, "store"):
            found = {(k, shard) for k in range(2) for shard in self.store.parts[0].sealed(k)}
            assert found == set(self.sealed)

    @rule()
    def verify_names_what_is_damaged(self) -> None:
        wrong = {(one.checkpoint, one.shard) for one in verify(self.store) if one.problem}
        unsealed = {(k, s) for k in range(2) for s in range(LAYOUT.shards)} - set(self.sealed)
        assert wrong - unsealed <= self.damaged
        whole = {task for task in self.damaged if self._is_whole(task)}
        assert self.damaged - whole <= wrong

    def _is_whole(self, task: tuple[int, int]) -> bool:
        """Whether the damage cancelled out: the same bit flipped twice."""
        encoded = rows(task[1], self.sealed[task]).stored(LAYOUT.dtype)
        part = self.store.parts[0]
        contents = {"direction": bytes(part.codec.encode(encoded["direction"]))}
        for name in part.columns:
            fill = -1 if name == "timestep" else float("nan")
            contents[name] = encode_column(encoded[name], fill, LAYOUT.shard_samples)
        for name, content in contents.items():
            file = self.store.path / part.array_key(task[0], name, task[1])
            if not file.exists() or file.read_bytes() != content:
                return False
        return True


StoreStates.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestStoreStates = StoreStates.TestCase
