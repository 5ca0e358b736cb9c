from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from gradstore.collect import find_checkpoints, load, loader_of
from gradstore.collect.models.parameters import num_parameters
from gradstore.collect.pipeline.survey import survey
from gradstore.errors import CheckpointError
from tests.support.worlds import World, save_checkpoint, unet


@pytest.fixture
def checkpoint(world: World, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return Path(shutil.copytree(world.checkpoints[0], tmp_path / "epoch-01"))


def test_weights_and_mode(world: World) -> None:
    loaded = load(world.checkpoints[0])
    assert not loaded.model.training
    for name, value in unet(1).state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert loaded.record is not None
    assert loaded.record.learning_rate_sum == 0.1
    assert num_parameters(loaded.model) == sum(p.numel() for p in unet(1).parameters())


def test_bin_and_safetensors_are_the_same_weights(checkpoint: Path) -> None:
    before = load(checkpoint).weights_digest()
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(unet(1).state_dict(), weights.with_suffix(".bin"))
    assert load(checkpoint).weights_digest() == before
    torch.save(unet(2).state_dict(), weights.with_suffix(".bin"))
    assert load(checkpoint).weights_digest() != before


def test_sharded_safetensors(checkpoint: Path) -> None:
    before = load(checkpoint).weights_digest()
    shutil.rmtree(checkpoint / "unet")
    unet(1).save_pretrained(checkpoint / "unet", max_shard_size="5KB")
    assert len(list((checkpoint / "unet").glob("*.safetensors"))) > 1
    assert load(checkpoint).weights_digest() == before


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_nothing_is_unpickled(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    for payload in (pickle.dumps(_Bomb()), None):
        if payload is None:
            torch.save({"conv_in.weight": _Bomb()}, weights.with_suffix(".bin"))
        else:
            weights.with_suffix(".bin").write_bytes(payload)
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load(checkpoint)
        assert not Path("exploded").exists()


def test_a_model_folder_needs_a_scheduler(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "scheduler")
    assert load(checkpoint / "unet").scheduler is None
    with pytest.raises(CheckpointError, match=r"no scheduler/scheduler_config.json"):
        survey(loader_of([checkpoint]), objective=None, scheduler=None, etas=None)
    loaded = load(checkpoint / "unet", scheduler=DDPMScheduler())
    assert isinstance(loaded.scheduler, DDPMScheduler)
    assert isinstance(loaded.model, UNet2DModel)


def _truncate(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _drop_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _half_config(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text()[:100])


def _other_class(folder: Path) -> None:
    _edit(folder / "unet" / "config.json", _class_name="DiffusionPipeline")


def _more_layers(folder: Path) -> None:
    _edit(folder / "unet" / "config.json", layers_per_block=2)


def _wider(folder: Path) -> None:
    _edit(folder / "unet" / "config.json", block_out_channels=[8, 16])


def _bad_record(folder: Path) -> None:
    _edit(folder / "checkpoint.json", learning_rate_sum=-1)


def _bad_scheduler(folder: Path) -> None:
    _edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="unheard of")


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"cannot be loaded: .*half-written"),
        (_drop_weights, r"has no weights: .*half-written"),
        (_half_config, r"config.json cannot be read: .*half-written"),
        (_other_class, r"names class 'DiffusionPipeline', which diffusers"),
        (_more_layers, r"cannot be loaded: .*half-written"),
        (_wider, r"(cannot be loaded|mismatched keys)"),
        (_bad_record, r"is not a training record"),
        (_bad_scheduler, r"does not describe a DDIMScheduler"),
    ],
)
def test_damage_is_named(checkpoint: Path, damage: Any, message: str) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint)


def test_folders_are_found_in_training_order(tmp_path: Path) -> None:
    for epoch in (2, 10, 1):
        save_checkpoint(tmp_path / "run" / "checkpoints" / f"epoch-{epoch}", epoch=epoch)
    (tmp_path / "run" / "checkpoints" / ".epoch-11.writing").mkdir()
    expected = ["epoch-1", "epoch-2", "epoch-10"]
    for given in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        assert [folder.name for folder in find_checkpoints([given])] == expected
    named = [tmp_path / "run" / "checkpoints" / f"epoch-{n}" for n in (10, 1)]
    assert find_checkpoints(named) == named


def test_an_unclear_order_is_refused(tmp_path: Path) -> None:
    for name in ("epoch-1", "final"):
        save_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"final does not give its place in training order"):
        find_checkpoints(tmp_path)


def test_checkpoints_as_diffusers_scripts_save_them(checkpoint: Path) -> None:
    """`checkpoint-500/unet` beside the run's `scheduler/`."""
    saved = checkpoint / "checkpoint-500"
    saved.mkdir()
    (checkpoint / "unet").rename(saved / "unet")
    found = find_checkpoints(checkpoint)
    assert found == [saved]
    assert load(found[0]).scheduler.config.beta_schedule == "squaredcos_cap_v2"


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoints([tmp_path / "missing"])
    with pytest.raises(CheckpointError, match="is not a diffusers folder"):
        find_checkpoints([tmp_path])
    with pytest.raises(CheckpointError, match="no checkpoint was given"):
        find_checkpoints([])
