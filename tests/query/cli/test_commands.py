"""The whole pipeline by hand: every command, as a user types it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import gradstore as gs
from gradstore.flags.fast import FAST, Setting
from gradstore.store.opening import open_store
from tests.support.commands import TRAIN, Run
from tests.support.served import Client
from tests.support.worlds import images


def test_each_step_says_what_comes_next(road: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert f"Next: gradstore collect {out}/collect.yaml" in run(*TRAIN, "--out", out)
    told = run("plan", out / "collect.yaml", "--proj-dim", "16")
    assert "40 samples × 2 checkpoints: 800 rows" in told
    assert "an index takes 0.0 MB of memory per measure" in told
    assert not (out / "train.gradstore").exists()
    told = run("collect", out / "collect.yaml", "--proj-dim", "16")
    assert "train.gradstore: 800 rows" in told
    assert f"Next: gradstore index --store {out}/train.gradstore" in told
    told = run("index", "--store", out / "train.gradstore", "--measures", "retrac")
    assert told.startswith("retrac: building an index of about 0.0 MB\n")
    assert "train.retrac.index: 40 vectors of 16, " in told
    assert "Next: gradstore query" in told


def test_query_a_dataset(road: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    command = (
        "query", "--store", road / "run" / "train.gradstore", "--dataset", "digits", "--limit", 3,
        "--k", 4, "--timesteps", 2, "--draws", 2, "--out", out,
    )  # fmt: skip
    told = run(*command)
    assert "TracIn" in told
    assert "ReTrac" in told
    assert f"Next: open {out}/report.html" in told
    table = pd.read_parquet(out / "results.parquet")
    assert len(table) == 3 * 2 * 2 * 4
    assert set(table["query_id"]) == {"digit-1700", "digit-1701", "digit-1702"}
    top = table[(table.measure == "retrac") & (table.side == "proponent")]
    assert (top.groupby("query_id").score.diff().dropna() <= 0).all()
    assert [len(steps) for steps in table.timesteps] == [2 * 10] * len(table)
    page = (out / "report.html").read_text()
    assert page.count('<article class="query"') == 3
    assert "http" not in page.replace("http-equiv", "")
    # The same command resumes; a different one does not touch the folder.
    run(*command)
    told = run(*command, "--event-seed", 1, status=1)
    assert "was made with other settings; nothing was changed" in told


def test_query_a_folder_generated_images_and_a_query_store(
    road: Path, run: Run, tmp_path: Path
) -> None:
    store = road / "run" / "train.gradstore"
    (tmp_path / "asked").mkdir()
    for number, image in enumerate(images(2)):
        image.save(tmp_path / "asked" / f"{number}.png")
    few = ("--timesteps", 1, "--draws", 1, "--k", 2)
    run("query", "--store", store, "--dataset", tmp_path / "asked", *few, "--out", tmp_path / "a")
    run("query", "--store", store, "--generate", 2, *few, "--out", tmp_path / "b")
    assert len(list((tmp_path / "b" / "generated").glob("*.png"))) == 2
    for made in ("a", "b"):
        again = tmp_path / f"again-{made}"
        queries = tmp_path / made / "queries.gradstore"
        run("query", "--store", store, "--queries", queries, "--k", 2, "--out", again)
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / made / "results.parquet"),
            pd.read_parquet(again / "results.parquet"),
        )
        page = (again / "report.html").read_text()
        assert page == (tmp_path / made / "report.html").read_text()


def test_sums_of_queries_weights_of_checkpoints_and_all_scores(
    road: Path, run: Run, tmp_path: Path
) -> None:
    store = road / "run" / "train.gradstore"
    run("query", "--store", store, "--dataset", "digits", "--limit", 12, "--timesteps", 2,
        "--draws", 1, "--k", 40, "--out", tmp_path / "a")  # fmt: skip
    asked = ("--store", store, "--queries", tmp_path / "a" / "queries.gradstore", "--etas", "0,1")
    less = ("--mean-by", "label", "--minus", "label=1")
    run("query", *asked, *less, "--k", 40, "--measures", "tracin", "--out", tmp_path / "b")
    table = pd.read_parquet(tmp_path / "b" / "results.parquet")
    assert set(table["query_id"].str.endswith(" - label=1")) == {True}
    assert all(parts[0] == 0 for parts in table["parts"])
    told = run("scores", *asked, *less, "--measure", "tracin", "--out", tmp_path / "s.parquet")
    assert "× 40 samples" in told
    scores = pd.read_parquet(tmp_path / "s.parquet").astype({"query_id": str, "sample_id": str})
    both = table[table.side == "proponent"].merge(scores, on=["query_id", "sample_id"])
    assert len(both) == len(scores)
    most = both["score_y"].abs().max()
    np.testing.assert_allclose(both["score_x"], both["score_y"], rtol=1e-4, atol=1e-6 * most)
    told = run("query", *asked, "--mean-by", "artist", "--out", tmp_path / "c", status=1)
    assert "no column 'artist'" in told
    assert not (tmp_path / "c").exists()
    told = run("query", *asked[:-1], "1", "--out", tmp_path / "c", status=1)
    assert "one finite number ≥ 0 for each" in told


def test_fast_computes_no_gradient_that_does_not_count(
    road: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.question.FAST", Setting(FAST.timesteps, FAST.draws, checkpoints=1))
    store = road / "run" / "train.gradstore"
    few = ("query", "--store", store, "--dataset", "digits", "--limit", 2, "--k", 40)
    run(*few, "--fast", "--out", tmp_path / "fast")
    queries = open_store(tmp_path / "fast" / "queries.gradstore")
    assert (queries.slots, queries.numbers) == (FAST.timesteps, [0, 1])
    assert [place for place, _, _ in queries.missing()] == [0]
    # It equals the same setting given explicitly, with every gradient computed.
    run(*few, "--timesteps", FAST.timesteps, "--draws", FAST.draws, "--out", tmp_path / "whole")
    both = sum(open_store(store).etas)
    again = ("query", "--store", store, "--k", 40, "--etas", f"0,{both}")
    run(*again, "--queries", tmp_path / "whole" / "queries.gradstore", "--out", tmp_path / "e")
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(tmp_path / name / "results.parquet") for name in ("fast", "e"))
    )
    # Missing gradients are requested and not taken as zero, until they are collected.
    asked = ("--store", store, "--queries", queries.path)
    told = run("query", *asked, "--out", tmp_path / "q", status=1)
    assert "lacks rows of checkpoint 0. Omit it with --etas 0," in told
    assert not (tmp_path / "q").exists()
    told = run("scores", *asked, "--out", tmp_path / "s.parquet", status=1)
    assert "lacks rows of checkpoint 0" in told
    run("scores", *asked, "--etas", "0,1", "--out", tmp_path / "s.parquet")
    pair = (
        "--query",
        "digit-1700",
        "--sample",
        open_store(store).manifest.ids[0],
        "--out",
        tmp_path / "b.parquet",
    )
    assert "lacks rows of checkpoint 0" in run("breakdown", *asked, *pair, status=1)
    run("breakdown", *asked, *pair, "--etas", "0,1")
    assert set(pd.read_parquet(tmp_path / "b.parquet")["checkpoint"]) == {1}
    run("query", *asked, "--fast", "--k", 40, "--out", tmp_path / "again")
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(tmp_path / name / "results.parquet") for name in ("fast", "again"))
    )


def test_slots_are_matched_and_another_index_built_by_flag(
    road: Path, run: Run, tmp_path: Path
) -> None:
    store = tmp_path / "m.gradstore"
    planned = ("--events", "planned", "--timesteps", 3, "--proj-dim", 16, "--store", store)
    run("collect", road / "run" / "collect.yaml", *planned)
    asked = (
        "query", "--store", store, "--dataset", "digits", "--limit", 2, "--draws", 1, "--k", 40,
        "--measures", "retrac", "--matched",
    )  # fmt: skip
    told = run(*asked, "--out", tmp_path / "a", status=1)
    matching = ("--timesteps", 3, "--timesteps-below", 1)
    assert "cannot be matched. Use --timesteps 3 --timesteps-below 1, or" in told
    assert not (tmp_path / "a").exists()
    run(*asked, *matching, "--out", tmp_path / "a")
    table = pd.read_parquet(tmp_path / "a" / "results.parquet")
    queries = tmp_path / "a" / "queries.gradstore"
    train, own = open_store(store), open_store(queries)
    scores = sum(
        eta * np.einsum("qtd,ntd->qn", own.rows(k).direction.astype(float), rows) / 3
        for k, eta in enumerate(train.etas)
        for rows in [train.rows(k).direction.astype(float)]
    )
    top = table[(table.side == "proponent") & (table.query_id == own.manifest.ids[1])]
    np.testing.assert_allclose(top["score"], np.sort(scores[1])[::-1], rtol=1e-3, atol=1e-5)
    run(
        "scores",
        "--store",
        store,
        "--queries",
        queries,
        "--matched",
        "--out",
        tmp_path / "s.parquet",
    )
    found = pd.read_parquet(tmp_path / "s.parquet")["score"].to_numpy().reshape(2, 40)
    np.testing.assert_allclose(found, scores, rtol=1e-3, atol=1e-5)
    other = ("--measures", "retrac", "--matched", "--factory", "fp16", "--queries", queries)
    told = run("index", "--store", store, *other)
    assert "m.retrac.matched.index: 40 vectors of 48" in told
    assert (
        f"recall 1.000 of the first 10 and 1.000 of the first 100 of 2 queries of {queries}" in told
    )
    run(*asked, *matching, "--out", tmp_path / "b")
    again = pd.read_parquet(tmp_path / "b" / "results.parquet")
    assert again["sample_id"].tolist() == table["sample_id"].tolist()
    told = run(*asked[:-2], "trak", "--matched", *matching, "--out", tmp_path / "c", status=1)
    assert "trak transforms the mean of a sample's slots" in told


def test_candidates_are_ranked_again_by_true_influence(
    road: Path, run: Run, tmp_path: Path
) -> None:
    store = road / "run" / "train.gradstore"
    few = (
        "query", "--store", store, "--dataset", "digits", "--limit", 2, "--timesteps", 2,
        "--draws", 1, "--measures", "retrac",
    )  # fmt: skip
    run(*few, "--k", 40, "--out", tmp_path / "all")
    run(*few, "--k", 3, "--rerank", 100, "--out", tmp_path / "true")
    table = pd.read_parquet(tmp_path / "true" / "results.parquet")
    assert len(table) == 2 * 2 * 3
    assert (table["projection_error"] == 0).all()
    projected = pd.read_parquet(tmp_path / "all" / "results.parquet")
    projected = projected[projected.side == "proponent"].set_index(["query_id", "sample_id"])
    near = projected.loc[list(zip(table.query_id, table.sample_id, strict=True))]
    off = np.abs(near["score"].to_numpy() - table["score"].to_numpy())
    assert off.max() > 0
    assert (off < 6 * near["projection_error"].to_numpy()).all()
    told = run(*few[:-1], "trak", "--rerank", 9, "--out", tmp_path / "t", status=1)
    assert "trak transforms samples" in told


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "plan",
        "collect",
        "append",
        "delete",
        "vacuum",
        "merge",
        "add-checkpoint",
        "drop-checkpoint",
        "index",
        "query",
        "scores",
        "rollup",
        "self-influence",
        "hubness",
        "breakdown",
        "info",
        "verify",
        "demo",
        "doctor",
    ],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    heavy = ("torch", "diffusers", "trak", "faiss", "zarr", "datasets", "pyarrow", "numpy")
    code = (
        "import sys; from query.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('loaded', [name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage: " in ran.stdout
    assert "loaded []" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["collect", "--dataset", "digits"], None, "--checkpoints is missing: diffusers folders"),
        (["train", "--epochs", "0"], None, "--epochs is 0: Input should be greater than"),
        (["train", "CONFIG"], {"epoch": 3}, "that does not exist; did you mean 'epochs'?"),
        (["train", "CONFIG"], {"epochs": "three"}, "config.yaml: epochs is 'three'"),
        (["train", "--dataset", "digits", "--out", "o", "--learning-rate", "inf"], None, "inf"),
        (["train", "CONFIG"], {1: 3}, "config.yaml has a setting '1' that does not exist"),
        (["train", "CONFIG"], ["epochs"], "is not a mapping"),
        (["train", "CONFIG"], "{", "is not YAML"),
        (["info", "nowhere"], None, "nowhere is not a gradient store"),
        (
            ["query", "--store", "s", "--out", "o", "--generate", "1", "--dataset", "d"],
            None,
            "exactly one of --dataset, --generate and --queries",
        ),
    ],
)
def test_mistakes_are_explained(
    run: Run, tmp_path: Path, arguments: list[str], settings: Any, message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    given = [str(file) if argument == "CONFIG" else argument for argument in arguments]
    assert message in run(*given, status=1)


def test_flags_win_over_the_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"dataset": "digits", "limit": 8, "epochs": 9, "channels": [8]}))
    out = tmp_path / "run"
    run("train", file, "--epochs", 1, "--checkpoint-every", 1, "--out", out)
    resolved = yaml.safe_load((out / "train.yaml").read_text())
    assert (resolved["epochs"], resolved["limit"], resolved["batch_size"]) == (1, 8, 32)


def test_a_query_that_failed_can_be_mended(road: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "asked").mkdir()
    images(1)[0].resize((9, 9)).save(tmp_path / "asked" / "a.png")
    command = (
        "query", "--store", road / "run" / "train.gradstore", "--dataset", tmp_path / "asked",
        "--k", 2, "--timesteps", 1, "--draws", 1, "--out", tmp_path / "answers",
    )  # fmt: skip
    assert "Resize with --size 8" in run(*command, status=1)
    run(*command, "--size", 8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    told = run(*command[:-1], tmp_path / "mine", "--size", 8, status=1)
    assert "holds something else; nothing was changed" in told
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_folder_called_digits_is_not_the_digits(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    run(*TRAIN, "--out", "run")
    assert yaml.safe_load(Path("run/collect.yaml").read_text())["dataset"] == "digits"


def test_images_that_moved_are_shown(road: Path, run: Run, tmp_path: Path) -> None:
    store = road / "run" / "train.gradstore"
    (tmp_path / "asked").mkdir()
    for number, image in enumerate(images(2)):
        image.save(tmp_path / "asked" / f"{number}.png")
    few = ("--timesteps", 1, "--draws", 1, "--k", 2, "--labels", 3)
    run("query", "--store", store, "--dataset", tmp_path / "asked", *few, "--out", tmp_path / "a")
    (tmp_path / "asked").rename(tmp_path / "moved")
    again = (
        "query", "--store", store, "--queries", tmp_path / "a" / "queries.gradstore", "--k", 2,
    )  # fmt: skip
    run(*again, "--out", tmp_path / "b")
    run(*again, "--images", tmp_path / "moved", "--out", tmp_path / "c")
    pages = [(tmp_path / name / "report.html").read_text() for name in "abc"]
    assert [page.count('aria-label="query 0.png"') for page in pages] == [1, 2, 1]
    assert "Only samples with label 3 were searched." in pages[0]
    assert "were searched" not in pages[1]


def test_k_larger_than_the_store(road: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    told = run(
        "query", "--store", road / "run" / "train.gradstore", "--dataset", "digits", "--k", 41,
        "--out", out, status=1,
    )  # fmt: skip
    assert "k is 41" in told
    assert "there are 40 samples of" in told
    assert not out.exists()


def test_a_dataset_that_changed_is_not_shown(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(images(9)):
        image.save(folder / f"{number}.png")
    out = tmp_path / "run"
    run("train", "--dataset", folder, "--epochs", 1, "--checkpoint-every", 1, "--channels", 8,
        "--out", out)  # fmt: skip
    run("collect", out / "collect.yaml", "--proj-dim", 16)
    run("index", "--store", out / "train.gradstore", "--measures", "tracin")
    query = (
        "query", "--store", out / "train.gradstore", "--dataset", "digits", "--limit", 1,
        "--measures", "tracin", "--k", 9, "--timesteps", 1, "--draws", 1, "--out",
    )  # fmt: skip
    images(1, seed=5)[0].save(folder / "3.png")
    told = run(*query, tmp_path / "a", status=1)
    assert "sample '3.png' has changed since" in told
    (folder / "3.png").unlink()
    assert "the dataset has no sample '3.png'" in run(*query, tmp_path / "b", status=1)


def test_the_demo_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    small = (
        "demo", "--out", out, "--epochs", 4, "--proj-dim", 32, "--digits", 60, "--heldout", 3,
        "--generated", 2, "--copies", 2, "--k", 3,
    )  # fmt: skip
    told = run(*small)
    for line in (
        "the model's metric  TracIn",
        "as in the paper     ReTrac",
        "copy first: training",
    ):
        assert line in told
    command = shlex.split(told.rpartition("Next: ")[2])
    assert command[1:] == [
        "serve", f"{out / 'train.gradstore'}", "--queries", f"{out / 'asked.gradstore'}",
    ]  # fmt: skip
    assert "Copies of training digits" in (out / "report.html").read_text()
    weights = sorted(out.glob("run/checkpoints/*/unet/*.safetensors"))
    assert len(weights) == 4
    before = [file.stat().st_mtime_ns for file in weights]
    (out / "report.html").unlink()
    run(*small)
    assert (out / "report.html").exists()
    assert before == [file.stat().st_mtime_ns for file in weights]
    assert "other settings" in run(*small, "--seed", 1, status=1)
    # What the command would serve: every image, and new ones can be asked.
    with gs.serve(command[2], queries=command[4], port=0) as server:
        client = Client(server)
        about = client.get("about").json
        assert about["can_ask"]
        assert not about["warnings"]
        names = client.get("list", kind="query").json["found"]
        assert len(names) == 3 + 2 + 2
        for one in names:
            assert client.get("image", kind="query", id=one["id"]).status == 200
