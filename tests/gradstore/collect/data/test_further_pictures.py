"""Models whose input is made from further pictures: InstructPix2Pix and inpainting."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

import gradstore as gs
from gradstore.errors import CheckpointError, DatasetError
from tests.support.commands import Run
from tests.support.pipelines import (
    CAPTIONS,
    SD_PIPELINES,
    fine_tuned,
    lora_run,
    stable_diffusion,
    stable_diffusion_xl,
)
from tests.support.text_to_image import EXACT, by_script, pixels, require_rows
from tests.support.worlds import images

COLUMNS = {
    "InstructPix2Pix": ("edited_image", "input_image", "edit_prompt"),
    "inpainting": ("image", "mask", "text"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def masks(count: int, side: int = 8) -> list[Image.Image]:
    """White where a model paints; grey pixels count as the nearer of black and white."""
    drawn = np.random.default_rng(3).integers(0, 256, (count, side, side), dtype=np.uint8)
    return [Image.fromarray(one) for one in drawn]


def items_of(kind: str) -> list[dict[str, Any]]:
    """Rows of a dataset, by the columns of diffusers' scripts."""
    shown, other, text = COLUMNS[kind]
    pictures = images(8, mode="RGB")
    others = pictures[4:] if kind == "InstructPix2Pix" else masks(4)
    return [{shown: pictures[n], other: others[n], text: CAPTIONS[n]} for n in range(4)]


def parquet(root: Path, items: list[dict[str, Any]]) -> Path:
    file = root.with_suffix(".parquet")
    datasets.Dataset.from_list(items).to_parquet(file)
    return file


def folder(root: Path, items: list[dict[str, Any]]) -> Path:
    """A folder of images, as `datasets` reads one with several images per line."""
    lines = []
    for number, item in enumerate(items):
        line: dict[str, Any] = {"number": number}
        for place, (name, value) in enumerate(item.items()):
            if isinstance(value, str):
                line[name] = value
                continue
            (root / name).mkdir(parents=True, exist_ok=True)
            value.save(root / name / f"{number}.png")
            line["file_name" if place == 0 else f"{name}_file_name"] = f"{name}/{number}.png"
        lines.append(json.dumps(line))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@torch.no_grad()
def by_hand(pipeline: Any, item: dict[str, Any], kind: str) -> dict[str, Any]:
    """A sample as `train_instruct_pix2pix.py` or the pipeline that inpaints makes it."""
    shown, other, text = (item[name] for name in COLUMNS[kind])
    made, vae = by_script(pipeline, shown, text), pipeline.vae

    def mean(picture: Tensor) -> Tensor:
        found: Tensor = vae.encode(picture[None]).latent_dist.mode()
        return found

    if kind == "InstructPix2Pix":
        further = mean(pixels(other))
    else:
        mask = (torch.from_numpy(np.array(other, dtype=np.float32) / 255) >= 0.5).float()
        masked = mean(torch.where(mask == 1, 0.0, pixels(shown))) * vae.config.scaling_factor
        further = torch.cat([interpolate(mask[None, None], (4, 4)), masked], dim=1)
    made["conditions"]["further_channels"] = further[0]
    return made


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("form", [parquet, folder])
def test_full_fine_tune(
    run: Run, tmp_path: Path, kind: str, form: Callable[[Path, list[dict[str, Any]]], Path]
) -> None:
    """By command; and from Python, with the latents in place of pictures, the same rows."""
    base, items = stable_diffusion(tmp_path / "sd", kind=kind), items_of(kind)
    tuned, data = fine_tuned(base, tmp_path / "run", steps=(1,)), form(tmp_path / "d", items)
    run("collect", "--dataset", data, "--checkpoints", tuned, "--store", tmp_path / "a", *EXACT)
    store = gs.open_store(tmp_path / "a")
    assert (store.checkpoints, store.samples) == (2, 4)
    pipeline = DiffusionPipeline.from_pretrained(tuned)
    made = [by_hand(pipeline, item, kind) for item in items]
    require_rows(store, pipeline, made, 1, adapters=False)
    latents = gs.collect(
        gs.Samples(made, ids=store.manifest.ids), tuned, tmp_path / "b",
        projector="identity", events=gs.EventSpec(timesteps=2), dtype="float32", metric="none",
    )  # fmt: skip
    np.testing.assert_allclose(latents.rows(1).direction, store.rows(1).direction, atol=1e-5)


