"""Checkpoints as training scripts save them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import PeftModel, get_peft_model
from torch import nn

import gradstore as gs
from gradstore.collect import ModelSpec, find_checkpoints, load, loader_of
from gradstore.collect.conformance import check_loader
from gradstore.collect.models.parameters import trainable
from gradstore.errors import CheckpointError, ConfigError
from tests.support.families import FAMILIES, conditional_unet
from tests.support.naive import own_gradients, rows_of
from tests.support.pipelines import fine_tuned, lora_config, lora_run, perturbed, stable_diffusion
from tests.support.worlds import unet


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("base") / "sd")


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_run(base, tmp_path_factory.mktemp("lora") / "run")


def latents(rows: int = 3) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    given = FAMILIES["SD"].conditions(rows)
    return [
        {
            "image": torch.randn(4, 4, 4),
            "conditions": {name: one[row] for name, one in given.items()},
        }
        for row in range(rows)
    ]


PLANNED: dict[str, Any] = {
    "events": gs.EventSpec(events="planned", timesteps=2),
    "projector": "identity",
    "dtype": "float32",
    "metric": "none",
}


def test_a_run_with_its_final_model_is_a_series(base: Path, tmp_path: Path) -> None:
    run = fine_tuned(base, tmp_path / "run", steps=(500, 1000))
    assert find_checkpoints(run) == [run / "checkpoint-500", run / "checkpoint-1000", run]
    # The final model is the last checkpoint again.
    shutil.copytree(run / "unet", run / "checkpoint-1001" / "unet")
    assert [one.name for one in find_checkpoints(run)][-1] == "checkpoint-1001"
    assert find_checkpoints(run / "unet") == [run / "unet"]
    loaded = load(run / "checkpoint-500" / "unet")
    assert loaded.scheduler.config.beta_schedule == "scaled_linear"


def test_averaged_weights_are_not_mixed_with_others(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = fine_tuned(base, tmp_path / "run", ema=True)
    raw, averaged = loader_of(run), loader_of(run, ModelSpec(ema=True))
    # The script's final model is averaged.
    assert list(raw.folders) == [run / "checkpoint-1", run / "checkpoint-2"]
    assert list(averaged.folders) == [*raw.folders, run]
    for folder in raw.folders:
        own = StableDiffusionPipeline.from_pretrained(
            run, unet=type(raw.load(folder).model).from_pretrained(folder / "unet_ema")
        ).unet
        for name, tensor in own.state_dict().items():
            assert torch.equal(averaged.load(folder).model.state_dict()[name], tensor)
        assert raw.load(folder).weights_digest() != averaged.load(folder).weights_digest()
        # How far averaging is identifies no row.
        assert raw.load(folder).architecture() == averaged.load(folder).architecture()
    shutil.rmtree(run / "checkpoint-2" / "unet_ema")
    with pytest.raises(CheckpointError, match="averaged"):
        loader_of([run / "checkpoint-2"], ModelSpec(ema=True))


def test_a_variant(base: Path, tmp_path: Path) -> None:
    model = load(base).model
    model.save_pretrained(tmp_path / "m" / "unet", variant="fp16")
    with pytest.raises(CheckpointError, match=r"fp16.safetensors: see --variant"):
        load(tmp_path / "m")
    loader = gs.DiffusersFolders(tmp_path / "m", variant="fp16", base=base)
    loaded = loader.load(loader.folders[0])
    assert loaded.weights_digest() == load(base).weights_digest()
    assert loaded.scheduler is not None  # the base's


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noted": False},
        {"use_dora": True},
        {"rank_pattern": {"to_q": 1}, "use_rslora": True},
        {"target_modules": ["conv1", "linear_1"]},
    ],
)
def test_adapters_have_the_rows_of_one_backward_each(
    base: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    if not options.get("noted", True):  # then scripts' scale is 1
        options = {**options, "lora_alpha": 2}
    run = lora_run(base, tmp_path / "run", **options)
    loader = gs.Adapters(base, run)
    assert [one.name for one in loader.folders] == ["checkpoint-1", "checkpoint-2"]
    store = gs.collect(latents(), loader, tmp_path / "a.gradstore", **PLANNED)
    for place, folder in enumerate(loader.folders):
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        pipeline.load_lora_weights(folder)
        names = [name for name, one in pipeline.unet.named_parameters() if "lora_" in name]
        expected = own_gradients(
            pipeline.unet,
            pipeline.scheduler,
            gs.Samples(latents()),
            store,
            checkpoint=place,
            adapters=len(names),
        )
        found = rows_of(store, place)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_adapters_saved_by_peft(base: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        adapted = get_peft_model(pipeline.unet, lora_config())
        perturbed(adapted, step).save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    loader = gs.Adapters(base, tmp_path / "run")
    for folder in loader.folders:
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        own = PeftModel.from_pretrained(pipeline.unet, folder).state_dict()
        model = loader.load(folder).model
        adapters = trainable(model)
        assert adapters
        assert set(adapters) == {
            name.removeprefix("base_model.model.") for name in own if "lora_" in name
        }
        for name, parameter in adapters.items():
            assert torch.equal(parameter, own[f"base_model.model.{name}"])


def test_the_base_is_in_memory_once(base: Path, lora: Path) -> None:
    loader = gs.Adapters(base, lora)
    first, second = (loader.load(folder) for folder in loader.folders)
    own, other = (dict(one.model.named_parameters()) for one in (first, second))
    assert set(own) == set(other)
    for name, parameter in own.items():
        assert (parameter is other[name]) == ("lora_" not in name)
        assert parameter.requires_grad == ("lora_" in name)
    check_loader(loader)
    part = loader.load(loader.folders[0], params="to_q.*lora_A").model
    assert all("to_q" in name and "lora_A" in name for name in trainable(part))


def test_the_base_in_bfloat16(base: Path, lora: Path, tmp_path: Path) -> None:
    loader = gs.Adapters(base, lora, dtype="bfloat16")
    exact = gs.Adapters(base, lora)
    loaded, plain = (one.load(one.folders[0]) for one in (loader, exact))
    assert loaded.weights_digest() == plain.weights_digest()  # adapters stay float32
    assert loader.identity() != exact.identity()
    for name, parameter in loaded.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    rough, right = (
        rows_of(gs.collect(latents(), one, tmp_path / f"{n}.gradstore", **PLANNED), 0)
        for n, one in enumerate((loader, exact))
    )
    for row, expected in zip(rough.reshape(6, -1), right.reshape(6, -1), strict=True):
        assert row @ expected > 0.98 * np.linalg.norm(row) * np.linalg.norm(expected)


def test_queries_find_the_base_that_a_store_records(base: Path, lora: Path, tmp_path: Path) -> None:
    loader = gs.Adapters(base, lora)
    store = gs.collect(latents(), loader, tmp_path / "a.gradstore", **PLANNED)
    asked = gs.collect_queries(store, latents(2), tmp_path / "q.gradstore")
    assert asked.spec.identity["model"] == store.spec.identity["model"]
    grown = gs.append(gs.Samples(latents(5)).only(["3", "4"]), store)
    assert len(grown) == 5
    other = stable_diffusion(tmp_path / "other", seed=7)
    with pytest.raises(gs.FingerprintError, match=r"model\.base"):
        gs.collect_queries(store, latents(2), tmp_path / "r.gradstore", base=str(other))


def test_adapters_need_their_base(base: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--base"):
        find_checkpoints(lora)
    with pytest.raises(CheckpointError, match="--base"):
        gs.Adapters(tmp_path, lora)
    unet(0).save_pretrained(tmp_path / "other")
    wrong = gs.Adapters(tmp_path / "other", lora)
    with pytest.raises(CheckpointError, match="does not fit"):
        wrong.load(wrong.folders[0])
    with pytest.raises(CheckpointError, match="whole model"):
        gs.Adapters(base, [base])


def test_adapters_of_a_text_encoder_are_refused(base: Path, tmp_path: Path) -> None:
    both = lora_run(base, tmp_path / "both", steps=(1,), text_encoder=True)
    loader = gs.Adapters(base, both)
    with pytest.raises(CheckpointError, match="text encoder"):
        loader.load(loader.folders[0])
    (loader.folders[0] / "text_encoder").mkdir()
    (loader.folders[0] / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="text encoder"):
        gs.Adapters(base, [both])


def _peft(base: Path, folder: Path, **noted: Any) -> Path:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    get_peft_model(pipeline.unet, lora_config()).save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | noted))
    return folder


@pytest.mark.parametrize("noted", [{"init_lora_weights": "pissa"}, {"peft_type": "LOHA"}])
def test_adapters_that_would_be_read_wrongly_are_refused(
    base: Path, tmp_path: Path, noted: dict[str, Any]
) -> None:
    loader = gs.Adapters(base, _peft(base, tmp_path / "a", **noted))
    with pytest.raises(CheckpointError):
        loader.load(loader.folders[0])


def test_no_module_that_a_configuration_names_is_imported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    hostile = {"megatron_config": {"a": 1}, "megatron_core": "bomb"}
    loader = gs.Adapters(base, _peft(base, tmp_path / "a", **hostile))
    assert trainable(loader.load(loader.folders[0]).model)
    assert not (tmp_path / "exploded").exists()


def _as_lucidrains_saves(file: Path, seed: int) -> nn.Module:
    model: nn.Module = perturbed(conditional_unet(), seed)
    averaged = {f"ema_model.model.{name}": one for name, one in model.state_dict().items()}
    other = {f"online_model.model.{name}": 0 * one for name, one in model.state_dict().items()}
    torch.save({"step": 7, "version": "1.0", "ema": {**averaged, **other}}, file)
    return model


def test_any_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = [tmp_path / f"model-{number}.pt" for number in (1, 2)]
    models = [_as_lucidrains_saves(file, seed) for seed, file in enumerate(files)]
    loader = gs.Module(conditional_unet, files, key="ema", prefix="ema_model.model.")
    check_loader(loader)
    scheduler = DDPMScheduler()
    store = gs.collect(latents(), loader, tmp_path / "a.gradstore", scheduler=scheduler, **PLANNED)
    for place, model in enumerate(models):
        samples = gs.Samples(latents())
        expected = own_gradients(model, scheduler, samples, store, checkpoint=place)
        found = rows_of(store, place)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(ConfigError, match="checkpoints="):
        gs.collect_queries(store, latents(2), tmp_path / "q.gradstore", scheduler=scheduler)
    asked = gs.collect_queries(
        store, latents(2), tmp_path / "q.gradstore", scheduler=scheduler, checkpoints=loader
    )
    assert asked.checkpoints == 2


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "model-1.pt"
    _as_lucidrains_saves(file, 0)
    for wrong in (
        {"key": "model"},
        {"key": "ema", "prefix": "x."},
        {"key": "step"},
        {"key": "ema"},
    ):
        with pytest.raises(CheckpointError):
            gs.Module(conditional_unet, [file], **wrong).load(file)
    torch.save(nn.Linear(2, 2), file)  # a pickled object
    with pytest.raises(CheckpointError, match="cannot be read"):
        gs.Module(conditional_unet, [file]).load(file)
    with pytest.raises(CheckpointError, match="does not exist"):
        gs.Module(conditional_unet, [tmp_path / "missing.pt"])
