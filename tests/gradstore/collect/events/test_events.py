from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gradstore.collect import EventSpec, PlannedEvents, Recorder, ReplayedEvents
from gradstore.collect.events.noise import noise, noise_key
from gradstore.collect.recorded import Events
from gradstore.errors import CheckpointError, DatasetError
from tests.support.hostile_parquet import written


def planned(timesteps: int = 4, draws: int = 2, seed: int = 0) -> PlannedEvents:
    spec = EventSpec(events="planned", timesteps=timesteps, draws=draws, event_seed=seed)
    return PlannedEvents(spec, 1000)


def test_noise_is_a_function_of_its_key() -> None:
    # Golden values: noise must not change between versions, machines or shapes of a request.
    key = noise_key("planned", 0, "image-1", 2, 500, 3)
    assert key == 8778684864557471002
    np.testing.assert_allclose(
        noise(key, (2, 2)).ravel(), [0.094134, 0.2796773, 0.4868153, -0.5014632], rtol=1e-6
    )
    assert noise_key("planned", 0, "image-1", 2, 500, 4) != key
    assert noise_key("planned", 0, "image-12", 500, 3) != noise_key(
        "planned", 0, "image-1", 2500, 3
    )


def test_noise_is_standard_normal() -> None:
    drawn = np.concatenate([noise(noise_key("n", n), (1000,)) for n in range(100)])
    # Standard errors over 100,000 draws are 0.003 and 0.0045.
    assert abs(drawn.mean()) < 0.015
    assert abs(drawn.var() - 1) < 0.02


def test_planned_timesteps_are_evenly_spaced() -> None:
    assert planned(4).timesteps.tolist() == [125, 375, 625, 875]
    assert planned(1).timesteps.tolist() == [500]
    assert planned(1000).timesteps.tolist() == list(range(1000))
    with pytest.raises(DatasetError, match="1001 timesteps were asked for.*--timesteps 1000"):
        planned(1001)


def test_planned_timesteps_lie_below_a_share() -> None:
    spec = EventSpec(events="planned", timesteps=3, timesteps_below=0.6)
    assert PlannedEvents(spec, 1000).timesteps.tolist() == [100, 300, 500]
    assert PlannedEvents(spec, 5).timesteps.tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match="2 lie below the share 0.6. Use --timesteps 2 or"):
        PlannedEvents(spec, 4)


def test_a_share_is_part_of_the_identity_if_it_is_less_than_one() -> None:
    whole = EventSpec(events="planned", timesteps=3)
    assert "below" not in PlannedEvents(whole, 1000).identity()
    lower = EventSpec(events="planned", timesteps=3, draws=2, timesteps_below=0.6, event_seed=4)
    for spec in (whole, lower):
        assert Events.model_validate(PlannedEvents(spec, 1000).identity()).spec() == spec


def test_events_do_not_depend_on_company() -> None:
    plan = planned()
    together, alone = plan.at(1, ["a", "b", "c"]), plan.at(1, ["b"])
    assert together.key.shape == (3, 4, 2)
    np.testing.assert_array_equal(together.key[1], alone.key[0])
    np.testing.assert_array_equal(together.timestep[1], alone.timestep[0])


def test_every_event_has_its_own_key() -> None:
    keys = [planned(seed=s).at(k, ["a", "b"]).key for s in range(2) for k in range(2)]
    assert len(np.unique(keys)) == 2 * 2 * 2 * 4 * 2


def test_recorded_events_are_replayed(tmp_path: Path) -> None:
    recorder = Recorder(seed=5, num_train_timesteps=1000)
    recorder.save(tmp_path, ids=["a", "b", "c"], epoch=3, learning_rate_sum=0.1, loss="l2")
    timesteps, drawn = recorder.draw(["c", "a"], 3, (1, 4, 4))
    events = ReplayedEvents([tmp_path], 1000).at(0, ["c", "a"])
    assert events.timestep[:, 0].tolist() == timesteps.tolist()
    for row in range(2):
        np.testing.assert_array_equal(noise(int(events.key[row, 0, 0]), (1, 4, 4)), drawn[row])


def test_recorded_timesteps_are_uniform() -> None:
    recorder = Recorder(seed=0, num_train_timesteps=10)
    timesteps, _ = recorder.draw([str(n) for n in range(5000)], 1, (1,))
    counts = np.bincount(timesteps, minlength=10)
    assert len(counts) == 10
    # χ² with 9 degrees of freedom exceeds 27.9 once in a thousand.
    assert ((counts - 500) ** 2 / 500).sum() < 27.9


def test_a_sample_that_was_not_trained_on(tmp_path: Path) -> None:
    Recorder(0, 1000).save(tmp_path, ids=["a"], epoch=1, learning_rate_sum=0.1, loss="l2")
    with pytest.raises(DatasetError, match="sample 'z' has no event in .*--events planned"):
        ReplayedEvents([tmp_path], 1000).require(["a", "z"])


def test_a_recorded_timestep_that_the_scheduler_does_not_have(tmp_path: Path) -> None:
    Recorder(0, 1000).save(tmp_path, ids=["a"], epoch=1, learning_rate_sum=0.1, loss="l2")
    with pytest.raises(CheckpointError, match=r"sample 'a' has timestep \d+, .* 0 … 0"):
        ReplayedEvents([tmp_path], 1)


def test_a_checkpoint_without_events(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no events.parquet.*--events planned"):
        ReplayedEvents([tmp_path], 1000)
    (tmp_path / "events.parquet").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ReplayedEvents([tmp_path], 1000)


@pytest.mark.parametrize(
    "columns",
    [
        {"id": ["a"], "timestep": [1]},
        {"id": ["a"], "timestep": [None], "noise_key": [1]},
        {"id": ["a"], "timestep": [0.5], "noise_key": [1]},
        {"id": ["a"], "timestep": ["1"], "noise_key": [[1]]},
        {"id": ["a"] * 10**7, "timestep": [1] * 10**7, "noise_key": [1] * 10**7},
    ],
    ids=["lacking", "null", "broken", "texts", "many"],
)
def test_records_of_other_kinds(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    (tmp_path / "events.parquet").write_bytes(written(pa.table(columns)))
    with pytest.raises(CheckpointError, match=r"events.parquet cannot be read.*--events planned"):
        ReplayedEvents([tmp_path], 1000)
