"""Settings from flags and YAML: nothing is split, expanded or believed that was not asked for."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

from gradstore import open_store
from gradstore.errors import ConfigError
from gradstore.flags.query import QueryConfig
from query.cli.parsing import parse
from tests.support.commands import Run
from tests.support.written_stores import filled, grown

GIVEN = {"store": "s", "out": "o", "queries": "q"}


def test_flags_repeat_and_texts_are_not_split() -> None:
    texts = {"ids": ("a,b.png", "c"), "labels": ("tench, Tinca tinca",)}
    found = parse(QueryConfig, None, {**GIVEN, **texts, "groups": ()})
    assert found.ids == ["a,b.png", "c"]
    assert found.labels == ["tench, Tinca tinca"]
    assert found.groups is None
    both = {"measures": ("tracin,retrac", "clip:0.5"), "etas": ("0.5,1", "2")}
    found = parse(QueryConfig, None, {**GIVEN, **both})
    assert found.measures == ["tracin", "retrac", "clip:0.5"]
    assert found.etas == [0.5, 1, 2]


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "query.yaml"
    file.write_text("store: ~/s.gradstore\ncheckpoints: [~/run/1, other]\nids: [~/x]\n")
    found = parse(QueryConfig, file, {"out": "~/o", "queries": "~/q"})
    assert (found.store, found.out) == (f"{tmp_path}/s.gradstore", f"{tmp_path}/o")
    assert found.checkpoints == [f"{tmp_path}/run/1", "other"]
    assert found.ids == ["~/x"]


def test_a_sample_whose_id_has_a_comma_is_deleted(run: Run, tmp_path: Path) -> None:
    store = grown(filled(tmp_path / "s.gradstore"), ["a,b.png", "b.png"])
    assert "2 deleted" in run("delete", store.path, "--ids", "a,b.png", "--ids", "s1")
    left = open_store(store.path).manifest.ids
    assert "b.png" in left
    assert not {"a,b.png", "s1"} & set(left)


def test_a_file_imports_nothing_unless_allowed(tmp_path: Path) -> None:
    file = tmp_path / "query.yaml"
    for name in ("os.path.NAME", "os.path.NAME:2", "os.path.NAME@0-9"):
        file.write_text(f"measures: [tracin, '{name}']\n")
        with pytest.raises(ConfigError, match="would import and run a module"):
            parse(QueryConfig, file, dict(GIVEN))
        given = {**GIVEN, "allow_imports": True}
        assert parse(QueryConfig, file, given).measures == ["tracin", name]
    file.write_text("measures: ['power:0.5', 'retrac@0-9']\n")
    assert len(parse(QueryConfig, file, dict(GIVEN)).measures) == 2
    assert parse(QueryConfig, None, {**GIVEN, "measures": ("os.path.NAME",)}).measures


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        ALIASES,
        "store: " + "[" * 3000,
        "k: " + "9" * 5000,
        "[1, 2]",
        "store: !!python/object/apply:os.getcwd []",
    ],
    ids=["aliases", "brackets", "digits", "list", "objects"],
)
def test_hostile_settings_are_refused_at_once(content: str, tmp_path: Path) -> None:
    file = tmp_path / "query.yaml"
    file.write_text(content)
    start = monotonic()
    with pytest.raises(ConfigError, match="query.yaml is not"):
        parse(QueryConfig, file, GIVEN)
    assert monotonic() - start < 10
