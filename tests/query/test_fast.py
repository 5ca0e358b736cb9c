from __future__ import annotations

import pytest

from gradstore.errors import ConfigError
from gradstore.flags.fast import FAST, Setting
from gradstore.flags.query import QueryConfig


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [0, 0, 0, 0, 31]),
        (2, [0, 3, 0, 0, 28]),
        (3, [1, 0, 6, 0, 24]),
        (4, [1, 2, 4, 0, 24]),
        (5, [1, 2, 4, 8, 16]),
        (9, [1, 2, 4, 8, 16]),
    ],
)
def test_checkpoints_that_are_left_stand_for_the_others(count: int, expected: list[float]) -> None:
    assert Setting(1, 1, count).etas([1, 2, 4, 8, 16]) == expected


def test_fast_is_kept_as_what_it_was() -> None:
    config = QueryConfig.model_validate({"store": "s", "dataset": "d", "out": "o", "fast": True})
    assert (config.timesteps, config.draws) == (FAST.timesteps, FAST.draws)
    assert QueryConfig.model_validate(config.model_dump()) == config  # the stored settings
    plain = QueryConfig.model_validate({"store": "s", "dataset": "d", "out": "o"})
    assert plain.timesteps * plain.draws > FAST.timesteps * FAST.draws


@pytest.mark.parametrize("other", [{"timesteps": 9}, {"draws": 3}, {"etas": ["0", "1"]}])
def test_fast_and_what_it_chooses_exclude_each_other(other: dict[str, object]) -> None:
    given = {"store": "s", "dataset": "d", "out": "o", "fast": True, **other}
    with pytest.raises(ConfigError, match=f"--fast chooses .* --{next(iter(other))} .* was given"):
        QueryConfig.model_validate(given)
