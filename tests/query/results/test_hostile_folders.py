"""Folders from strangers in which somebody works on: nothing outside them is written or removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Run, words
from tests.support.drawn_stores import random_store
from tests.support.memory import bounded

PRECIOUS = "precious"
ASKED = "--store {place}/t.gradstore --queries {place}/q.gradstore"
STORE = "--store {place}/t.gradstore"
COMMANDS = {
    "s.parquet": f"scores {ASKED} --out {{place}}/s.parquet",
    "s.zarr": f"scores {ASKED} --out {{place}}/s.zarr",
    "i.parquet": f"self-influence {STORE} --out {{place}}/i.parquet",
    "i.jsonl": f"self-influence {STORE} --out {{place}}/i.jsonl",
    "r.parquet": f"rollup {ASKED} --out {{place}}/r.parquet",
    "b.jsonl": f"breakdown {ASKED} --query s0 --sample s1 --out {{place}}/b.jsonl",
    "o/results.parquet": f"query {ASKED} --k 3 --out {{place}}/o",
    "o/report.html": f"query {ASKED} --k 3 --out {{place}}/o",
    "o/query.yaml": f"query {ASKED} --k 3 --out {{place}}/o",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    labels: dict[str, list[object]] = {"label": [str(n % 3) for n in range(20)]}
    random_store(place / "t.gradstore", 20, metadata=labels)
    random_store(place / "q.gradstore", 3, seed=1)
    return place


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    for name in ("file", "folder/file"):
        (outside / name).write_text(PRECIOUS)
    return outside


def require_untouched(outside: Path) -> None:
    files = {str(file.relative_to(outside)) for file in outside.rglob("*") if file.is_file()}
    assert files == {"file", "folder/file"}
    assert all((outside / name).read_text() == PRECIOUS for name in files)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_temporary_name_leads_outside(
    place: Path, outside: Path, run: Run, name: str, kind: str
) -> None:
    """Names of unfinished results and of locks are known beforehand."""
    whole = place / name
    whole.parent.mkdir(exist_ok=True)
    (whole.parent / f".{whole.name}.writing").symlink_to(outside / kind)
    if whole.parent == place:  # a results folder with anything in it is not taken
        run(*words(COMMANDS[name], place))
        assert whole.exists()
        assert not whole.is_symlink()
    else:
        run(*words(COMMANDS[name], place), status=1)
    require_untouched(outside)


@pytest.mark.parametrize("lock", [".s.parquet.lock", ".s.zarr.lock", "..i.parquet.writing.lock"])
def test_no_lock_leads_outside(place: Path, outside: Path, run: Run, lock: str) -> None:
    (place / lock).symlink_to(outside / "file")
    for name in ("s.parquet", "s.zarr", "i.parquet"):
        if name in lock:
            run(*words(COMMANDS[name], place), status=1)
    require_untouched(outside)


@pytest.mark.parametrize("name", ["blocks", "results.parquet", "report.html", "queries.gradstore"])
def test_a_results_folder_with_links_is_not_resumed(
    place: Path, outside: Path, run: Run, name: str
) -> None:
    command = words(COMMANDS["o/report.html"], place)
    run(*command)
    file = place / "o" / name
    file.unlink(missing_ok=True)
    file.symlink_to(outside / ("file" if "." in name else "folder"))
    assert str(file) in run(*command, status=1)
    require_untouched(outside)


def begun(place: Path, name: str, run: Run) -> Path:
    """A matrix of scores of which nothing is computed."""
    run(*words(COMMANDS["s.zarr"], place))
    matrix = (place / "s.zarr").rename(place / name)
    shutil.rmtree(matrix / "done/c")
    return matrix


HOSTILE: dict[str, Any] = {
    "shape": lambda array: array | {"shape": [10**7, 10**7]},
    "chunks": lambda array: (
        array | {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 1]}}}
    ),
    "codec": lambda array: array | {"codecs": [*array["codecs"], {"name": "zstd"}]},
    "dtype": lambda array: array | {"data_type": "variable_length_utf8"},
    "version": lambda array: array | {"zarr_format": 2},
    "deep": lambda _: "[" * 10**5,
    "none": lambda _: None,
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize(
    ("name", "command"), [("s.zarr", "s.zarr"), (".s.parquet.zarr", "s.parquet")]
)
def test_scores_are_not_continued_in_other_arrays(
    place: Path, run: Run, how: str, name: str, command: str
) -> None:
    matrix = begun(place, name, run)
    for array in ("done", "scores"):
        file = matrix / array / "zarr.json"
        before = file.read_text()
        changed = HOSTILE[how](json.loads(before))
        file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with bounded(256 << 20):
            told = run(*words(COMMANDS[command], place), status=1)
        assert f"{name}/{array} is not an array of these scores" in told
        file.write_text(before)
    run(*words(COMMANDS[command], place))


def test_scores_are_not_continued_through_links(place: Path, outside: Path, run: Run) -> None:
    matrix = begun(place, "s.zarr", run)
    shutil.rmtree(matrix / "scores/c")
    (matrix / "scores/c").symlink_to(outside)
    assert "scores/c is a link" in run(*words(COMMANDS["s.zarr"], place), status=1)
    require_untouched(outside)


def test_what_looks_like_leftovers_of_scores(place: Path, outside: Path, run: Run) -> None:
    """`verify` and `vacuum` look at whatever lies beside a store."""
    for number, content in enumerate(["[" * 10**6, "{}", "[1]", '{"attributes": 3}']):
        matrix = place / f".s{number}.parquet.zarr"
        matrix.mkdir()
        (matrix / "zarr.json").write_text(content)
    (place / ".l.parquet.zarr").symlink_to(outside / "folder")
    for name in ("file", "folder"):
        (place / f".{name}.writing").symlink_to(outside / name)
        (place / f"..{name}.writing.lock").touch()
    run("verify", place / "t.gradstore")
    run("vacuum", place / "t.gradstore")
    assert not list(place.glob("*.writing*"))
    require_untouched(outside)


def test_names_in_settings_do_not_control_the_terminal(
    place: Path, run: Run, tmp_path: Path
) -> None:
    hostile = "\x1b[2J\u202egpj"
    settings = tmp_path / "settings.yaml"
    for command, out in (("self-influence", f"{hostile}.jsonl"), ("query", hostile)):
        given = {"store": str(place / "t.gradstore"), "out": str(place / out)}
        if command == "query":
            given["queries"] = str(place / "q.gradstore")
        settings.write_text(json.dumps(given))
        told = run(command, settings)
        assert "\\x1b[2J\\u202egpj" in told
        assert told.replace("\n", "").isprintable()
