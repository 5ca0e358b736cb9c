"""The API says what the library says."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import gradstore as gs
from indexer.studies.influence_map import influence_map
from query.queries import Queries
from query.serve.look import Look
from tests.query.serve.conftest import LABELS, Place, picture
from tests.support.served import Client

QUERY = "cat/0.png"


def found(answer: Any, side: int = 0) -> list[str]:
    return [one["id"] for one in answer["sides"][side]["found"]]


@pytest.mark.parametrize(
    "measure", ["tracin", "retrac", "power:0.5", "clip:0.9", "calibrated", "centred", "trak"]
)
def test_answers_are_those_of_search(client: Client, place: Place, measure: str) -> None:
    reply = client.get("answer", query=QUERY, measure=measure, k=5)
    assert reply.status == 200, reply.content
    answer = reply.json
    one = Queries.combined(place.queries, {QUERY: {QUERY: 1.0}})
    expected = gs.search(place.store, one, 5, measure=measure)
    assert found(answer) == expected.proponent_ids[0]
    assert found(answer, 1) == expected.opponent_ids[0]
    for row, told in zip(
        expected.to_table().to_pylist(), answer["sides"][0]["found"], strict=False
    ):
        for name in ("score", "margin", "rank_low", "rank_high", "query_error"):
            assert told[name] == pytest.approx(row[name], rel=1e-4)
        assert (told["z"] is None) == (measure in {"centred", "trak"})
    assert answer["name"]
    assert answer["about"]


def test_a_training_sample_can_be_asked(client: Client, place: Place) -> None:
    name = place.store.manifest.ids[7]
    answer = client.get("answer", sample=name, measure="retrac", k=3).json
    one = Queries.combined(place.store, {name: {name: 1.0}})
    assert found(answer) == gs.search(place.store, one, 3, measure="retrac").proponent_ids[0]
    assert answer["query"]["id"] == name


def test_ranges_checkpoints_and_filters(client: Client, place: Place) -> None:
    one = Queries.combined(place.queries, {QUERY: {QUERY: 1.0}})
    store = place.store
    etas = [0.0, store.etas[1]]
    keep = gs.matching_samples(store, where={"label": ["dog"]})
    features = gs.Features.of(store, gs.measure_of("retrac@0-599"), etas=etas)
    expected = gs.search(gs.ExactEngine(store, features), one, 4, keep=keep)
    answer = client.get(
        "answer",
        query=QUERY,
        measure="retrac",
        low=0,
        high=599,
        checkpoints=1,
        where="label=dog",
        k=4,
    ).json
    assert found(answer) == expected.proponent_ids[0]
    few = client.get("answer", query=QUERY, ids=[store.manifest.ids[3], store.manifest.ids[4]]).json
    assert set(found(few)) == {store.manifest.ids[3], store.manifest.ids[4]}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"query": "nobody"}, 400),
        ({"query": QUERY, "sample": "x"}, 422),
        ({}, 422),
        ({"query": QUERY, "measure": "os.system"}, 400),
        ({"query": QUERY, "measure": "query.serve.look.Look:1"}, 400),
        ({"query": QUERY, "measure": "retrac", "k": 501}, 422),
        ({"query": QUERY, "checkpoints": 7}, 400),
        ({"query": QUERY, "where": "colour=red"}, 400),
        ({"query": QUERY, "where": "label=nothing"}, 400),
        ({"query": QUERY, "measure": "trak", "low": 3}, 400),
        ({"query": QUERY, "measure": "power:2"}, 400),
        ({"asked": "unknown"}, 400),
        ({"query": QUERY, "unknown": 1}, 422),
    ],
)
def test_mistakes_are_told(client: Client, place: Place, parameters: Any, status: int) -> None:
    reply = client.get("answer", **parameters)
    assert reply.status == status, reply.content
    assert reply.json["error"]
    assert str(place.folder) not in reply.json["error"]


def test_no_path_of_the_server_leaves_it(client: Client, place: Place) -> None:
    for path, parameters in (
        ("about", {}),
        ("answer", {"query": QUERY}),
        ("sample", {"query": QUERY, "of": place.store.manifest.ids[0]}),
        ("report", {"query": QUERY, "k": 2}),
        ("openapi.json", {}),
    ):
        reply = client.get(path, **parameters)
        assert reply.status == 200, (path, reply.content)
        assert str(place.folder).encode() not in reply.content
    for name in ("../server.py", "..%2fserver.py", "%2e%2e/server.py", "README.md", "nothing.js"):
        assert client.send("GET", f"/page/{name}").status == 404


def test_an_image_is_asked(client: Client, place: Place, tmp_path: Path) -> None:
    content = picture(tmp_path / "given.png")
    asked = client.asked(client.post("asked", content))
    assert asked["state"] == "done", asked
    answer = client.get("answer", asked=asked["asked"], measure="tracin", k=4).json
    # As collect decodes it: resized and converted by Samples.
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        samples = gs.Samples([image], ids=["asked image"], size=8, mode="L")
    spec = gs.EventSpec(events="planned", timesteps=3, draws=1, timesteps_below=0.6)
    rows = gs.collect_queries(place.store, samples, tmp_path / "own.gradstore", events=spec)
    expected = gs.search(place.store, rows, 4, measure="tracin")
    scores = [one["score"] for one in answer["sides"][0]["found"]]
    np.testing.assert_allclose(scores, expected.proponents.scores[0], rtol=2e-3)
    again = client.post("asked", content).json
    assert again["state"] == "done"  # the same image is asked once
    shown = client.get("image", kind="asked", id=asked["asked"], side=0)
    with Image.open(io.BytesIO(shown.content)) as image:
        assert image.size == (8, 8)


def test_one_that_the_model_draws_is_asked(client: Client) -> None:
    asked = client.asked(client.send("POST", "/api/asked?seed=3"))
    assert asked["state"] == "done", asked
    assert client.get("answer", asked=asked["asked"], k=2).status == 200


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_image_is_refused(client: Client, content: bytes) -> None:
    assert client.post("asked", content).status == 422


def test_images_are_bounded_in_pixels_and_bytes(client: Client) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 2**20
    assert client.post("asked", bomb.getvalue()).status == 422
    assert client.post("asked", bytes(33 * 2**20)).status == 413


def test_images_are_those_of_the_dataset(client: Client, place: Place) -> None:
    name = place.store.manifest.ids[4]
    reply = client.get("image", kind="sample", id=name, side=0)
    with (
        Image.open(io.BytesIO(reply.content)) as image,
        Image.open(place.folder / "train" / name) as file,
    ):
        np.testing.assert_array_equal(np.array(image), np.array(file))
    small = client.get("image", kind="query", id=QUERY, side=64)
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.format == "WEBP"
    assert client.get("image", kind="sample", id="nobody", side=64).status == 400


def test_studies_are_those_of_the_library(client: Client, place: Place) -> None:
    store, name = place.store, place.store.manifest.ids[5]
    cells = client.get("breakdown", query=QUERY, of=name, measure="tracin").json["cells"]
    engine = gs.ExactEngine(store, "tracin")
    one = Queries.combined(place.queries, {QUERY: {QUERY: 1.0}})
    vectors = one.features(engine.features)
    whole = next(iter(engine.scores(vectors, keep=np.array([5]))))[1][0, 0]
    assert sum(cell[3] for cell in cells) == pytest.approx(whole, rel=1e-3)
    groups = client.get("totals", query=QUERY, measure="tracin").json["groups"]
    rolled = gs.rollup(engine, vectors, store.manifest.metadata["label"])
    assert {one["group"]: one["total"] for one in groups} == pytest.approx(
        dict(zip(rolled.groups, rolled.total[0].tolist(), strict=True)), rel=1e-3
    )
    assert all(one["margin"] > 0 for one in groups)
    sample = client.get("sample", query=QUERY, of=name, measure="tracin").json
    values = gs.self_influence(store, engine.features)
    assert sample["self"]["value"] == pytest.approx(float(values[5]), rel=1e-4)
    assert sample["self"]["rank"] == 1 + int((values > values[5]).sum())
    answer = gs.search(store, place.queries, 10, measure="tracin")
    assert sample["serves"]["listed"] == gs.hubness(answer).counts[5]
    scores = next(iter(engine.scores(engine.features.range(place.queries), keep=np.array([5]))))[1]
    assert sample["serves"]["most"][0]["id"] == place.queries.manifest.ids[int(scores.argmax())]
    dots = client.get("norms", query=QUERY, measure="tracin", k=3).json
    assert len(dots["found"]) == 3 * store.checkpoints
    assert sum(client.get("timesteps").json["counts"]) == store.samples * store.checkpoints


def test_copies_are_counted(client: Client, place: Place) -> None:
    sample = client.get("sample", query=QUERY, of="cat/29.png").json
    assert sample["copies"] == 2


def test_samples_are_found_by_id_and_label(client: Client) -> None:
    assert client.get("list", kind="sample", find="CAT").json["total"] == 11
    assert [one["id"] for one in client.get("list", kind="query", find="1.png").json["found"]] == [
        "dog/1.png"
    ]


def test_a_selection_is_taken_away(client: Client, place: Place, tmp_path: Path) -> None:
    ids = [place.store.manifest.ids[2], place.store.manifest.ids[9]]
    assert client.post("take/ids", {"ids": ids}).content.decode().splitlines() == ids
    rows = pq.read_table(io.BytesIO(client.post("take/parquet", {"ids": ids}).content)).to_pylist()
    assert [one["id"] for one in rows] == ids
    assert {one["label"] for one in rows} <= set(LABELS)
    csv = client.post("take/csv", {"ids": ids}).content.decode()
    assert csv.splitlines()[0] == "id,digest,label"
    content = client.post("take/dataset", {"ids": ids}).content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "taken")
    import datasets

    taken = datasets.load_dataset(
        "imagefolder",
        data_dir=str(tmp_path / "taken"),
        split="train",
        cache_dir=str(tmp_path / "c"),
    )
    assert taken["id"][:] == ids
    for reply in (client.post("take/csv", {"ids": []}), client.post("take/csv", {"ids": ["no"]})):
        assert reply.status == 400


def test_the_command_deletes_the_selection(client: Client, place: Place, tmp_path: Path) -> None:
    import shlex
    import shutil

    from click.testing import CliRunner

    import query.cli.entry  # noqa: F401, it adds the commands
    from query.cli.group import cli

    ids = [name for name in place.store.manifest.ids if "onerror" in name][:2]
    command = client.post("delete-command", {"ids": ids}).json["command"]
    shutil.copytree(place.folder / "train.gradstore", tmp_path / "train.gradstore")
    program, *words = shlex.split(command)
    assert program == "gradstore"
    words[words.index("train.gradstore")] = str(tmp_path / "train.gradstore")
    assert CliRunner().invoke(cli, words).exit_code == 0
    left = gs.open_store(tmp_path / "train.gradstore").manifest.ids
    assert set(place.store.manifest.ids) - set(left) == set(ids)


def test_a_view_is_taken_as_a_report(client: Client) -> None:
    reply = client.get("report", query=QUERY, measures=["tracin", "retrac"], k=3, where="label=cat")
    page = reply.content.decode()
    assert "TracIn" in page
    assert "ReTrac" in page
    assert "label=cat" in page
    assert "onerror=alert" not in page.replace("&lt;img src=x onerror=alert(1)&gt;", "")


def test_many_ask_at_once(client: Client, place: Place) -> None:
    expected = {
        name: client.get("answer", query=name, measure="clip:0.7", k=6).json
        for name in place.queries.manifest.ids
    }
    replies: list[tuple[str, Any]] = []

    def ask(number: int) -> None:
        name = place.queries.manifest.ids[number % 4]
        reply = client.get("answer", query=name, measure="clip:0.7", k=6 + number // 32)
        replies.append((name, reply.json if reply.status == 200 else reply.content))

    threads = [Thread(target=ask, args=(number,)) for number in range(64)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(replies) == 64
    for name, answer in replies:
        assert found(answer)[:6] == found(expected[name])


def test_a_look_is_one_question() -> None:
    assert Look(query="a", low=3).named.startswith("retrac@3-")
    assert json.loads(Look(sample="b").model_dump_json())["k"] == 20


def test_the_map_has_every_training_sample(client: Client, place: Place) -> None:
    store, found = place.store, client.get("map").json
    expected = influence_map(gs.ExactEngine(store, "retrac")).points
    shown = np.stack([found["x"], found["y"]], axis=1)
    moved = (expected - expected.min(axis=0)) / max(np.ptp(expected, axis=0)) * 65_535
    np.testing.assert_allclose(shown, moved, atol=1)
    labels = client.get("map/colours", by="label").json
    own = [labels["names"][value] for value in labels["values"]]
    assert own == list(store.manifest.metadata["label"])
    norms = client.get("map/colours", by="norm").json
    mean = np.mean([store.column("norm", k).mean(axis=1) for k in range(2)], axis=0)
    order = np.argsort(mean)
    assert (np.diff(np.array(norms["values"])[order]) >= 0).all()
    assert np.bincount(norms["values"]).tolist() == [6] * 5
    steps = client.get("map/colours", by="timestep").json
    assert len(steps["values"]) == store.samples
    some = client.post("map/samples", {"places": [3, 1]}).json["found"]
    assert [one["id"] for one in some] == [store.manifest.ids[3], store.manifest.ids[1]]
    assert client.get("map/colours", by="colour").status == 400
    for places in ([], [30], [-1], ["x"]):
        assert client.post("map/samples", {"places": places}).status in {400, 422}
