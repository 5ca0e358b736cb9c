"""A text-to-image model, asked by prompts and by images with captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gradstore as gs
from gradstore.collect.pipeline.run import collect_config
from tests.query.serve.conftest import picture
from tests.support.pipelines import captioned, lora_run, stable_diffusion
from tests.support.served import Client, Started


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("prompts")
    sd = stable_diffusion(folder / "sd")
    store = gs.collect(
        gs.Samples(str(captioned(folder / "pictures"))),
        sd,
        folder / "train.gradstore",
        events=gs.EventSpec(events="planned", timesteps=2),
        projector=gs.ProjectorSpec(projector="sjlt", proj_dim=64),
        metric="none",
    )
    with gs.serve(store, checkpoints=str(sd), port=0, timesteps=2, draws=1) as server:
        yield Client(server)


def ask(client: Client, query: str, body: bytes | None = None) -> str:
    done = client.asked(client.send("POST", f"/api/asked?{query}", body))
    assert done["state"] == "done", done
    return str(done["asked"])


def test_a_prompt_is_drawn_and_asked(drawing: Client) -> None:
    about = drawing.get("about").json
    assert about["prompts"]
    assert about["can_generate"]
    names = [ask(drawing, f"seed=3&prompt={prompt}") for prompt in ("a+red+car", "a+dog")]
    shown = []
    for name, prompt in zip(names, ("a red car", "a dog"), strict=True):
        answer = drawing.get("answer", asked=name, measure="retrac", k=2).json
        assert prompt in answer["query"]["id"]
        shown.append([one["score"] for one in answer["sides"][0]["found"]])
        assert drawing.get("image", kind="asked", id=name).status == 200
    assert not np.allclose(shown[0], shown[1])
    assert ask(drawing, "seed=3&prompt=a+dog") == names[1]  # the same is asked once


def test_the_caption_of_an_image_counts(drawing: Client, tmp_path: Path) -> None:
    content = picture(tmp_path / "given.png", (16, 16))
    names = [ask(drawing, query, content) for query in ("prompt=a+cat", "prompt=a+dog", "")]
    assert len(set(names)) == 3
    shown = [drawing.get("answer", asked=name, k=2).json["sides"][0]["found"] for name in names]
    assert len({found[0]["score"] for found in shown}) == 3


def test_what_is_to_be_drawn_must_be_said(drawing: Client, client: Client) -> None:
    assert drawing.send("POST", "/api/asked?seed=3").status == 400
    assert client.send("POST", "/api/asked?seed=3&prompt=a+dog").status == 400  # it takes none


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """LoRA adapters on a pipeline that has moved since their store was made."""
    folder = tmp_path_factory.mktemp("lora")
    sd, pictures = stable_diffusion(folder / "sd"), captioned(folder / "pictures")
    run = lora_run(sd, folder / "run")
    settings = {"projector": "sjlt", "proj_dim": 64, "timesteps": 2, "metric": "none"}
    store = collect_config(
        gs.CollectConfig(
            dataset=str(pictures),
            base=str(sd),
            checkpoints=[str(run)],
            store=str(folder / "train.gradstore"),
            **settings,
        )
    )
    moved = sd.rename(folder / "moved")
    events = ["--timesteps", 2, "--draws", 1]
    with Started(store.location, "--base", moved, "--checkpoints", run, *events) as started:
        yield Client(started)


def test_adapters_on_a_base_answer_images_and_prompts(adapted: Client, tmp_path: Path) -> None:
    about = adapted.get("about").json
    assert (about["can_ask"], about["can_generate"], about["prompts"]) == (True, True, True)
    assert not about["warnings"]
    content = picture(tmp_path / "given.png", (16, 16))
    given = [ask(adapted, query, content) for query in ("prompt=a+cat", "prompt=a+dog")]
    drawn = ask(adapted, "seed=3&prompt=a+red+car")
    shown = []
    for name in (*given, drawn):
        answer = adapted.get("answer", asked=name, measure="retrac", k=4).json
        shown.append({one["id"]: one["score"] for one in answer["sides"][0]["found"]})
        assert adapted.get("image", kind="asked", id=name).status == 200
    assert [one.keys() for one in shown] == [{f"{n}.png" for n in range(4)}] * 3
    assert len({one["0.png"] for one in shown}) == 3
