from __future__ import annotations

import pytest

from gradstore.errors import FingerprintError
from gradstore.store.format.fingerprint import differences, fingerprint, require_same
from gradstore.store.format.spec import Identity


def test_key_order_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


def test_differences_are_leaves() -> None:
    left: Identity = {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 5}
    right: Identity = {"a": {"b": 1, "c": 3}, "d": [1, 4], "e": 5, "f": 0}
    assert differences(left, right) == [("a.c", 2, 3), ("d.1", 2, 4), ("f", None, 0)]


def test_the_message_says_what_differs_and_how_to_mend_it() -> None:
    left: Identity = {"projector": {"seed": 0}, "events": {"kind": "replayed"}}
    right: Identity = {"projector": {"seed": 1}, "events": {"kind": "planned"}}
    with pytest.raises(FingerprintError) as caught:
        require_same(left, right, expected_name="A", found_name="B", sections=("projector",))
    message = str(caught.value)
    assert "B does not fit A" in message
    assert "projector.seed: 0 in A, 1 in B" in message
    assert "use the store's projector" in message
    assert "events" not in message
    require_same(left, right, expected_name="A", found_name="B", sections=())


def test_many_differences_are_cut() -> None:
    left: Identity = {"model": {str(n): 0 for n in range(30)}}
    right: Identity = {"model": {str(n): 1 for n in range(30)}}
    with pytest.raises(FingerprintError, match="and 18 more"):
        require_same(left, right, expected_name="A", found_name="B", sections=("model",))
