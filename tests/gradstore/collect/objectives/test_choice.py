"""The objective follows the model, by command and from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

import gradstore as gs
from gradstore.collect.objectives.choice import objective_for
from gradstore.errors import CheckpointError, ConfigError, FingerprintError
from gradstore.store.format.spec import ObjectiveSpec
from tests.support.commands import Run
from tests.support.worlds import images, unet

CASES: list[tuple[Any, list[str], Any]] = [
    (FlowMatchEulerDiscreteScheduler(shift=3.0), [], gs.FlowLoss),
    (FlowMatchEulerDiscreteScheduler(shift=3.0), ["--weighting", "sample"], gs.FlowLoss),
    (EDMEulerScheduler(sigma_max=80.0), ["--weighting", "none", "--loss", "l1"], gs.EDMLoss),
    (DDIMScheduler(), [], gs.DiffusionLoss),
]


def saved(folder: Path, scheduler: Any) -> Path:
    unet(0).save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize(("scheduler", "flags", "kind"), CASES)
def test_the_scheduler_chooses(
    run: Run, tmp_path: Path, scheduler: Any, flags: list[str], kind: Any
) -> None:
    model, pictures = saved(tmp_path / "model", scheduler), tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(images(3)):
        image.save(pictures / f"{number}.png")
    common = [
        "--events",
        "planned",
        "--timesteps",
        3,
        "--projector",
        "identity",
        "--metric",
        "none",
    ]
    common += ["--dtype", "float32", *flags]
    run(
        "collect", "--dataset", pictures, "--checkpoints", model, "--store", tmp_path / "a", *common
    )
    run("query", "--store", tmp_path / "a", "--dataset", pictures, "--timesteps", 3, "--draws", 1,
        "--k", 3, "--out", tmp_path / "answers")  # fmt: skip
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    options = {} if "--weighting" not in given else {"weighting": given["--weighting"]}
    objective = kind(scheduler, given.get("--loss", "l2"), **options)
    named = gs.collect(
        str(pictures),
        model,
        tmp_path / "b",
        objective=objective,
        events=gs.EventSpec(events="planned", timesteps=3),
        projector="identity",
        dtype="float32",
        metric="none",
    )
    asked = gs.open_store(tmp_path / "answers" / "queries.gradstore")
    for store in (gs.open_store(tmp_path / "a"), named, asked):
        assert store.spec.identity["objective"] == objective.identity()
        timesteps = store.column("timestep", 0)
        if kind is gs.DiffusionLoss:
            assert "sigma" not in store.spec.parts[0].layout.columns
            assert store.rows(0).sigma is None
            continue
        expected = objective.sigmas.float().numpy()[timesteps]
        np.testing.assert_array_equal(store.column("sigma", 0), expected)
        np.testing.assert_array_equal(store.rows(0).sigma, expected)
        assert len(np.unique(expected)) == 3
    found, expected = (store.rows(0) for store in (gs.open_store(tmp_path / "a"), named))
    np.testing.assert_array_equal(found.direction, expected.direction)


def test_a_choice_that_does_not_fit() -> None:
    with pytest.raises(CheckpointError):
        objective_for(DDIMScheduler(), ObjectiveSpec(objective="flow"))
    with pytest.raises(CheckpointError):
        objective_for(EDMEulerScheduler(), ObjectiveSpec(objective="diffusion"))
    with pytest.raises(ConfigError):
        objective_for(DDIMScheduler(), ObjectiveSpec(weighting="cosmap"))
    with pytest.raises(ConfigError):
        objective_for(EDMEulerScheduler(), ObjectiveSpec(weighting="cosmap"))


def test_another_objective_is_another_store(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", FlowMatchEulerDiscreteScheduler(shift=3.0))
    options: dict[str, Any] = {
        "events": gs.EventSpec(events="planned", timesteps=2),
        "projector": "identity",
        "metric": "none",
    }
    store = gs.collect(images(2), model, tmp_path / "a", **options)
    with pytest.raises(FingerprintError, match="objective"):
        gs.collect(
            images(2),
            model,
            tmp_path / "a",
            objective=ObjectiveSpec(weighting="cosmap"),
            **options,
        )
    grown = gs.append(gs.Samples(images(3), ids=["a", "b", "c"]), store)
    assert grown.column("sigma", 0).shape == (5, 2)
    before = grown.column("sigma", 0)
    few = gs.vacuum(gs.delete(grown, ["a"]))
    np.testing.assert_array_equal(few.column("sigma", 0), before[[0, 1, 3, 4]])
