from __future__ import annotations

import logging
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from gradstore.collect import EventSpec, ProjectorSpec, Samples, collect, plan
from gradstore.collect.metrics import Fitting
from gradstore.collect.metrics.fisher import Fisher
from gradstore.collect.metrics.whitening import Whitening
from tests.support.worlds import NAMES, World


def test_a_plan_makes_nothing_and_says_what_collecting_would_take(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "a.gradstore"
    found = plan(
        world.train,
        world.checkpoints,
        path,
        projector=ProjectorSpec(proj_dim=4096),
        events=EventSpec(events="planned", timesteps=3, draws=2),
        metric="none",
    )
    assert list(tmp_path.iterdir()) == []
    assert found.rows == 7 * 3 * 2
    assert found.nbytes == found.rows * (2 * 4096 + 12)
    assert found.dim == 4096
    assert found.engine == "streaming"
    assert found.stages is not None
    assert set(found.stages) >= {"gradients", "drawing the projection", "projecting", "writing"}
    assert all(seconds > 0 for seconds in found.stages.values())
    assert found.seconds == pytest.approx(sum(found.stages.values()))
    held = sum(value for name, value in found.memory.items() if name != "model")
    assert held <= found.budget == 4 << 30
    flags = {one.flags: one for one in found.alternatives}
    fewer = flags["--proj-dim 1024 (noisier scores)"]
    assert fewer.nbytes == found.rows * (2 * 1024 + 12)
    text = str(found)
    assert "7 samples × 2 checkpoints: 42 rows, 345 KB" in text
    assert "With --proj-dim 1024" in text
    stored = collect(
        world.train,
        world.checkpoints,
        path,
        projector=ProjectorSpec(proj_dim=4096),
        events=EventSpec(events="planned", timesteps=3, draws=2),
        metric="none",
    )
    rows = [stored.rows(k) for k in range(2)]
    arrays = [
        getattr(one, name) for one in rows for name in ("direction", "norm", "loss", "timestep")
    ]
    assert sum(array.nbytes for array in arrays) == found.nbytes


class _Slow(Fisher):
    """A fit takes a tenth of a second more."""

    def fit(self, fitting: Fitting) -> Whitening:
        sleep(0.1)
        return super().fit(fitting)


def test_a_plan_counts_what_fits_take(world: World, tmp_path: Path) -> None:
    given = (world.train, world.checkpoints, tmp_path / "a.gradstore")
    options: dict[str, Any] = {
        "projector": ProjectorSpec(projector="sjlt", proj_dim=64),
        "events": EventSpec(events="planned", timesteps=3),
        "metric": _Slow(),
    }
    stages = plan(*given, **options).stages
    assert stages is not None
    assert stages["fitting the metric"] >= 2 * 0.1
    assert collect(*given, **options).spec.checkpoints[0].metric_sha256 is not None
    stages = plan(*given, **options).stages
    assert stages is not None
    assert "fitting the metric" not in stages


def test_a_cheaper_projector_is_named(tmp_path: Path, world: World) -> None:
    """A dense matrix of 16,384 columns costs far more than these gradients."""
    found = plan(
        world.train,
        world.checkpoints,
        tmp_path / "a.gradstore",
        projector=ProjectorSpec(proj_dim=16384),
        events=EventSpec(events="planned", timesteps=300),
        memory=8,
    )
    flags = {one.flags: one for one in found.alternatives}
    assert flags["--projector sjlt"].seconds < found.seconds


def test_collecting_tells_the_bill_first(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gradstore")
    options: dict[str, Any] = {
        "projector": ProjectorSpec(proj_dim=64),
        "shard_samples": 2,
        "metric": "none",
    }
    collect(world.train, world.checkpoints, tmp_path / "a.gradstore", events="replayed", **options)
    assert "14 rows, 1.96 KB, " in caplog.text
    assert "engine streaming" in caplog.text
    caplog.clear()
    collect(world.train, world.checkpoints, tmp_path / "a.gradstore", events="replayed", **options)
    assert not caplog.text  # nothing to do
    many = EventSpec(events="planned", timesteps=200)
    few = Samples([world.train.image(0), world.train.image(1), world.train.image(2)], ids=NAMES[:3])
    collect(few, world.checkpoints, tmp_path / "b.gradstore", events=many, **options)
    assert "ms an event" in caplog.text  # engines were timed
    assert ", about " in caplog.text


def test_a_plan_counts_the_trials_that_collect_repeats(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "choosing an engine, and this estimate"
    for least, counted in ((1, True), (1 << 30, False)):  # events from which collect times anything
        monkeypatch.setattr("gradstore.collect.pipeline.prepare._TIMED_EVENTS", least)
        found = plan(world.train, world.checkpoints, tmp_path / "s.gradstore", projector="sjlt")
        assert found.stages is not None
        assert (name in found.stages) is counted
