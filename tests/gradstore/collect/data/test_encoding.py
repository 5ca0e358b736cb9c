"""Text-to-image models from pictures and captions, by command and from Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, VQModel
from peft import get_peft_model
from PIL import Image

import gradstore as gs
from gradstore.collect import Samples, load
from gradstore.collect.models.encoders import Encoders
from gradstore.errors import CheckpointError, DatasetError
from gradstore.flags.dataset import DatasetSpec
from tests.support.commands import Run
from tests.support.pipelines import (
    CAPTIONS,
    captioned,
    fine_tuned,
    lora_config,
    lora_run,
    perturbed,
    stable_diffusion,
    stable_diffusion_xl,
)
from tests.support.text_to_image import EXACT, by_script, picture, require_rows


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl(tmp_path_factory.mktemp("sdxl") / "sdxl")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_full_fine_tune(run: Run, tmp_path: Path, prediction: str) -> None:
    base = stable_diffusion(tmp_path / "sd", prediction=prediction)
    tuned, pictures = fine_tuned(base, tmp_path / "run"), captioned(tmp_path / "pictures")
    run("collect", "--dataset", pictures, "--checkpoints", tuned, "--store", tmp_path / "a", *EXACT)
    store = gs.open_store(tmp_path / "a")
    assert store.checkpoints == 3
    for place in range(2):
        pipeline = StableDiffusionPipeline.from_pretrained(base)
        folder = tuned / f"checkpoint-{place + 1}" / "unet"
        pipeline.unet = type(pipeline.unet).from_pretrained(folder)
        items = [by_script(pipeline, picture(pictures, n), CAPTIONS[n]) for n in range(4)]
        require_rows(store, pipeline, items, place, adapters=False)


def test_stable_diffusion_lora(run: Run, tmp_path: Path, sd: Path) -> None:
    trained, pictures = lora_run(sd, tmp_path / "run"), captioned(tmp_path / "pictures")
    run("collect", "--dataset", pictures, "--checkpoints", trained, "--base", sd,
        "--store", tmp_path / "a", *EXACT)  # fmt: skip
    store = gs.open_store(tmp_path / "a")
    for place in range(2):
        pipeline = StableDiffusionPipeline.from_pretrained(sd)
        pipeline.load_lora_weights(trained / f"checkpoint-{place + 1}")
        items = [by_script(pipeline, picture(pictures, n), CAPTIONS[n]) for n in range(4)]
        require_rows(store, pipeline, items, place, adapters=True)


@pytest.mark.parametrize("lora", [False, True])
def test_stable_diffusion_xl(run: Run, tmp_path: Path, sdxl: Path, lora: bool) -> None:
    """Sizes and crops are those of `train_text_to_image_sdxl.py`."""
    pictures = captioned(tmp_path / "pictures", side=(24, 16))
    where: list[object] = ["--checkpoints", sdxl]
    if lora:
        trained = lora_run(sdxl, tmp_path / "run", StableDiffusionXLPipeline, steps=(1,))
        where = ["--checkpoints", trained, "--base", sdxl]
    run("collect", "--dataset", pictures, *where, "--size", 8, "--resize", "crop",
        "--store", tmp_path / "a", *EXACT)  # fmt: skip
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl)
    if lora:
        pipeline.load_lora_weights(tmp_path / "run")
    items = []
    for number in range(4):
        image = picture(pictures, number).resize((12, 8), Image.Resampling.BILINEAR)
        item = by_script(pipeline, image.crop((2, 0, 10, 8)), CAPTIONS[number])
        # Height and width, top and left of the crop, height and width of the result.
        item["conditions"]["time_ids"] = torch.tensor([16.0, 24, 0, 2, 8, 8])
        items.append(item)
    require_rows(gs.open_store(tmp_path / "a"), pipeline, items, 0, adapters=lora)


def _trained(kind: str, sd: Path, out: Path) -> tuple[list[object], Any]:
    """Saves a run; the flags that read it, and the loader that does."""
    if kind == "ema":
        fine_tuned(sd, out, ema=True)
        return ["--ema"], gs.DiffusersFolders(out, ema=True)
    if kind == "variant":
        load(sd).model.save_pretrained(out / "checkpoint-1" / "unet", variant="fp16")
        return ["--variant", "fp16", "--base", sd], gs.DiffusersFolders(
            out, variant="fp16", base=sd
        )
    if kind == "bfloat16":
        lora_run(sd, out)
        return ["--base", sd, "--base-dtype", "bfloat16"], gs.Adapters(sd, out, dtype="bfloat16")
    for step in (1, 2):
        adapted = get_peft_model(load(sd).model, lora_config())
        perturbed(adapted, step).save_pretrained(out / f"checkpoint-{step}")
    return ["--base", sd], gs.Adapters(sd, out)


@pytest.mark.parametrize("kind", ["ema", "variant", "bfloat16", "peft"])
def test_flags_read_what_loaders_read(run: Run, tmp_path: Path, sd: Path, kind: str) -> None:
    """In the default metric, and queries find by the store how its models were read."""
    pictures = captioned(tmp_path / "pictures")
    flags, loader = _trained(kind, sd, tmp_path / "run")
    run("collect", "--dataset", pictures, "--checkpoints", tmp_path / "run", *flags,
        "--store", tmp_path / "a", "--timesteps", 2, "--projector", "sjlt", "--proj-dim", 64,
        "--dtype", "float32")  # fmt: skip
    store = gs.open_store(tmp_path / "a")
    expected = gs.collect(
        pictures, loader, tmp_path / "b", projector=gs.ProjectorSpec(projector="sjlt", proj_dim=64),
        events=gs.EventSpec(timesteps=2), dtype="float32",
    )  # fmt: skip
    assert store.checkpoints == len(loader.folders)
    for place in range(store.checkpoints):
        found, wanted = (one.rows(place) for one in (store, expected))
        np.testing.assert_allclose(found.direction, wanted.direction, atol=1e-5)
        np.testing.assert_allclose(found.norm, wanted.norm, rtol=1e-5)
    run("query", "--store", tmp_path / "a", "--dataset", pictures, "--k", 1, "--timesteps", 2,
        "--draws", 1, "--out", tmp_path / "answers")  # fmt: skip
    assert gs.open_store(tmp_path / "answers" / "queries.gradstore").samples == 4


def items_of(pictures: Path) -> list[dict[str, Any]]:
    return [{"image": picture(pictures, n), "caption": CAPTIONS[n % 4]} for n in range(4)]


def test_each_picture_and_caption_is_encoded_once(
    tmp_path: Path, sd: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = captioned(tmp_path / "pictures")
    items = items_of(pictures)
    items[3]["caption"] = items[0]["caption"]
    seen: list[str] = []
    for name in ("latents", "texts"):
        own = getattr(Encoders, name)

        def counted(self: Encoders, given: Any, own: Any = own, name: str = name) -> Any:
            seen.append(name)
            return own(self, given)

        monkeypatch.setattr(Encoders, name, counted)
    options: dict[str, Any] = {
        "events": gs.EventSpec(events="planned"),
        "projector": "sjlt",
        "metric": "none",
    }
    store = gs.collect(items, sd, tmp_path / "a", **options)
    assert sorted(seen) == ["latents"] * 4 + ["texts"] * 3
    again = gs.collect(items, sd, tmp_path / "b", **options)
    assert len(seen) == 7
    np.testing.assert_array_equal(store.rows(0).direction, again.rows(0).direction)
    # What is cut off is encoded again.
    for file in cache.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    third = gs.collect(items, sd, tmp_path / "c", **options)
    assert len(seen) == 14
    np.testing.assert_array_equal(store.rows(0).direction, third.rows(0).direction)


def test_a_caption_and_a_text_encoder_identify_a_row(tmp_path: Path, sd: Path) -> None:
    items = items_of(captioned(tmp_path / "pictures"))
    options: dict[str, Any] = {
        "events": gs.EventSpec(events="planned"),
        "projector": "sjlt",
        "metric": "none",
    }
    store = gs.collect(items, sd, tmp_path / "a", **options)
    other = [{**items[0], "caption": "a dog on a car"}, *items[1:]]
    with pytest.raises(DatasetError):
        gs.collect(other, sd, tmp_path / "a", **options)
    # The denoiser of one pipeline under the text encoder of another.
    mixed = Path(shutil.copytree(sd, tmp_path / "mixed"))
    shutil.rmtree(mixed / "text_encoder")
    shutil.copytree(
        stable_diffusion(tmp_path / "other", seed=5) / "text_encoder", mixed / "text_encoder"
    )
    with pytest.raises(gs.FingerprintError, match=r"model\.encoders"):
        gs.collect_queries(store, items, tmp_path / "q", checkpoints=[str(mixed)])


def test_the_report_shows_pictures(run: Run, tmp_path: Path, sd: Path) -> None:
    pictures = captioned(tmp_path / "pictures")
    run("collect", "--dataset", pictures, "--checkpoints", sd, "--store", tmp_path / "a", *EXACT)
    run("query", "--store", tmp_path / "a", "--dataset", pictures, "--k", 2, "--out",
        tmp_path / "answers")  # fmt: skip
    assert (tmp_path / "answers" / "report.html").read_text().count("data:image/") >= 4
    found = gs.search(
        tmp_path / "a", tmp_path / "answers" / "queries.gradstore", 1, measure="retrac"
    )
    assert len(found) == 4


def test_captions_in_sub_folders(tmp_path: Path) -> None:
    captioned(tmp_path / "all" / "cats", 2)
    captioned(tmp_path / "all" / "dogs", 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "all" / "dogs" / "bare.png")
    samples = Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "all")))
    found = {samples.ids[row]: (samples[row].caption, samples[row].label) for row in range(4)}
    assert found == {
        "cats/0.png": (CAPTIONS[0], "cats"),
        "cats/1.png": (CAPTIONS[1], "cats"),
        "dogs/0.png": (CAPTIONS[0], "dogs"),
        "dogs/bare.png": (None, "dogs"),
    }
    named = Samples.from_spec(
        DatasetSpec(dataset=str(tmp_path / "all" / "cats"), caption_column="text", size=4)
    )
    assert named[0].caption == CAPTIONS[0]
    assert named[0].geometry == (8, 8, 0, 0, 4, 4)


@pytest.mark.parametrize(
    "text",
    ["nonsense", '{"file_name": "../../etc/passwd"}', '{"text": "no name"}', "[1]", "[" * 100_000],
)
def test_a_wrong_note_of_captions(tmp_path: Path, text: str) -> None:
    folder = captioned(tmp_path / "pictures")
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(DatasetError, match=r"metadata\.jsonl"):
        Samples(folder)


def _refused() -> Iterator[tuple[str, Any]]:
    def bare(items: list[Any], sd: Path) -> Any:
        return [one["image"] for one in items], sd

    def grey(items: list[Any], sd: Path) -> Any:
        return [{**one, "image": one["image"].convert("L")} for one in items], sd

    def odd(items: list[Any], sd: Path) -> Any:
        return [{**one, "image": one["image"].resize((7, 7))} for one in items], sd

    def several(items: list[Any], sd: Path) -> Any:
        return [{**one, "caption": ["a", "b"]} for one in items], sd

    def vqvae(items: list[Any], sd: Path) -> Any:
        shutil.rmtree(sd / "vae")
        VQModel(in_channels=3, out_channels=3).save_pretrained(sd / "vqvae")
        return items, sd

    def no_vae(items: list[Any], sd: Path) -> Any:
        shutil.rmtree(sd / "vae")
        return items, sd

    yield from (
        ("no caption.*--caption-column", bare),
        ("--mode RGB", grey),
        ("multiples of 2", odd),
        ("list", several),
        ("vqvae", vqvae),
        ("--base", no_vae),
    )


@pytest.mark.parametrize(("message", "change"), list(_refused()))
def test_what_does_not_fit_is_refused(tmp_path: Path, sd: Path, message: str, change: Any) -> None:
    copied = Path(shutil.copytree(sd, tmp_path / "sd"))
    items, folder = change(items_of(captioned(tmp_path / "pictures")), copied)
    with pytest.raises(DatasetError, match=message):
        gs.collect(items, folder, tmp_path / "a", events="planned", projector="sjlt")
    assert not (tmp_path / "a").exists()


def test_latents_need_no_encoder(tmp_path: Path, sd: Path) -> None:
    copied = Path(shutil.copytree(sd, tmp_path / "sd"))
    shutil.rmtree(copied / "vae")
    pipeline = StableDiffusionPipeline.from_pretrained(sd)
    pictures = captioned(tmp_path / "pictures")
    items = [by_script(pipeline, picture(pictures, n), CAPTIONS[n]) for n in range(4)]
    options: dict[str, Any] = {
        "events": gs.EventSpec(events="planned", timesteps=2),
        "projector": "identity",
        "dtype": "float32",
        "metric": "none",
    }
    require_rows(gs.collect(items, copied, tmp_path / "a", **options), pipeline, items, 0, False)


@pytest.mark.parametrize("part", ["text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_no_class_that_a_folder_names_is_loaded(tmp_path: Path, sd: Path, part: str) -> None:
    copied = Path(shutil.copytree(sd, tmp_path / "sd"))
    named = json.loads((copied / part).read_text())
    named |= {"architectures": ["AutoModel"], "tokenizer_class": "AutoTokenizer"}
    (copied / part).write_text(json.dumps(named))
    with pytest.raises(CheckpointError, match="names class 'Auto"):
        gs.collect(
            items_of(captioned(tmp_path / "pictures")), copied, tmp_path / "a", events="planned"
        )


def test_losses_of_pictures_and_captions(tmp_path: Path, sd: Path) -> None:
    grid = gs.EventSpec(events="planned", timesteps=2)
    found = gs.losses(items_of(captioned(tmp_path / "pictures")), sd, events=grid)
    assert found.shape == (4,)


def test_queries_by_prompt(run: Run, tmp_path: Path, sd: Path) -> None:
    """The picture is the pipeline's own of this prompt and seed."""
    trained, pictures = lora_run(sd, tmp_path / "run", steps=(1,)), captioned(tmp_path / "pictures")
    run("collect", "--dataset", pictures, "--checkpoints", trained, "--base", sd,
        "--store", tmp_path / "a", *EXACT)  # fmt: skip
    run("query", "--store", tmp_path / "a", "--prompt", "a red car", "--seed", 3, "--generate", 2,
        "--mean-by", "text", "--k", 2, "--out", tmp_path / "answers")  # fmt: skip
    asked = gs.open_store(tmp_path / "answers" / "queries.gradstore")
    assert asked.manifest.metadata == {"text": ["a red car"] * 2, "seed": [3, 4]}
    pipeline = StableDiffusionPipeline.from_pretrained(sd)
    pipeline.load_lora_weights(trained)
    own = pipeline("a red car", generator=torch.Generator().manual_seed(4)).images[0]
    folder = tmp_path / "answers" / "generated"
    drawn = picture(folder, "generated-0001")
    assert np.abs(np.array(own, np.int16) - np.array(drawn, np.int16)).max() <= 1
    (image,) = gs.generate(gs.Adapters(sd, trained), 1, prompt="a red car", seed=4)
    assert np.array_equal(np.array(image), np.array(drawn))
    with pytest.raises(CheckpointError, match="--prompt"):
        gs.generate(gs.Adapters(sd, trained), 1)
