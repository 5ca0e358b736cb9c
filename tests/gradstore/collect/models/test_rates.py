"""Weights of checkpoints by the files that training scripts save beside them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from diffusers.optimization import get_scheduler
from torch import nn

import gradstore as gs
from gradstore.collect.models.rates import script_rates
from gradstore.errors import ConfigError
from tests.support.pipelines import captioned, fine_tuned, stable_diffusion

RATE = 1e-3
STEPS = (20, 40, 60)


def trained(out: Path, schedule: str = "constant", *, warmup: int = 0) -> list[float]:
    """Save states by accelerate at some steps; the sums of the rates of the steps before."""
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    scheduler = get_scheduler(
        schedule, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS[-1]
    )
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    sums, total = [], 0.0
    for step in range(1, STEPS[-1] + 1):
        total += optimizer.param_groups[0]["lr"]
        accelerator.backward(model(torch.ones(1, 3)).sum())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step in STEPS:
            accelerator.save_state(str(out / f"checkpoint-{step}"))
            sums.append(total)
    return sums


def folders(out: Path) -> list[Path]:
    return [out / f"checkpoint-{step}" for step in STEPS]


@pytest.mark.parametrize(
    ("schedule", "warmup", "tolerance"),
    [
        ("constant", 0, 1e-9),
        ("linear", 0, 0.03),  # a rate is held for a step
        ("cosine", 0, 0.05),
        ("constant_with_warmup", 40, 0.06),  # still rises at the first checkpoint
    ],
)
def test_sums_of_a_schedule(tmp_path: Path, schedule: str, warmup: int, tolerance: float) -> None:
    expected = trained(tmp_path, schedule, warmup=warmup)
    found = script_rates(folders(tmp_path))
    assert found.sums == pytest.approx(expected, rel=tolerance)
    assert "optimizer.bin" in found.told
    for folder in folders(tmp_path):
        (folder / "optimizer.bin").unlink()
        (folder / "unet").mkdir()
    again = script_rates([folder / "unet" for folder in folders(tmp_path)])
    assert again.sums == pytest.approx(found.sums)
    assert "scheduler.bin" in again.told


def test_the_log_of_a_trainer(tmp_path: Path) -> None:
    """A warm-up before the first checkpoint is seen in it."""
    expected = trained(tmp_path, "linear", warmup=10)
    rate = RATE / 50
    history = [
        {"step": step, "learning_rate": RATE * step / 10 if step <= 10 else rate * (60 - step)}
        for step in range(1, 61)
    ]
    content = json.dumps({"log_history": [{"step": 5, "loss": 1.0}, "odd", *history]})
    (folders(tmp_path)[-1] / "trainer_state.json").write_text(content)
    found = script_rates(folders(tmp_path))
    assert found.sums == pytest.approx(expected, rel=0.03)
    assert "trainer_state.json" in found.told


class _Code:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def _unclear(kind: str, out: Path) -> list[Path]:
    first, second, last = folders(out)
    state = torch.load(last / "optimizer.bin", weights_only=True)
    if kind == "several learning rates":
        state["param_groups"].append({**state["param_groups"][0], "lr": 1e-5})
    elif kind == "finds its own learning rate":
        state["param_groups"][0]["d"] = 1e-6
    elif kind == "no number from 0":
        state["param_groups"][0]["lr"] = float("nan")
    elif kind == "tells no learning rate":
        state["param_groups"][0]["lr"] = _Code()
    elif kind == "records no learning rate":
        (last / "optimizer.bin").unlink()
        (last / "scheduler.bin").unlink()
        return [first, second, last]
    elif kind == "number of steps":
        return [first, shutil.copytree(second, out / "last")]
    elif kind == "several runs":
        return [first, shutil.copytree(second, out / "other" / "checkpoint-40")]
    elif kind == "do not rise":
        return [second, first]
    torch.save(state, last / "optimizer.bin")
    return [first, second, last]


@pytest.mark.parametrize(
    "kind",
    [
        "several learning rates",
        "finds its own learning rate",
        "no number from 0",
        "tells no learning rate",
        "records no learning rate",
        "number of steps",
        "several runs",
        "do not rise",
    ],
)
def test_what_is_unclear_is_told(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path)
    found = script_rates(_unclear(kind, tmp_path))
    assert found.sums is None
    assert kind in found.told
    assert not capsys.readouterr().out


def test_one_checkpoint_does_not_tell_a_schedule(tmp_path: Path) -> None:
    trained(tmp_path, "cosine")
    assert script_rates(folders(tmp_path)[:1]).sums is None
    trained(tmp_path)
    assert script_rates(folders(tmp_path)[:1]).sums == pytest.approx([20 * RATE])


def test_collect_weighs_by_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Told where they are from; a store of before is resumed by its own; one more is weighed."""
    tuned = fine_tuned(stable_diffusion(tmp_path / "sd"), tmp_path / "run", steps=STEPS)
    trained(tuned)
    pictures = captioned(tmp_path / "pictures")
    options: dict[str, Any] = {"projector": "sjlt", "metric": "none", "timesteps": 2}
    options["events"] = gs.EventSpec(timesteps=options.pop("timesteps"))
    series = [str(folder) for folder in folders(tuned)]
    with caplog.at_level(logging.INFO):
        store = gs.collect(pictures, series[:2], tmp_path / "a", **options)
    assert store.etas == pytest.approx([20 * RATE, 20 * RATE])
    assert "optimizer.bin" in caplog.text
    more = gs.add_checkpoint(store, series[2], datasets=[str(pictures)])
    assert more.etas == pytest.approx([20 * RATE] * 3)
    before = gs.collect(pictures, series[:2], tmp_path / "b", etas=[1, 1], **options)
    with pytest.raises(ConfigError, match=r"--etas 1\.0,1\.0"):
        gs.collect(pictures, series[:2], before.location, **options)
    (folders(tuned)[1] / "optimizer.bin").write_bytes(b"damaged")
    (folders(tuned)[1] / "scheduler.bin").unlink()
    caplog.clear()
    ones = gs.collect(pictures, series[:2], tmp_path / "c", **options)
    assert ones.etas == [1, 1]
    assert "--etas" in caplog.text
