from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from gradstore.collect import (
    CollectConfig,
    ReplayedEvents,
    Samples,
    TrainConfig,
    collect_config,
    generate,
    load,
    train,
)
from gradstore.collect.events.noise import noise
from gradstore.errors import CheckpointError, ConfigError, DatasetError
from tests.support import naive
from tests.support.worlds import save_checkpoint, unet


def config(out: Path, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "dataset": "digits", "out": str(out), "epochs": 4, "checkpoint_every": 2, "limit": 24,
            "batch_size": 8, "channels": [8, 8],
        }
        | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "run"
    train(config(out))
    return out


def test_it_learns_and_saves_what_collecting_needs(run: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (run / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    folders = sorted((run / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["epoch-0002", "epoch-0004"]
    records = [load(folder).record for folder in folders]
    assert [r.learning_rate_sum for r in records if r] == pytest.approx([2e-3, 4e-3])
    assert "epochs: 4" in (run / "train.yaml").read_text()


def test_it_says_how_to_collect(run: Path) -> None:
    settings = CollectConfig.model_validate(yaml.safe_load((run / "collect.yaml").read_text()))
    assert (settings.dataset, settings.limit) == ("digits", 24)
    store = collect_config(settings.model_copy(update={"proj_dim": 16}))
    assert store.path == run / "train.gradstore"
    assert store.missing() == []


def test_same_seed_same_weights(run: Path, tmp_path: Path) -> None:
    again = train(config(tmp_path / "again"))[-1]
    other = train(config(tmp_path / "other", seed=1))[-1]
    first = load(run / "checkpoints" / "epoch-0004").weights_digest()
    assert load(again).weights_digest() == first
    assert load(other).weights_digest() != first


def test_replayed_events_are_those_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one sample and no step, the epoch's loss is the replayed event's loss."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: None)
    folder = train(config(tmp_path / "run", limit=1, epochs=1, checkpoint_every=1))[0]
    recorded = json.loads((tmp_path / "run" / "losses.jsonl").read_text())["loss"]
    samples = Samples.from_spec(config(tmp_path / "x", limit=1))
    plan = ReplayedEvents([folder], 1000)
    gradients = naive.full_gradients(folder, samples, plan, 0)
    assert float(gradients.norm()) > 0
    events, loaded = plan.at(0, samples.ids), load(folder)
    timestep, image = int(events.timestep[0, 0]), samples[0].tensor
    epsilon = torch.from_numpy(noise(int(events.key[0, 0, 0]), image.shape))
    noisy = loaded.scheduler.add_noise(image, epsilon, torch.tensor([timestep]))
    with torch.no_grad():
        loss = (loaded.model(noisy[None], timestep).sample[0] - epsilon).abs().mean()
    assert float(loss) == pytest.approx(recorded, rel=1e-5)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="exists; nothing was changed"):
        train(config(tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint would be saved"):
        train(config(tmp_path / "run", checkpoint_every=5))
    assert not (tmp_path / "run").exists()


def test_channels_that_do_not_fit(tmp_path: Path) -> None:
    for channels in ([8] * 5, [12]):
        with pytest.raises(ConfigError, match="does not fit images of 8×8"):
            train(config(tmp_path / "run", channels=channels))
    assert not (tmp_path / "run").exists()


def test_images_of_several_sizes(image_folder: Path, tmp_path: Path) -> None:
    image = Samples.from_spec(config(tmp_path, dataset=str(image_folder))).image(0)
    assert image is not None
    image.resize((4, 4)).save(image_folder / "cat" / "small.png")
    with pytest.raises(DatasetError, match="images of one size and mode"):
        train(config(tmp_path / "run", dataset=str(image_folder)))
    image.resize((8, 4)).save(tmp_path / "wide.png")
    for file in image_folder.rglob("*.png"):
        file.unlink()
    (tmp_path / "wide.png").rename(image_folder / "wide.png")
    with pytest.raises(DatasetError, match=r"8×4 pixels: the trainer needs square images"):
        train(config(tmp_path / "run", dataset=str(image_folder)))


def test_generated_images(run: Path) -> None:
    checkpoint = run / "checkpoints" / "epoch-0004"
    first = generate(checkpoint, 2, seed=0, steps=4)
    assert [image.size for image in first] == [(8, 8)] * 2
    pixels = [np.array(image) for image in first]
    again = [np.array(image) for image in generate(checkpoint, 2, seed=0, steps=4)]
    other = [np.array(image) for image in generate(checkpoint, 2, seed=1, steps=4)]
    np.testing.assert_array_equal(pixels, again)
    assert (np.array(pixels) != np.array(other)).any()
    assert Samples(first)[0].tensor.shape == (1, 8, 8)


def test_a_conditional_model_is_not_sampled_from(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "c", model=unet(0, num_class_embeds=3))
    with pytest.raises(CheckpointError, match="conditioned on classes"):
        generate(folder, 1)


def test_only_some_samples_are_trained_on(tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    ids = Samples.from_spec(config(tmp_path)).ids
    wanted = [ids[row] for row in (3, 1, 5)]
    listed.write_text("".join(f"{one}\n" for one in wanted))
    some = config(tmp_path / "run", epochs=1, checkpoint_every=1, only=str(listed))
    (folder,) = train(some)
    assert pq.read_table(folder / "events.parquet")["id"].to_pylist() == wanted
    assert not (tmp_path / "run" / "collect.yaml").exists()  # it would collect all samples
    listed.write_text("99\n")
    with pytest.raises(DatasetError, match="--only .*'99'"):
        train(some.model_copy(update={"out": str(tmp_path / "other")}))
    with pytest.raises(ConfigError, match="no such file"):
        train(some.model_copy(update={"out": str(tmp_path / "third"), "only": "/no/ids"}))
