"""Samples of other sizes than the model was made for, and of several sizes in one dataset."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

import gradstore as gs
from gradstore.collect import load
from gradstore.errors import DatasetError
from tests.support.commands import Run
from tests.support.families import FAMILIES
from tests.support.naive import own_gradients, rows_of
from tests.support.pictures import file_of, folder_of
from tests.support.pipelines import CAPTIONS, lora_run, stable_diffusion
from tests.support.worlds import World, save_checkpoint

EXACT = ["--projector", "identity", "--dtype", "float32", "--metric", "none", "--timesteps", 3]
SIDES = [(8, 8), (12, 8), (8, 12), (8, 8), (12, 8), (16, 8), (8, 8)]


def pictures(folder: Path, mode: str = "L") -> Path:
    """Pictures of four shapes, mixed."""
    generator = np.random.default_rng(5)
    files = {}
    for number, (width, height) in enumerate(SIDES):
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        drawn = generator.integers(0, 256, shape, dtype=np.uint8)
        files[f"{number}.png"] = file_of(Image.fromarray(drawn))
    return folder_of(folder, files)


def require_rows(store: gs.Store, checkpoint: Path, samples: gs.Samples) -> None:
    loaded = load(checkpoint)
    expected = own_gradients(loaded.model, loaded.scheduler, samples, store, checkpoint=0)
    np.testing.assert_allclose(rows_of(store, 0), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("engine", ["streaming", "vmap"])
def test_several_sizes_are_batched_by_size(
    run: Run, tmp_path: Path, world: World, engine: str
) -> None:
    folder, checkpoint = pictures(tmp_path / "pictures"), world.checkpoints[0]
    command = ["--dataset", folder, "--checkpoints", checkpoint, *EXACT, "--engine", engine]
    command += ["--store", tmp_path / "a.gradstore", "--batch-size", 4, "--shard-samples", 5]
    told = run("collect", *command, status=1)
    assert "--size 8" in told
    run("collect", *command, "--resize", "keep")
    samples = gs.Samples(folder, resize="keep")
    (tmp_path / "own").mkdir()
    plain = gs.collect(
        samples, [checkpoint], tmp_path / "own" / "a.gradstore", projector="identity",
        dtype="float32", metric="none", objective="l2",
        events=gs.EventSpec(events="planned", timesteps=3),
    )  # fmt: skip
    require_rows(plain, checkpoint, samples)
    # The command's loss is the recorded one.
    recorded = gs.open_store(tmp_path / "a.gradstore")
    one = gs.collect(
        samples, [checkpoint], tmp_path / "own" / "b.gradstore", projector="identity",
        dtype="float32", metric="none", engine="loop", batch_size=1,
        events=gs.EventSpec(events="planned", timesteps=3),
    )  # fmt: skip
    largest = np.abs(rows_of(one, 0)).max()
    np.testing.assert_allclose(rows_of(recorded, 0), rows_of(one, 0), atol=1e-5 * largest)
    assert (recorded.rows(0).timestep == one.rows(0).timestep).all()


def test_replayed_events_stay_with_their_samples(run: Run, tmp_path: Path) -> None:
    folder, names = pictures(tmp_path / "pictures"), [f"{n}.png" for n in range(len(SIDES))]
    checkpoint = save_checkpoint(tmp_path / "run" / "epoch-01", ids=names)
    run("collect", "--dataset", folder, "--checkpoints", checkpoint, *EXACT[:-2],
        "--events", "replayed", "--resize", "keep",
        "--store", tmp_path / "a.gradstore")  # fmt: skip
    found = gs.open_store(tmp_path / "a.gradstore").rows(0).timestep[:, 0]
    recorder = gs.Recorder(0, 1000)
    assert found.tolist() == [recorder.event(name, 1)[0] for name in names]


def test_several_sizes_in_the_models_own_metric(run: Run, tmp_path: Path, world: World) -> None:
    """The default metric, queries of other sizes, and full gradients of the best."""
    folder, checkpoint = pictures(tmp_path / "pictures"), world.checkpoints[0]
    stores = []
    for size in (1, 32):
        place = tmp_path / f"{size}.gradstore"
        run("collect", "--dataset", folder, "--checkpoints", checkpoint, "--timesteps", 3,
            "--projector", "sjlt", "--proj-dim", 64, "--dtype", "float32", "--resize", "keep",
            "--batch-size", size, "--store", place)  # fmt: skip
        stores.append(gs.open_store(place).rows(0))
    np.testing.assert_allclose(stores[0].norm, stores[1].norm, rtol=1e-3)
    np.testing.assert_allclose(stores[0].direction, stores[1].direction, atol=1e-3)
    run("query", "--store", tmp_path / "32.gradstore", "--dataset", folder, "--resize", "keep",
        "--k", 7, "--rerank", 7, "--timesteps", 2, "--draws", 2,
        "--out", tmp_path / "out")  # fmt: skip
    assert gs.open_store(tmp_path / "out" / "queries.gradstore").samples == 7
    grid = gs.EventSpec(events="planned", timesteps=2)
    assert gs.losses(gs.Samples(folder, resize="keep"), checkpoint, events=grid).shape == (7,)


def test_buckets_of_a_text_to_image_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = stable_diffusion(tmp_path / "sd")
    trained = lora_run(base, tmp_path / "run", steps=(1,))
    folder = pictures(tmp_path / "pictures", "RGB")
    lines = [
        f'{{"file_name": "{n}.png", "text": "{CAPTIONS[n % 4]}"}}\n' for n in range(len(SIDES))
    ]
    (folder / "metadata.jsonl").write_text("".join(lines))
    command = ["--dataset", folder, "--checkpoints", trained, "--base", base, *EXACT]
    command += ["--store", tmp_path / "a.gradstore"]
    assert "--resize keep" in run("collect", *command, status=1)
    run("collect", *command, "--resize", "keep")
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(trained)
    items = []
    for number in range(len(SIDES)):
        with Image.open(folder / f"{number}.png") as image:
            pixels = torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).permute(2, 0, 1)
        with torch.no_grad():
            latents = pipeline.vae.encode(pixels[None]).latent_dist.mode()[0]
            states, _ = pipeline.encode_prompt(CAPTIONS[number % 4], "cpu", 1, False)
        items.append(
            {
                "image": latents * pipeline.vae.config.scaling_factor,
                "conditions": {"encoder_hidden_states": states[0]},
            }
        )
    store = gs.open_store(tmp_path / "a.gradstore")
    count = sum("lora_" in name for name, _ in pipeline.unet.named_parameters())
    expected = own_gradients(
        pipeline.unet,
        pipeline.scheduler,
        gs.Samples(items, ids=store.manifest.ids),
        store,
        checkpoint=0,
        adapters=count,
    )
    np.testing.assert_allclose(rows_of(store, 0), expected, atol=1e-5 * np.abs(expected).max())


def test_a_size_that_the_user_gives_need_not_be_the_models(
    run: Run, tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A fine-tune at another size than that in the configuration."""
    checkpoint = world.checkpoints[0]
    command = ["collect", "--dataset", "digits", "--limit", 3, "--checkpoints", checkpoint, *EXACT]
    with caplog.at_level(logging.WARNING, "gradstore"):
        run(*command, "--size", 16, "--store", tmp_path / "a.gradstore")
    assert any("made for 8×8" in one.message for one in caplog.records)
    assert gs.open_store(tmp_path / "a.gradstore").samples == 3
    told = run(*command, "--size", 9, "--store", tmp_path / "b.gradstore", status=1)
    assert "does not take this size" in told
    assert not (tmp_path / "b.gradstore").exists()
    caplog.clear()
    run(*command, "--size", 8, "--store", tmp_path / "c.gradstore")
    assert not any("made for" in one.message for one in caplog.records)


def test_a_transformer_refuses_what_its_patches_do_not_fill(tmp_path: Path) -> None:
    family = FAMILIES["DiT"]
    folder = tmp_path / "epoch-1"
    family.make().save_pretrained(folder / "transformer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    options: dict[str, Any] = {"metric": "none", "projector": "sjlt", "events": "planned"}
    good, bad = torch.zeros(2, *family.shape), torch.zeros(2, 4, 5, 5)
    gs.collect([(one, 1) for one in good], [folder], tmp_path / "a.gradstore", **options)
    with pytest.raises(DatasetError, match=r"does not take this size"):
        gs.collect([(one, 1) for one in bad], [folder], tmp_path / "b.gradstore", **options)