@pytest.mark.parametrize("kind", COLUMNS)
def test_sdxl(run: Run, tmp_path: Path, kind: str) -> None:
    base, items = stable_diffusion_xl(tmp_path / "xl", kind=kind), items_of(kind)
    data = parquet(tmp_path / "data", items)
    run("collect", "--dataset", data, "--checkpoints", base, "--store", tmp_path / "a", *EXACT)
    pipeline = DiffusionPipeline.from_pretrained(base)
    made = [by_hand(pipeline, item, kind) for item in items]
    for one in made:
        one["conditions"]["time_ids"] = torch.tensor([8.0, 8, 0, 0, 8, 8])
    require_rows(gs.open_store(tmp_path / "a"), pipeline, made, 0, adapters=False)


def test_lora_and_queries(run: Run, tmp_path: Path) -> None:
    """Queries bring their own pictures to edit; the report shows what was asked."""
    kind = "InstructPix2Pix"
    base, items = stable_diffusion(tmp_path / "sd", kind=kind), items_of(kind)
    trained = lora_run(base, tmp_path / "run", SD_PIPELINES[kind], steps=(1,))
    data = parquet(tmp_path / "data", items)
    run("collect", "--dataset", data, "--checkpoints", trained, "--base", base,
        "--store", tmp_path / "a", *EXACT)  # fmt: skip
    pipeline = SD_PIPELINES[kind].from_pretrained(base)
    pipeline.load_lora_weights(trained)
    made = [by_hand(pipeline, item, kind) for item in items]
    require_rows(gs.open_store(tmp_path / "a"), pipeline, made, 0, adapters=True)
    run("query", "--store", tmp_path / "a", "--dataset", data, "--k", 1, "--out",
        tmp_path / "answers")  # fmt: skip
    assert gs.open_store(tmp_path / "answers" / "queries.gradstore").samples == 4
    assert (tmp_path / "answers" / "report.html").read_text().count("data:image/") >= 4
    with pytest.raises(CheckpointError, match="edits or inpaints"):
        gs.generate(gs.Adapters(base, trained), 1, prompt="a red car")


def test_a_further_picture_identifies_a_row(tmp_path: Path) -> None:
    base, items = stable_diffusion(tmp_path / "sd", kind="inpainting"), items_of("inpainting")
    options: dict[str, Any] = {"projector": "sjlt", "metric": "none"}
    store = gs.collect(items, base, tmp_path / "a", **options)
    other = [{**items[0], "mask": items[1]["mask"]}, *items[1:]]
    with pytest.raises(DatasetError):
        gs.collect(other, base, tmp_path / "a", **options)
    found = gs.collect(other, base, tmp_path / "b", **options)
    same = [np.array_equal(store.rows(0).direction[n], found.rows(0).direction[n]) for n in (0, 1)]
    assert same == [False, True]


def _small(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "mask": one["mask"].resize((4, 4))} for one in items]


def _bare(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "mask": None} for one in items]


def _renamed(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "white": one["mask"], "mask": 1} for one in items]


@pytest.mark.parametrize(
    ("message", "change", "options"),
    [
        ("its mask 4×4", _small, {}),
        ("no picture as its mask.*--mask-column", _bare, {}),
        ("no column 'there'.*--mask-column", _renamed, {"mask_column": "there"}),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, message: str, change: Any, options: dict[str, Any]
) -> None:
    base = stable_diffusion(tmp_path / "sd", kind="inpainting")
    samples = gs.Samples(change(items_of("inpainting")), **options)
    with pytest.raises(DatasetError, match=message):
        gs.collect(samples, base, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_columns_are_named(tmp_path: Path) -> None:
    """And a column that a model has no use for is not looked at."""
    base = stable_diffusion(tmp_path / "sd", kind="inpainting")
    items = _renamed(items_of("inpainting"))
    store = gs.collect(
        gs.Samples(items, mask_column="white"), base, tmp_path / "a", projector="sjlt"
    )
    assert store.samples == 4
    plain = stable_diffusion(tmp_path / "plain")
    assert gs.collect(items, plain, tmp_path / "b", projector="sjlt").samples == 4


@pytest.mark.parametrize("wrong", ["../secret.png", "missing.png", 3])
def test_a_folder_names_only_its_own_pictures(tmp_path: Path, wrong: Any) -> None:
    images(1, mode="RGB")[0].save(tmp_path / "secret.png")
    root = folder(tmp_path / "data", items_of("inpainting"))
    content = io.StringIO((root / "metadata.jsonl").read_text())
    lines = [json.dumps(json.loads(line) | {"mask_file_name": wrong}) for line in content]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"metadata\.jsonl"):
        gs.Samples(root)


def test_a_picture_of_another_one_is_no_sample(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", items_of("inpainting"))
    assert gs.Samples(root).ids == [f"image/{number}.png" for number in range(4)]
    line = {"file_name": "mask/0.png", "text": "a mask"}
    with (root / "metadata.jsonl").open("a") as file:
        file.write("\n" + json.dumps(line))
    with pytest.raises(DatasetError, match="picture of another"):
        gs.Samples(root)
