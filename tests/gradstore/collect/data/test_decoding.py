"""Pictures of every source are decoded by the same rules; old stores are read by their own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageCms

import gradstore as gs
from gradstore.collect.provenance import Provenance
from gradstore.errors import DatasetError, UnreadableError
from gradstore.flags.dataset import DatasetSpec
from query.serve.uploads import Upload
from tests.support.commands import Run
from tests.support.pictures import (
    COLOUR,
    GREY,
    broken_exif,
    broken_png,
    file_of,
    folder_of,
    parquet_of,
    sixteen_bits,
    swapped_profile,
    turned,
)
from tests.support.worlds import World, images, save_checkpoint

PAPER = ["--metric", "none", "--projector", "sjlt", "--proj-dim", 16, "--timesteps", 2]


def one(content: bytes, folder: Path, **options: Any) -> gs.Samples:
    return gs.Samples(folder_of(folder, {"a.png": content}), **options)


def pixels(samples: gs.Samples) -> Any:
    return ((samples[0].tensor + 1) * 127.5).round().numpy()


def test_every_source_holds_a_picture_as_its_camera_says(
    run: Run, tmp_path: Path, world: World
) -> None:
    """Folder, Parquet, `datasets`, Python and upload; told by the store's digests."""
    files = {f"{n}.png": turned(n) for n in range(1, 9)}
    folder = folder_of(tmp_path / "folder", files)
    table = parquet_of(tmp_path / "table.parquet", files)
    hub = datasets.Dataset.from_dict({"image": [str(folder / name) for name in files]}).cast_column(
        "image", datasets.Image()
    )
    stores = []
    for number, source in enumerate((folder, table)):
        run("collect", "--dataset", source, "--checkpoints", world.checkpoints[0],
            "--store", tmp_path / f"{number}.gradstore", *PAPER)  # fmt: skip
        stores.append(gs.open_store(tmp_path / f"{number}.gradstore").manifest.digests)
    opened = [Upload.read(content).image for content in files.values()]
    upright = np.array(GREY)
    expected = gs.Samples([
        Image.fromarray(np.ascontiguousarray(one)) for one in (
            upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1], upright.T,
            np.rot90(upright, -1), upright[::-1, ::-1].T, np.rot90(upright),
        )
    ]).manifest.digests  # fmt: skip
    assert len(set(expected)) == 8
    for found in (*stores, gs.Samples(hub).manifest.digests, gs.Samples(opened).manifest.digests):
        assert list(found) == list(expected)
    # What was turned is not turned again.
    again = [gs.Samples(folder).image(row) for row in range(8)]
    assert list(gs.Samples(again).manifest.digests) == list(expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L"])
def test_what_is_transparent_is_white(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In every way a PNG has: a channel, a palette's entry, a grey value."""
    image = COLOUR if mode in {"RGBA", "P"} else GREY
    half = Image.fromarray(np.where(np.arange(64).reshape(8, 8) < 32, 0, 255).astype(np.uint8))
    plain = {"LA": "L", "RGBA": "RGB"}.get(mode, mode)
    if mode in {"P", "L"}:
        image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 32)
        if mode == "P":
            image.putpalette([10, 20, 30, 40, 50, 60])
        content = file_of(image, transparency=0)
    else:
        image = image.convert(mode)
        image.putalpha(half)
        content = file_of(image)
    with caplog.at_level(logging.WARNING, "gradstore"):
        samples = gs.Samples(folder_of(tmp_path / "a", {"1.png": content, "2.png": content}))
        assert len(samples.manifest) == 2
    assert sum("transparent" in one.message for one in caplog.records) == 1
    found = pixels(samples)
    assert (found[:, :4] == 255).all()
    opaque = np.array(image.convert("RGB" if plain in {"P", "RGB"} else "L"))
    assert np.array_equal(found[:, 4:], np.atleast_3d(opaque[4:]).transpose(2, 0, 1))
    kept = one(content, tmp_path / "b", mode="RGBA")
    assert kept[0].tensor.shape == (4, 8, 8)
    assert np.array_equal(pixels(kept)[3], np.array(half))


def test_sixteen_bits_are_scaled_by_their_range(run: Run, tmp_path: Path, world: World) -> None:
    """With `--mode L`, too, which made them white."""
    exact = np.array(sixteen_bits(), dtype=np.float64) / 65535
    for kind in ("PNG", "TIFF"):
        samples = one(file_of(sixteen_bits(), kind), tmp_path / kind)
        found = samples[0].tensor.double().numpy()[0]
        np.testing.assert_allclose(found, exact * 2 - 1, atol=1e-6)
        shown = samples.image(0)
        assert shown is not None
        assert np.array_equal(np.array(shown), (exact * 255).round())
    big = np.array(sixteen_bits()).astype(">u2").tobytes()
    given = gs.Samples([Image.frombytes("I;16B", (8, 8), big)])
    assert torch.equal(given[0].tensor, samples[0].tensor)
    for mode, channels in (("L", 1), ("RGB", 3)):
        found = pixels(gs.Samples(tmp_path / "PNG", mode=mode))
        assert np.array_equal(found, np.stack([(exact * 255).round()] * channels))
    run("collect", "--dataset", tmp_path / "PNG", "--checkpoints", world.checkpoints[0],
        "--store", tmp_path / "a.gradstore", *PAPER)  # fmt: skip
    grey = np.array(sixteen_bits())
    holed = one(file_of(sixteen_bits(), transparency=int(grey[3, 4])), tmp_path / "holed")
    assert holed[0].tensor[0, 3, 4] == 1
    assert torch.equal(holed[0].tensor[0, :3], samples[0].tensor[0, :3])


@pytest.mark.parametrize("mode", ["F", "I"])
@pytest.mark.parametrize("given", [[], ["--mode", "L"]])
def test_a_range_that_is_not_known_is_refused(
    run: Run, tmp_path: Path, world: World, mode: str, given: list[str]
) -> None:
    dtype = np.float32 if mode == "F" else np.int32
    image = Image.fromarray(np.arange(64).reshape(8, 8).astype(dtype))
    assert image.mode == mode
    folder = folder_of(tmp_path / "a", {"a.tif": file_of(image, "TIFF")})
    told = run("collect", "--dataset", folder, "--checkpoints", world.checkpoints[0],
               "--store", tmp_path / "a.gradstore", *given, status=1)  # fmt: skip
    assert "'a.tif'" in told
    assert "--mode" not in told
    with pytest.raises(DatasetError) as found:
        gs.Samples(folder, skip_unreadable=True)
    assert not isinstance(found.value, UnreadableError)


def test_colours_are_of_srgb(tmp_path: Path) -> None:
    swapped = np.array(COLOUR)[..., ::-1].transpose(2, 0, 1)
    found = one(file_of(COLOUR, icc_profile=swapped_profile()), tmp_path / "a")
    assert np.array_equal(pixels(found), swapped)
    clear = COLOUR.convert("RGBA")
    clear.putalpha(Image.new("L", (8, 8), 200))
    kept = one(file_of(clear, icc_profile=swapped_profile()), tmp_path / "b", mode="RGBA")
    assert np.array_equal(pixels(kept)[:3], swapped)
    assert (pixels(kept)[3] == 200).all()
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = one(file_of(COLOUR, icc_profile=same), tmp_path / "c")
    assert np.array_equal(pixels(whole), np.array(COLOUR).transpose(2, 0, 1))
    wrong = one(file_of(COLOUR, icc_profile=b"nonsense"), tmp_path / "d")
    assert np.array_equal(pixels(wrong), pixels(whole))
    inks = COLOUR.convert("CMYK")
    printed = gs.Samples(folder_of(tmp_path / "e", {"a.jpg": file_of(inks, "JPEG", quality=100)}))
    assert np.abs(pixels(printed) - np.array(COLOUR).transpose(2, 0, 1)).max() < 60
    assert pixels(printed).shape == (3, 8, 8)


def test_the_first_frame_of_several_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = images(3)
    for kind in ("GIF", "TIFF", "PNG"):
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        folder = folder_of(tmp_path / kind, {f"{n}.{kind.lower()}": content for n in range(2)})
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gradstore"):
            samples = gs.Samples(folder, mode="L")
            assert len(samples.manifest) == 2
        assert sum("frames" in one.message for one in caplog.records) == 1
        assert np.array_equal(pixels(samples)[0], np.array(frames[0]))


def test_damaged_pictures_are_named_or_skipped(run: Run, tmp_path: Path, world: World) -> None:
    files = {f"{n}.png": file_of(image) for n, image in enumerate(images(4))}
    damaged = {
        "exif.png": broken_exif(),
        "chunk.png": broken_png(),
        "cut.png": file_of(GREY)[:60],
        "empty.png": b"",
        "text.jpg": b"not a picture",
    }
    whole = folder_of(tmp_path / "whole", files)
    folder = folder_of(tmp_path / "some", files | damaged)
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    table = parquet_of(tmp_path / "some.parquet", {**damaged, **files})
    base = ["--checkpoints", world.checkpoints[0], *PAPER]
    for name, content in damaged.items():
        alone = folder_of(tmp_path / name.replace(".", "-"), {name: content})
        told = run("collect", "--dataset", alone, *base, "--store", tmp_path / "x", status=1)
        assert f"'{name}'" in told
        assert "--skip-unreadable" in told
    run("collect", "--dataset", whole, *base, "--store", tmp_path / "whole.gradstore")
    expected = gs.open_store(tmp_path / "whole.gradstore").manifest
    for source, count, more in ((folder, 6, []), (table, 5, ["--id-column", "name"])):
        place = tmp_path / f"{source.stem}-{count}.gradstore"
        given = ["--dataset", source, *base, *more, "--store", place]
        run("collect", *given, "--skip-unreadable")
        store = gs.open_store(place)
        assert store.manifest.ids == expected.ids
        assert store.manifest.digests == expected.digests
        record = store.spec.parts[0].made_by["samples"]
        assert record["skipped"] == count
        assert set(damaged) <= set(record["first_skipped"])
        assert f"{count} damaged and left out" in run("info", place)
        # The report reads the recorded dataset.
        run("query", "--store", place, "--dataset", whole, "--k", 1, "--timesteps", 2, "--draws", 1,
            "--out", tmp_path / f"answers-{count}")  # fmt: skip
        report = (tmp_path / f"answers-{count}" / "report.html").read_text()
        assert report.count("data:image/") >= 5
    folder_of(tmp_path / "none", damaged)
    with pytest.raises(DatasetError, match="none of the 5"):
        gs.Samples(tmp_path / "none", skip_unreadable=True)


# Digests of the first version of the rules, made by it.
BEFORE = {
    "a/.hidden/seen.png": "18dda1733ef0fb614b152298ee5a5898",
    "a/turned.png": "29b03ce3f420d988c152c0c83fcbb60b",
    "b/clear.png": "cd2af406259083b646b59c8067d217d6",
    "b/inks.png": "fcb5988181e2630a3e81450f2b4b28bb",
}


def hard(folder: Path) -> Path:
    clear = COLOUR.convert("RGBA")
    clear.putalpha(128)
    return folder_of(
        folder,
        {
            "a/turned.png": turned(6),
            "a/.hidden/seen.png": file_of(images(1, seed=2)[0]),
            "b/clear.png": file_of(clear),
            "b/inks.png": file_of(COLOUR, icc_profile=swapped_profile()),
        },
    )


def test_the_first_version_of_the_rules_is_as_it_was(tmp_path: Path) -> None:
    before = gs.Samples(hard(tmp_path / "hard"), reading=1)
    assert dict(zip(before.ids, before.manifest.digests, strict=True)) == BEFORE
    table = parquet_of(
        tmp_path / "hard.parquet", {"turned": turned(6)}, label=[float("nan")], id=["e\u0301"]
    )
    old = gs.Samples.from_spec(DatasetSpec(dataset=str(table), id_column="id", reading=1))
    assert old.manifest.digests == ["5ec31b919ad541db3e309c1760928bb8"]
    assert (old.ids, old.manifest.metadata) == (["e\u0301"], {"label": ["nan"]})
    # A store that records no version is of the first.
    golden = Path(__file__).parents[3] / "golden" / "format-1.gradstore"
    assert Provenance.of(gs.open_store(golden).spec.parts[0]).reading == 1


def test_a_store_is_read_by_the_rules_it_was_collected_by(
    run: Run, tmp_path: Path, world: World
) -> None:
    folder = hard(tmp_path / "hard")
    settings = tmp_path / "old.yaml"
    settings.write_text(f"dataset: {folder}\nmode: L\nreading: 1\n")
    base = ["--checkpoints", world.checkpoints[0], *PAPER, "--store", tmp_path / "a.gradstore"]
    run("collect", settings, *base)
    old = gs.open_store(tmp_path / "a.gradstore")
    assert list(old.manifest.ids) == list(BEFORE)
    # The same dataset, by the commands of today: nothing has changed, and nothing is collected.
    run("collect", "--dataset", folder, "--mode", "L", *base)
    again = gs.collect(
        gs.Samples(folder, mode="L"),
        world.checkpoints[:1],
        tmp_path / "a.gradstore",
        metric="none",
        projector=gs.ProjectorSpec(projector="sjlt", proj_dim=16),
        events=gs.EventSpec(events="planned", timesteps=2),
    )
    assert again.spec.revision == old.spec.revision
    # What reads the dataset again: a report, full gradients, one more checkpoint.
    run("query", "--store", tmp_path / "a.gradstore", "--dataset", folder, "--mode", "L", "--k", 4,
        "--rerank", 4, "--timesteps", 2, "--draws", 1, "--out", tmp_path / "answers")  # fmt: skip
    assert (tmp_path / "answers" / "report.html").read_text().count("data:image/") == 3 + 4
    asked = gs.open_store(tmp_path / "answers" / "queries.gradstore").manifest
    assert list(asked.ids) == [name for name in BEFORE if "hidden" not in name]
    assert set(asked.digests).isdisjoint(old.manifest.digests)
    run("add-checkpoint", tmp_path / "a.gradstore", world.checkpoints[1], "--eta", 1)
    gs.add_checkpoint(
        tmp_path / "a.gradstore",
        save_checkpoint(tmp_path / "third", epoch=3),
        eta=1,
        datasets=[gs.Samples(folder, mode="L")],
    )
    # New samples are read by the rules of today.
    more = folder_of(tmp_path / "more", {"more.png": turned(6)})
    run("append", "--store", tmp_path / "a.gradstore", "--dataset", more, "--mode", "L")
    grown = gs.open_store(tmp_path / "a.gradstore")
    assert [Provenance.of(part.spec).reading for part in grown.parts] == [1, 2]
    assert grown.manifest.digests[4] == gs.Samples(more, mode="L").manifest.digests[0]


def test_no_picture_is_run_as_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program, whatever its file is called; Pillow would start Ghostscript."""
    programs, started = tmp_path / "programs", tmp_path / "started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "EPS")
    with contextlib.suppress(OSError):
        Image.open(content).load()
    assert started.exists()  # so Pillow does
    started.unlink()
    files = {"a.png": content.getvalue()}
    for source in (
        folder_of(tmp_path / "folder", files),
        parquet_of(tmp_path / "table.parquet", files),
    ):
        samples = gs.Samples(str(source))
        with pytest.raises(UnreadableError):
            _ = samples[0]
        assert not started.exists()
