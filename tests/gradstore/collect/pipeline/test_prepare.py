"""What does not fit is refused before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from gradstore.collect import (
    ProjectorSpec,
    Samples,
    collect,
)
from gradstore.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    EngineError,
    FingerprintError,
    StoreError,
)
from gradstore.store.reader import Store
from tests.support.collected import PLAN, SMALL, files
from tests.support.worlds import NAMES, World, images, save_checkpoint, unet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector": ProjectorSpec(proj_dim=65)}, "projector.proj_dim: 64 in .*, 65 in"),
        ({"projector": ProjectorSpec(proj_dim=64, proj_seed=1)}, "projector.seed: 0"),
        ({"objective": "l2"}, 'objective.loss: "l1" in .*, "l2" in'),
        ({"events": PLAN}, 'events.kind: "replayed" in .*, "planned" in'),
        ({"dtype": "float32"}, 'storage.dtype: "float16" in'),
    ],
)
def test_another_configuration_does_not_touch_a_store(
    world: World, tmp_path: Path, reference: Store, change: dict[str, Any], message: str
) -> None:
    path = Path(shutil.copytree(reference.path, tmp_path / "a.gradstore"))
    before = files(path)
    with pytest.raises(FingerprintError, match=rf"(?s){message}.*another --store"):
        collect(world.train, world.checkpoints, path, **{**SMALL, **change})
    assert files(path) == before


def test_another_checkpoint_does_not_touch_a_store(
    world: World, tmp_path: Path, reference: Store
) -> None:
    path = Path(shutil.copytree(reference.path, tmp_path / "a.gradstore"))
    before = files(path)
    other = save_checkpoint(tmp_path / "other", model=unet(9))
    with pytest.raises(FingerprintError, match=r"(?s)checkpoints.1.weights"):
        collect(world.train, [world.checkpoints[0], other], path, etas=[1, 1], **SMALL)
    assert files(path) == before


def test_an_output_path_that_is_something_else(world: World, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(StoreError, match="exists and is something that is not a store"):
            collect(world.train, world.checkpoints, path, **SMALL)
    assert files(tmp_path) == {tmp_path / "notes.txt": b"precious"}


def test_a_checkpoint_of_another_architecture(world: World, tmp_path: Path) -> None:
    other = save_checkpoint(
        tmp_path / "wide", model=unet(0, block_out_channels=(8, 8)), learning_rate_sum=1
    )
    path = tmp_path / "a.gradstore"
    with pytest.raises(CheckpointError, match=r"wide has another architecture than .*epoch-01"):
        collect(world.train, [world.checkpoints[0], other], path, **SMALL)
    assert not path.exists()


def test_a_missing_checkpoint(world: World, tmp_path: Path) -> None:
    path = tmp_path / "a.gradstore"
    with pytest.raises(CheckpointError, match="epoch-99 does not exist"):
        collect(world.train, [*world.checkpoints, tmp_path / "epoch-99"], path, **SMALL)
    assert not path.exists()


def test_checkpoints_out_of_order(world: World, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="in training order"):
        collect(world.train, world.checkpoints[::-1], tmp_path / "a.gradstore", **SMALL)


def test_etas(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.gradstore"
    for etas in ([1], [1, -1], [1, float("nan")]):
        with pytest.raises(ConfigError, match=r"for 2 checkpoints. Give one finite number"):
            collect(world.train, world.checkpoints, path, etas=etas, **SMALL)
    folder = Path(shutil.copytree(world.checkpoints[0], tmp_path / "bare"))
    (folder / "checkpoint.json").unlink()
    store = collect(world.train, [folder], path, objective="l1", **SMALL)
    assert store.etas == [1]
    assert "every checkpoint weighs 1" in caplog.text
    given = collect(world.train, [folder], tmp_path / "b.gradstore", etas=[3], **SMALL)
    assert given.etas == [3]
    # Without a record, the loss is diffusers' default.
    assert given.spec.identity["objective"]["loss"] == "l2"  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Samples(images(7, mode="RGB"), ids=NAMES), r"3 channel.*--mode L"),
        (lambda: Samples([i.resize((9, 9)) for i in images(7)], ids=NAMES), r"9×9.*--size 8"),
        (lambda: Samples([*images(6), images(1)[0].resize((4, 4))], ids=NAMES), "'image-6' is 4×4"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(world: World, tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        collect(make(), world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    assert not (tmp_path / "a.gradstore").exists()


def test_samples_of_two_shapes(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "c", ids=["0", "1"])
    mixed = Samples([torch.zeros(4), torch.zeros(5)])
    with pytest.raises(DatasetError, match=r"'1' has shape \(5,\), sample '0' has \(4,\)"):
        collect(mixed, [folder], tmp_path / "a.gradstore", **SMALL)


def test_another_scheduler_among_the_checkpoints(world: World, tmp_path: Path) -> None:
    other = save_checkpoint(
        tmp_path / "linear", model=unet(1), scheduler=DDIMScheduler(), learning_rate_sum=1
    )
    with pytest.raises(CheckpointError, match=r"another scheduler or loss .*is 'linear'"):
        collect(world.train, [world.checkpoints[0], other], tmp_path / "a.gradstore", **SMALL)


def test_other_etas_do_not_touch_a_store(world: World, tmp_path: Path, reference: Store) -> None:
    path = Path(shutil.copytree(reference.path, tmp_path / "a.gradstore"))
    before = files(path)
    with pytest.raises(ConfigError, match=r"has checkpoint weights .* not \[5.0, 7.0\]"):
        collect(world.train, world.checkpoints, path, etas=[5, 7], **SMALL)
    assert files(path) == before


def test_records_for_some_checkpoints_only(world: World, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(world.checkpoints[1], tmp_path / "bare"))
    (bare / "checkpoint.json").unlink()
    for folders in ([world.checkpoints[0], bare], [bare, world.checkpoints[0]]):
        with pytest.raises(CheckpointError, match=r"such as .*bare, have none.*--etas"):
            collect(world.train, folders, tmp_path / "a.gradstore", objective="l1", **SMALL)


def test_a_dataset_with_randomness_is_refused(world: World, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    class Augmented:
        def __len__(self) -> int:
            return 7

        def __getitem__(self, row: int) -> Tensor:
            return world.train[row].tensor + 0.1 * torch.rand(1, generator=generator)

    with pytest.raises(DatasetError, match=r"different data at each read .*'image-0'"):
        collect(
            Samples(Augmented(), ids=NAMES), world.checkpoints, tmp_path / "a.gradstore", **SMALL
        )


def test_a_model_that_does_not_take_the_samples(world: World, tmp_path: Path) -> None:
    """Errors of a foreign model are reported before a store is made."""
    items = [{"image": world.train.image(n), "conditions": {"text": 1.0}} for n in range(7)]
    with pytest.raises(EngineError, match=r"epoch-01, sample 'image-0' .* cannot .* TypeError"):
        collect(Samples(items, ids=NAMES), world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    assert not (tmp_path / "a.gradstore").exists()


def several(channels: int) -> UNet2DModel:
    """A model of one channel that returns several."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=channels, block_out_channels=(4, 8),
        norm_num_groups=2, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    )  # fmt: skip


