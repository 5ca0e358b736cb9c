from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from gradstore.collect import Samples
from gradstore.errors import DatasetError, UnreadableError
from gradstore.flags.dataset import DatasetSpec
from tests.support.hostile_parquet import repeated
from tests.support.worlds import images

GREY = images(3)


def hub_like() -> Any:
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "name": datasets.Value("string"),
            "artist": datasets.Value("string"),
        }
    )
    columns = {"img": GREY, "label": [0, 1, 0], "name": list("xyz"), "artist": ["A", "B", "A"]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_datasets_dataset() -> None:
    samples = Samples(hub_like(), id_column="name", metadata_columns=["artist"])
    assert samples.ids == ["x", "y", "z"]
    assert samples.manifest.metadata == {"artist": ["A", "B", "A"], "label": ["cat", "dog", "cat"]}
    tensor = samples[1].tensor
    assert tensor.shape == (1, 8, 8)
    np.testing.assert_allclose(tensor[0].numpy(), np.array(GREY[1]) / 127.5 - 1, atol=1e-6)
    shown = samples.image(1)
    assert shown is not None
    np.testing.assert_array_equal(np.array(shown), np.array(GREY[1]))
    assert int(samples[1].class_label(2)) == 1


class Mapped(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": GREY[row], "label": torch.tensor(row), "conditions": {"extra": row}}


def test_a_torch_dataset_of_mappings() -> None:
    samples = Samples(Mapped())
    assert samples.ids == ["0", "1"]
    assert samples.manifest.metadata == {"label": ["0", "1"]}
    assert samples[1].conditions == {"extra": torch.tensor(1)}


def test_tensors_tuples_and_bare_images() -> None:
    data = torch.rand(2, 3, 8, 8) * 2 - 1
    tuples = Samples(TensorDataset(data, torch.tensor([4, 5])))
    assert torch.equal(tuples[1].tensor, data[1])
    assert tuples.manifest.metadata == {"label": ["4", "5"]}
    singles = Samples(TensorDataset(data))
    assert torch.equal(singles[0].tensor, data[0])
    assert singles.manifest.metadata == {}
    shown = singles.image(0)
    assert shown is not None
    assert (shown.mode, shown.size) == ("RGB", (8, 8))
    assert Samples(GREY)[2].tensor.shape == (1, 8, 8)
    vectors = Samples(torch.rand(4, 6))
    assert vectors[0].tensor.shape == (6,)
    assert vectors.image(0) is None
    assert Samples.of(vectors) is vectors


def test_unlabelled_samples_have_no_label() -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    unlabelled = datasets.Dataset.from_dict(
        {"image": GREY, "label": [-1, 1, None]}, features=features
    )
    assert Samples(unlabelled).manifest.metadata["label"] == [None, "dog", None]


def test_showing_an_image_does_not_change_it() -> None:
    samples = Samples([GREY[0].resize((64, 64))])
    shown = samples.image(0)
    assert shown is not None
    shown.thumbnail((8, 8))
    assert samples[0].tensor.shape == (1, 64, 64)


def test_conversion() -> None:
    samples = Samples(GREY, mode="RGB", size=16)
    assert samples[0].tensor.shape == (3, 16, 16)
    assert samples.manifest.digests != Samples(GREY).manifest.digests


def test_digests_follow_content() -> None:
    first, again = Samples(GREY).manifest.digests, Samples(GREY).manifest.digests
    assert first == again
    assert len(set(first)) == 3
    other = Samples([GREY[0], GREY[1], images(1, seed=9)[0]]).manifest.digests
    assert [a == b for a, b in zip(first, other, strict=True)] == [True, True, False]


def test_a_folder(image_folder: Path) -> None:
    (image_folder / "notes.txt").write_text("not an image")
    samples = Samples.from_spec(DatasetSpec(dataset=str(image_folder)))
    assert samples.ids == [f"cat/{n}.png" for n in (1, 3, 5)] + [f"dog/{n}.png" for n in (0, 2, 4)]
    assert samples.manifest.metadata["label"] == ["cat"] * 3 + ["dog"] * 3
    np.testing.assert_allclose(
        samples[3].tensor.numpy()[0], np.array(images(6)[0]) / 127.5 - 1, atol=1e-6
    )


def test_parquet_as_datasets_and_as_others_write_it(tmp_path: Path) -> None:
    written = tmp_path / "hub.parquet"
    hub_like().to_parquet(written)
    samples = Samples.from_spec(DatasetSpec(dataset=str(written)))
    assert samples.manifest.metadata["label"] == ["cat", "dog", "cat"]
    table = pq.read_table(written).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "bare.parquet")
    bare = Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "bare.parquet"), limit=2))
    assert bare.manifest.digests == samples.manifest.digests[:2]
    assert bare.manifest.metadata["label"] == ["0", "1"]
    raw = pa.table({"picture": [row["bytes"] for row in table["img"].to_pylist()]})
    pq.write_table(raw, tmp_path / "raw.parquet")
    spec = DatasetSpec(dataset=str(tmp_path / "raw.parquet"), image_column="picture")
    raws = Samples.from_spec(spec)
    assert all(torch.equal(raws[row].tensor, samples[row].tensor) for row in range(3))


