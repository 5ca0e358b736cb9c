from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradstore.errors import ConfigError
from gradstore.store.format.layout import SHARD_BYTES, SHARD_SAMPLES, Layout

sizes = {
    "samples": st.integers(1, 10**7),
    "slots": st.integers(1, 200),
    "dim": st.integers(1, 1 << 17),
    "dtype": st.sampled_from(["float16", "float32"]),
    "shard_samples": st.none() | st.integers(1, 5000),
}


@given(**sizes)
def test_shards_partition_the_samples(
    samples: int, slots: int, dim: int, dtype: str, shard_samples: int | None
) -> None:
    layout = Layout.choose(samples, slots, dim, dtype, shard_samples)
    assert layout.shard_samples % layout.chunk_samples == 0
    assert layout.span(0)[0] == 0
    assert layout.span(layout.shards - 1)[1] == samples
    for shard in {0, layout.shards // 2, layout.shards - 1}:
        start, stop = layout.span(shard)
        assert 0 < stop - start <= layout.shard_samples
        assert layout.shards_of(start, stop) == range(shard, shard + 1)
        if shard + 1 < layout.shards:
            assert layout.span(shard + 1)[0] == stop


@given(**sizes)
def test_sizes_are_bounded_or_as_asked(
    samples: int, slots: int, dim: int, dtype: str, shard_samples: int | None
) -> None:
    layout = Layout.choose(samples, slots, dim, dtype, shard_samples)
    if shard_samples is not None:
        assert layout.shard_samples == shard_samples
    else:
        itemsize = 2 if dtype == "float16" else 4
        assert layout.shard_samples <= SHARD_SAMPLES
        assert (
            layout.shard_samples == 1
            or layout.shard_samples * slots * dim * itemsize <= SHARD_BYTES
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"dtype": "int64"}, "dtype is 'int64'"),
        ({"shard_samples": 5}, "not a multiple"),
    ],
)
def test_nonsense_is_refused(change: dict[str, object], message: str) -> None:
    good = {
        "samples": 10, "slots": 1, "dim": 4, "dtype": "float16", "chunk_samples": 2,
        "shard_samples": 4,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        Layout(**(good | change))  # type: ignore[arg-type]


def test_what_does_not_exist_is_refused() -> None:
    layout = Layout(10, 1, 4, "float16", 2, 4)
    with pytest.raises(ConfigError, match="shard 3 does not exist; there are 3"):
        layout.span(3)
    with pytest.raises(ConfigError, match="samples 5:11 are not within 0:10"):
        layout.shards_of(5, 11)