def test_a_model_with_a_learned_variance(world: World, tmp_path: Path) -> None:
    """It has the rows of the model without the variance."""
    model, plain = several(2), several(1)
    mean = {
        name: one[:1] if "conv_out" in name else one for name, one in model.state_dict().items()
    }
    plain.load_state_dict(mean)
    found, expected = (
        collect(
            world.train,
            [save_checkpoint(tmp_path / name, model=one)],
            tmp_path / f"{name}.gradstore",
            **SMALL,
        ).rows(0)
        for name, one in (("both", model), ("mean", plain))
    )
    np.testing.assert_allclose(found.norm, expected.norm, rtol=1e-4)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-4)


def test_a_model_that_predicts_something_else(world: World, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "c", model=several(3))
    with pytest.raises(CheckpointError, match=r"\(3, 8, 8\) for samples of shape \(1, 8, 8\)"):
        collect(world.train, [folder], tmp_path / "a.gradstore", **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "huber"}, "no loss 'huber'"),
        ({"events": "imagined"}, "no events 'imagined'"),
        ({"device": "gpu"}, r"device 'gpu' cannot be used.*gradstore doctor"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_nonsense_is_refused(
    world: World, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **{**SMALL, **change})
    assert not (tmp_path / "a.gradstore").exists()


def test_conditions_of_two_shapes_are_found_before_anything_starts(
    world: World, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2,
    )  # fmt: skip
    folder = save_checkpoint(tmp_path / "epoch-01", ids=["0", "1", "2"], model=model)

    def items(tokens: int, dtype: torch.dtype) -> list[dict[str, Any]]:
        texts = [torch.ones(5, 6, dtype=dtype)] * 2 + [torch.ones(tokens, 6, dtype=dtype)]
        return [
            {"image": world.train[n].tensor, "conditions": {"encoder_hidden_states": text}}
            for n, text in enumerate(texts)
        ]

    with pytest.raises(DatasetError, match=r"sample '2' has conditions .*\(7, 6\)"):
        collect(items(7, torch.float32), folder, tmp_path / "a.gradstore", **SMALL)
    assert not (tmp_path / "a.gradstore").exists()
    bfloat16 = Samples(items(5, torch.bfloat16))
    assert len(set(bfloat16.manifest.digests)) == 3