def test_a_dataset_by_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the real loading code; a folder with the hub's layout replaces the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub = tmp_path / "hub"
    hub.mkdir()
    hub_like().to_parquet(hub / "train.parquet")
    monkeypatch.chdir(tmp_path)
    samples = Samples.from_spec(DatasetSpec(dataset="hf://hub"))
    assert samples.manifest.metadata["label"] == ["cat", "dog", "cat"]
    with pytest.raises(DatasetError, match=r"hf://.*hub \(split 'valid'\) cannot be loaded"):
        Samples.from_spec(DatasetSpec(dataset="hf://hub", split="valid"))
    with pytest.raises(DatasetError, match=r"hf://no/such \(split 'train'\) cannot be loaded"):
        Samples.from_spec(DatasetSpec(dataset="hf://no/such"))


def test_digits() -> None:
    train = Samples.from_spec(DatasetSpec(dataset="digits"))
    test = Samples.from_spec(DatasetSpec(dataset="digits", split="test"))
    assert (len(train), len(test)) == (1700, 97)
    assert train[0].tensor.shape == (1, 8, 8)
    assert float(train[0].tensor.min()) == -1
    assert not set(train.ids) & set(test.ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Samples([]), "the dataset is empty"),
        (lambda: Samples(hub_like(), image_column="photo"), r"no column 'photo'.*'img', 'label'"),
        (lambda: Samples(hub_like(), label_column="kind"), r"no column 'kind'.*--label-column"),
        (lambda: Samples(hub_like(), id_column="uid"), "no column 'uid'"),
        (lambda: Samples(hub_like(), metadata_columns=["x"]), "no column 'x'"),
        (lambda: Samples(hub_like(), id_column="artist"), "id 'A' occurs 2 times"),
        (lambda: Samples(GREY, ids=["a", "b"]), "2 ids were given for 3 samples"),
        (lambda: Samples(GREY, ids=list("abcd"), limit=2), "4 ids were given for 3 samples"),
        (lambda: Samples(iter(GREY)), "has no length: give a map-style dataset"),
        (lambda: Samples(datasets.DatasetDict(train=hub_like())), "Give one split"),
        (lambda: Samples([(GREY[0], torch.zeros(3))]).manifest, r"metadata of shape \(3,\)"),
        (lambda: Samples([{"text": "a"}]), "no column 'image' or 'img'"),
        (lambda: Samples([{"image": "a.png"}])[0].tensor, r"'0' is a str, neither an image"),
        (lambda: Samples(torch.zeros(2, 3).int())[0].tensor, "array of torch.int32"),
        (lambda: Samples(torch.full((1, 3), torch.nan))[0].tensor, "not finite"),
        (lambda: Samples(GREY)[0].class_label(3), "no .* label|label None"),
    ],
)  # fmt: skip
def test_bad_datasets_are_named(make: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        make()


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("nowhere", "train", "'nowhere' was not found"),
        ("digits", "valid", "digits has no split 'valid'"),
    ],
)
def test_unknown_datasets(dataset: str, split: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Samples.from_spec(DatasetSpec(dataset=dataset, split=split))


def test_rows_that_hold_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": [{"bytes": None, "path": None}]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UnreadableError, match="sample '0' cannot be read"):
        _ = Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "x.parquet"))).manifest
    Image.new("L", (8, 8)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableError, match="'bomb.png' cannot be read: Image size .* exceeds"):
        _ = Samples.from_spec(DatasetSpec(dataset=str(tmp_path))).manifest


def test_a_small_file_of_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(repeated())
    with pytest.raises(DatasetError, match=r"x.parquet cannot be read: its .* bytes decode to"):
        Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "x.parquet")))


@pytest.mark.parametrize(
    "note", ["x", "[]", '{"info":3}', '{"info":{"features":{"image":{"_type":"Foreign"}}}}']
)
def test_a_foreign_note_of_features_is_not_needed(tmp_path: Path, note: str) -> None:
    table = pa.table({"image": [[0.5, 1.0], [0.0, 2.0]]})
    pq.write_table(table.replace_schema_metadata({"huggingface": note}), tmp_path / "x.parquet")
    samples = Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "x.parquet")))
    assert samples[1].tensor.tolist() == [0.0, 2.0]


class Broken:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> Any:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), IndexError(2), TypeError("x"), RuntimeError("x"), OverflowError("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_datasets_own_error_is_told(error: Exception) -> None:
    with pytest.raises(
        DatasetError, match=f"'0' cannot be read: Broken raised {type(error).__name__}"
    ):
        Samples(Broken(error))


def test_a_folders_name_as_class_number(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    GREY[0].save(tmp_path / "1" / "a.png")
    sample = Samples.from_spec(DatasetSpec(dataset=str(tmp_path)))[0]
    assert int(sample.class_label(2)) == 1
    with pytest.raises(DatasetError, match=r"label '1', .* 0 … 0.*sub-folders by class number"):
        sample.class_label(1)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no image"):
        Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "empty")))
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DatasetError, match=r"x.parquet cannot be read"):
        Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "x.parquet")))
    folder = tmp_path / "broken"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    samples = Samples.from_spec(DatasetSpec(dataset=str(folder)))
    with pytest.raises(UnreadableError, match=r"sample 'b.png' cannot be read"):
        _ = samples.manifest
