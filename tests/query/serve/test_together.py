from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from gradstore.errors import QueryError
from query.serve.library import Kept
from query.serve.together import Together

SECONDS = 20


class Asked:
    """Answers by name, and says what was answered together; `hold` stops what it names."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.hold = {"slow": Event(), "first": Event()}
        self.begun = Event()

    def prepare(self, key: str) -> None:
        if key == "slow":
            assert self.hold[key].wait(SECONDS)
        if key == "broken":
            raise QueryError("no kernel")

    def answer(self, key: str, names: Sequence[str]) -> list[bytes]:
        self.batches.append(list(names))
        self.begun.set()
        if "first" in names:
            assert self.hold["first"].wait(SECONDS)
        return [f"{key} {name}".encode() for name in names]


@contextmanager
def asking(asked: Asked) -> Iterator[Together]:
    together = Together(asked.prepare, asked.answer)
    try:
        yield together
    finally:
        for one in asked.hold.values():
            one.set()
        together.close()


def test_questions_that_wait_share_a_search() -> None:
    asked = Asked()
    with asking(asked) as together:
        first = together.ask("key", "first")
        assert asked.begun.wait(SECONDS)
        others = [together.ask("key", name) for name in "abcab"]
        asked.hold["first"].set()
        assert first.result(SECONDS) == b"key first"
        found = [one.result(SECONDS) for one in others]
    assert found == [f"key {name}".encode() for name in "abcab"]
    assert asked.batches == [["first"], ["a", "b", "c"]]


def test_one_search_runs_at_a_time() -> None:
    asked = Asked()
    with asking(asked) as together:
        first = together.ask("key", "first")
        assert asked.begun.wait(SECONDS)
        other = together.ask("another key", "a")
        with pytest.raises(TimeoutError):
            other.result(0.3)
        assert asked.batches == [["first"]]
        asked.hold["first"].set()
        assert first.result(SECONDS) == b"key first"
        assert other.result(SECONDS) == b"another key a"


def test_rest_comes_when_nothing_waits() -> None:
    asked, rested = Asked(), Event()
    with asking(asked) as together:
        assert together.rest()
        first = together.ask("key", "first")
        assert asked.begun.wait(SECONDS)

        def rest() -> None:
            together.rest()
            rested.set()

        resting = Thread(target=rest)
        resting.start()
        assert not rested.wait(0.3)
        asked.hold["first"].set()
        assert first.result(SECONDS) == b"key first"
        assert rested.wait(SECONDS)
        resting.join()
    assert not together.rest()


def test_what_takes_long_to_prepare_holds_nobody_up() -> None:
    asked = Asked()
    with asking(asked) as together:
        slow = together.ask("slow", "a")
        assert together.ask("key", "b").result(SECONDS) == b"key b"
        assert not slow.done()
        asked.hold["slow"].set()
        assert slow.result(SECONDS) == b"slow a"


def test_what_cannot_be_prepared_is_told() -> None:
    asked = Asked()
    with asking(asked) as together:
        for name in "ab":
            with pytest.raises(QueryError):
                together.ask("broken", name).result(SECONDS)
        assert together.ask("key", "b").result(SECONDS) == b"key b"
    assert asked.batches == [["b"]]


def test_values_are_kept_within_their_size() -> None:
    kept = Kept[bytes](10, len)
    kept.put("a", b"1234")
    kept.put("b", b"1234")
    kept.put("a", b"123456")
    assert kept.get("b") == b"1234"
    kept.put("c", b"12345")  # a was used least recently
    assert [kept.get(one) for one in "abc"] == [None, b"1234", b"12345"]
    kept.put("d", bytes(20))
    assert [kept.get(one) for one in "bcd"] == [None, None, bytes(20)]
