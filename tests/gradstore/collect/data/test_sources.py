"""Datasets as people keep them: saved, in shards, in tar files, streamed; and odd labels."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import gradstore as gs
from gradstore.errors import ConfigError, DatasetError, UnreadableError
from gradstore.flags.dataset import DatasetSpec
from tests.support.commands import Run
from tests.support.pictures import GREY, file_of, parquet_of, turned
from tests.support.worlds import World, images, save_checkpoint, unet

PLANNED = ["--metric", "none", "--projector", "sjlt", "--proj-dim", 16, "--timesteps", 2]
PICTURES = images(4)
LABELS = ["cat", "dog", "cat", "dog"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def of_library(rows: range = range(4)) -> Any:
    """A dataset as the library `datasets` holds it; one picture is turned."""
    files = [turned(6) if row == 3 else file_of(PICTURES[row]) for row in rows]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "name": datasets.Value("string"),
        }
    )
    columns = {
        "image": [{"bytes": one, "path": None} for one in files],
        "label": [LABELS[row] for row in rows],
        "name": [f"picture-{row}" for row in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def expected(run: Run, tmp_path: Path, world: World) -> Any:
    """What the store of every source must list."""
    of_library().to_parquet(tmp_path / "whole.parquet")
    return listed(run, tmp_path, world, tmp_path / "whole.parquet", "--id-column", "name")


def listed(run: Run, tmp_path: Path, world: World, dataset: object, *more: object) -> Any:
    """Ids, digests and labels that `collect` stores of a dataset."""
    place = tmp_path / "stores" / f"{len(list(tmp_path.glob('stores/*')))}.gradstore"
    place.parent.mkdir(exist_ok=True)
    run("collect", "--dataset", dataset, "--checkpoints", world.checkpoints[0], *PLANNED, *more,
        "--store", place)  # fmt: skip
    found = gs.open_store(place).manifest
    return found.ids, found.digests, found.metadata["label"]


def test_what_save_to_disk_made(run: Run, tmp_path: Path, world: World, expected: Any) -> None:
    of_library().save_to_disk(tmp_path / "saved", num_shards=2)
    by = ["--id-column", "name"]
    assert listed(run, tmp_path, world, tmp_path / "saved", *by) == expected
    datasets.DatasetDict(train=of_library(), test=of_library(range(2))).save_to_disk(
        tmp_path / "split"
    )
    assert listed(run, tmp_path, world, tmp_path / "split", *by) == expected
    half = listed(run, tmp_path, world, tmp_path / "split", *by, "--split", "test")
    assert half[0] == expected[0][:2]
    with pytest.raises(DatasetError, match=r"no split 'valid'; it has test, train"):
        gs.Samples.from_spec(DatasetSpec(dataset=str(tmp_path / "split"), split="valid"))
    # A state file from a stranger names no file elsewhere.
    state = tmp_path / "saved" / "state.json"
    noted = json.loads(state.read_text())
    noted["_data_files"][0]["filename"] = "../split/train/data-00000-of-00001.arrow"
    state.write_text(json.dumps(noted))
    with pytest.raises(DatasetError, match=r"state\.json names"):
        gs.Samples(tmp_path / "saved")
    state.write_text("[1]")
    with pytest.raises(DatasetError, match="cannot be read"):
        gs.Samples(tmp_path / "saved")


def test_a_folder_of_parquet_shards(run: Run, tmp_path: Path, world: World, expected: Any) -> None:
    data = tmp_path / "shards" / "data"
    data.mkdir(parents=True)
    of_library(range(2)).to_parquet(data / "train-00000-of-00002.parquet")
    of_library(range(2, 4)).to_parquet(data / "train-00001-of-00002.parquet")
    of_library(range(1)).to_parquet(data / "test-00000-of-00001.parquet")
    by = ["--id-column", "name"]
    assert listed(run, tmp_path, world, data.parent, *by) == expected
    assert gs.Samples.from_spec(DatasetSpec(dataset=str(data), split="test")).ids == ["0"]
    with pytest.raises(DatasetError, match="no split 'validation'"):
        gs.Samples.from_spec(DatasetSpec(dataset=str(data), split="validation"))
    for number, file in enumerate(sorted(data.glob("train*"))):
        file.rename(data / f"part-{number}.parquet")
    (data / "test-00000-of-00001.parquet").unlink()
    assert listed(run, tmp_path, world, data, *by) == expected
    (data / "part-1.parquet").write_bytes(b"no")
    with pytest.raises(DatasetError, match=r"part-1\.parquet cannot be read"):
        gs.Samples(data)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class Evil:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_tar_files_of_webdataset(run: Run, tmp_path: Path, world: World) -> None:
    members = {
        "set/000.jpg": file_of(PICTURES[0], "JPEG"),
        "set/000.txt": b"a red car\n",
        "set/000.cls": b"1",
        "set/000.json": json.dumps({"artist": "A"}).encode(),
        "set/001.PNG": turned(6),
        "set/001.cls": b"0",
        "set/001.pyd": pickle.dumps(Evil(tmp_path / "mark")),
        "set/002.txt": b"without a picture",
        "__MACOSX/._000.png": b"",
    }
    one = tar_of(tmp_path / "one.tar", members)
    ids, digests, labels = listed(run, tmp_path, world, one)
    assert (ids, labels) == (["set/000", "set/001"], ["1", "0"])
    assert digests[1] == gs.Samples([(Image.open(io.BytesIO(turned(6))), "0")]).manifest.digests[0]
    assert not (tmp_path / "mark").exists()
    samples = gs.Samples(one, metadata_columns=["artist"])
    assert [samples[row].caption for row in range(2)] == ["a red car", None]
    assert samples.manifest.metadata["artist"] == ["A", None]
    assert int(samples[0].class_label(2)) == 1
    # Several tar files in a folder may have the same names.
    folder = tmp_path / "shards"
    for name in ("train-00.tar", "train-01.tar", "test-00.tar"):
        tar_of(folder / name, members)
    names = listed(run, tmp_path, world, folder)[0]
    assert names == [f"train-0{n}/set/00{m}" for n in range(2) for m in range(2)]
    bad = tar_of(tmp_path / "bad.tar", {"a.png": file_of(GREY), "a.json": b"[" * 100_000})
    with pytest.raises(UnreadableError, match="'a'"):
        gs.Samples(bad)
    with pytest.raises(DatasetError, match="twice"):
        gs.Samples(tar_of(tmp_path / "twice.tar", {"a.png": b"", "a.PNG": b""}))
    with pytest.raises(DatasetError, match="no image"):
        gs.Samples(tar_of(tmp_path / "none.tar", {"a.txt": b""}))
    (tmp_path / "cut.tar").write_bytes(one.read_bytes()[:700])
    with pytest.raises(DatasetError):
        _ = gs.Samples(tmp_path / "cut.tar").manifest
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(one, "a.png")
    with pytest.raises(DatasetError, match="not compressed"):
        gs.Samples(tmp_path / "packed.tar")


def test_a_configuration_of_a_hub_dataset(
    run: Run, tmp_path: Path, world: World, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses the real loading code; a folder with the hub's layout replaces the hub."""
    hub = tmp_path / "hub"
    for name, rows in (("small", range(2)), ("large", range(4))):
        (hub / name).mkdir(parents=True)
        of_library(rows).to_parquet(hub / name / "train-00000.parquet")
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/*\n"
        "- config_name: large\n  data_files: large/*\n---\n"
    )
    monkeypatch.chdir(tmp_path)
    by = ["--id-column", "name"]
    assert listed(run, tmp_path, world, "hf://hub:large", *by) == expected
    assert listed(run, tmp_path, world, "hf://hub:small", *by)[0] == expected[0][:2]
    with pytest.raises(DatasetError, match="cannot be loaded"):
        gs.Samples("hf://hub:medium")
    with pytest.raises(DatasetError, match="not a name on the hub"):
        gs.Samples("hf://hub:../../etc")


def test_a_stream_with_ids(tmp_path: Path, world: World, expected: Any) -> None:
    stream = of_library().to_iterable_dataset()
    options: dict[str, Any] = {"metric": "none", "projector": "sjlt", "events": "planned"}
    samples = gs.Samples(stream, id_column="name")
    store = gs.collect(samples, world.checkpoints[:1], tmp_path / "a.gradstore", **options)
    found = store.manifest
    assert (found.ids, found.digests, found.metadata["label"]) == expected
    assert gs.Samples(stream, id_column="name", limit=2).ids == expected[0][:2]
    with pytest.raises(DatasetError, match="id_column"):
        gs.Samples(stream)

    def made() -> Iterator[dict[str, Any]]:
        for row in range(3):
            yield {"image": PICTURES[row], "name": f"picture-{row}", "label": row}

    own = gs.Samples(datasets.IterableDataset.from_generator(made), id_column="name")
    assert own.ids == expected[0][:3]
    assert (
        list(own.manifest.digests)
        == gs.Samples(list(zip(PICTURES[:3], range(3), strict=True))).manifest.digests
    )


CASES: dict[str, tuple[Any, list[str | None]]] = {
    "dictionary": (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
    "pandas": (pa.Array.from_pandas(pd.Categorical(["x", None, "y"])), ["x", None, "y"]),
    "whole floats": (pa.array([1.0, float("nan"), 0.0]), ["1", None, "0"]),
    "floats": (pa.array([1.5, None, 0.0]), ["1.5", None, "0"]),
    "lists": (pa.array([["a", "b"], ["c"], []]), ["a, b", "c", None]),
    "booleans": (pa.array([True, False, None]), ["True", "False", None]),
    "nulls": (pa.nulls(3), [None, None, None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_labels_of_tables(run: Run, tmp_path: Path, world: World, kind: str) -> None:
    given, expected = CASES[kind]
    files = {f"{n}.png": file_of(PICTURES[n]) for n in range(3)}
    table = parquet_of(tmp_path / "a.parquet", files, label=given)
    assert listed(run, tmp_path, world, table)[2] == expected


def test_names_of_several_classes(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"])),
        }
    )
    whole = datasets.Dataset.from_dict(
        {"image": PICTURES[:3], "label": [[0, 1], [1], []]}, features=features
    )
    assert gs.Samples(whole).manifest.metadata["label"] == ["cat, dog", "dog", None]


@pytest.mark.parametrize("labels", [[1.0, float("nan"), 0.0], [True, None, False], [[1], [], [0]]])
def test_such_labels_are_class_numbers(
    run: Run, tmp_path: Path, world: World, labels: list[Any]
) -> None:
    """A class-conditional model takes those that there are, and names the sample that has none."""
    conditional = tmp_path / "run" / "epoch-01"
    save_checkpoint(conditional, model=unet(0, num_class_embeds=2))
    files = {f"{n}.png": file_of(PICTURES[n]) for n in range(3)}
    whole = parquet_of(tmp_path / "a.parquet", files, label=pa.array(labels))
    told = run("collect", "--dataset", whole, "--checkpoints", conditional, *PLANNED,
               "--store", tmp_path / "a.gradstore", status=1)  # fmt: skip
    assert "sample '1' has label None" in told
    some = parquet_of(
        tmp_path / "b.parquet",
        {name: files[name] for name in ("0.png", "2.png")},
        label=pa.array([labels[0], labels[2]]),
    )
    run("collect", "--dataset", some, "--checkpoints", conditional, *PLANNED,
        "--store", tmp_path / "b.gradstore")  # fmt: skip


@pytest.mark.parametrize("ids", [["a", None, "b"], [1.0, float("nan"), 2.0]])
def test_a_missing_id_is_an_error(run: Run, tmp_path: Path, world: World, ids: list[Any]) -> None:
    files = {f"{n}.png": file_of(PICTURES[n]) for n in range(3)}
    table = parquet_of(tmp_path / "a.parquet", files, key=pa.array(ids))
    told = run("collect", "--dataset", table, "--checkpoints", world.checkpoints[0], *PLANNED,
               "--id-column", "key", "--store", tmp_path / "a.gradstore", status=1)  # fmt: skip
    assert "row 1 has no id" in told


def test_a_path_in_a_table_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(file_of(GREY))
    table = pa.table({"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UnreadableError, match="no bytes"):
        _ = gs.Samples(tmp_path / "a.parquet").manifest


RESIZED = [("squash", "bicubic"), ("crop", "bilinear"), ("pad", "bicubic"), ("crop", "lanczos")]


@pytest.mark.parametrize(("resize", "interpolation"), RESIZED)
def test_how_pictures_are_resized(
    run: Run, tmp_path: Path, world: World, resize: str, interpolation: str
) -> None:
    """Beside torchvision-like steps, done by hand; recorded in the store."""
    image = images(1)[0].resize((24, 16), Image.Resampling.NEAREST)
    parquet_of(tmp_path / "a.parquet", {"a": file_of(image)})
    given = ["--size", 8, "--resize", resize]
    if (resize, interpolation) not in RESIZED[:3]:
        given += ["--interpolation", interpolation]
    run("collect", "--dataset", tmp_path / "a.parquet", "--checkpoints", world.checkpoints[0],
        *PLANNED, *given, "--store", tmp_path / "a.gradstore")  # fmt: skip
    pixels = Image.Resampling[interpolation.upper()]
    if resize == "squash":
        own = image.resize((8, 8), pixels)
    elif resize == "crop":
        own = image.resize((12, 8), pixels).crop((2, 0, 10, 8))
    else:
        own = Image.new("L", (8, 8), 255)
        own.paste(image.resize((8, 5), pixels), (0, 2))
    store = gs.open_store(tmp_path / "a.gradstore")
    assert store.manifest.digests == gs.Samples([own]).manifest.digests
    record = store.spec.parts[0].made_by["samples"]
    assert (record["size"], record["resize"]) == (8, resize)
    with pytest.raises(ConfigError):
        DatasetSpec(dataset="digits", interpolation="cubic")
