"""Who may ask, what a browser may load, and how the server ends."""

from __future__ import annotations

import signal
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

import gradstore as gs
from gradstore.errors import ConfigError, FingerprintError
from gradstore.flags.dataset import DatasetSpec
from gradstore.flags.serve import ServeConfig
from query.serve.answers import Answers
from query.serve.gradients import Gradients
from query.serve.library import Library
from query.serve.look import Look
from query.serve.uploads import Upload
from tests.query.serve.conftest import Place, picture
from tests.support.drawn_stores import random_store
from tests.support.served import Client, Started

TOKEN = "a-secret-of-some-length"  # noqa: S105


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_names_and_origins_are_checked(client: Client, headers: Any, status: int) -> None:
    assert client.send("GET", "/api/about", headers=headers).status == status


def test_the_page_itself_may_ask(client: Client) -> None:
    own = {"Host": f"127.0.0.1:{client.port}", "Origin": f"http://127.0.0.1:{client.port}"}
    assert client.send("GET", "/api/about", headers=own).status == 200


def test_a_browser_loads_nothing_from_elsewhere(client: Client) -> None:
    for path in ("/", "/page/main.js", "/api/about", "/api/answer?query=no", "/nothing"):
        headers = client.send("GET", path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    page = client.send("GET", "/").content.decode()
    assert "http:" not in page
    assert "https:" not in page


def test_the_script_of_the_page_is_small() -> None:
    folder = Path(gs.__file__).parents[1] / "query/serve/page"
    assert sum(len(file.read_text().splitlines()) for file in folder.glob("*.js")) <= 900


def test_other_addresses_want_the_token(place: Place) -> None:
    assert ServeConfig(store="s").local
    assert not ServeConfig(store="s", host="0.0.0.0").local  # noqa: S104
    with gs.serve(place.store, host="0.0.0.0", port=0, token=TOKEN) as server:  # noqa: S104
        client = Client(server)
        assert client.send("GET", "/healthz").json == {"ok": True}
        assert client.get("about").status == 401
        assert client.send("GET", "/").status == 401
        assert client.send("GET", "/?token=another").status == 401
        bearer = {"Authorization": f"Bearer {TOKEN}", "Host": "any.example"}
        assert client.send("GET", "/api/about", headers=bearer).status == 200
        moved = client.send("GET", f"/?token={TOKEN}&query=a")
        assert (moved.status, moved.headers["location"]) == (303, "/?query=a")
        cookie = moved.headers["set-cookie"].split(";")[0]
        assert "HttpOnly" in moved.headers["set-cookie"]
        assert client.send("GET", "/api/about", headers={"Cookie": cookie}).status == 200
        wrong = {"Cookie": cookie + "x"}
        assert client.send("GET", "/api/about", headers=wrong).status == 401
    with gs.serve(place.store, host="0.0.0.0", port=0) as server:  # noqa: S104
        assert "token=" in server.url


def test_counts_are_told(client: Client) -> None:
    client.get("about")
    text = client.send("GET", "/metrics").content.decode()
    assert 'gradstore_requests_total{route="/api/about",status="200"}' in text
    assert "gradstore_gradients_waiting 0" in text


def test_what_does_not_fit_is_told_at_once(place: Place, tmp_path: Path) -> None:
    with gs.serve(place.store, port=0) as server:
        port = urlsplit(server.url).port
        with pytest.raises(ConfigError, match="port"):
            gs.serve(place.store, port=port)
    with pytest.raises(FingerprintError):
        gs.serve(place.store, queries=random_store(tmp_path / "other.gradstore", 3))
    with pytest.raises(ConfigError, match="checkpoints"):
        gs.serve(place.store, checkpoints=place.checkpoints[0])


def test_without_checkpoints_the_page_still_answers(tmp_path: Path) -> None:
    store = random_store(
        tmp_path / "s.gradstore", 20, metadata={"label": [n % 3 for n in range(20)]}
    )
    with gs.serve(
        store, queries=random_store(tmp_path / "q.gradstore", 3, seed=1), port=0
    ) as server:
        client = Client(server)
        about = client.get("about").json
        assert not about["can_ask"]
        assert len(about["warnings"]) == 2
        assert client.get("answer", query="s0", k=3).status == 200
        assert client.post("asked", b"x" * 100).status == 422
        assert client.get("image", kind="sample", id="s1").status == 404
        assert client.get("totals", query="s0").json["groups"][0]["group"] in {"0", "1", "2"}


def test_an_image_is_resized_as_those_of_the_store(place: Place, tmp_path: Path) -> None:
    """A wide image: squashed it keeps both of its halves, cropped only the middle."""
    store = tmp_path / "cropped.gradstore"
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        picture(images / f"{number}.png", (8, 8))
    spec = DatasetSpec(dataset=str(images), size=8, resize="crop", mode="L")
    gs.collect(
        gs.Samples.from_spec(spec), place.checkpoints, store, config=spec.recorded(),
        events="planned", metric="none", projector=gs.ProjectorSpec(proj_dim=16),
    )  # fmt: skip
    with gs.serve(
        store, checkpoints=place.checkpoints, dataset=str(images), port=0, timesteps=2
    ) as server:
        shown = {}
        for name, halves in (("a", (0, 255)), ("b", (255, 0))):
            wide = Image.new("L", (32, 8), 100)
            wide.paste(halves[0], (0, 0, 8, 8))
            wide.paste(halves[1], (24, 0, 32, 8))
            wide.save(tmp_path / f"{name}.png")
            client = Client(server)
            asked = client.asked(client.post("asked", (tmp_path / f"{name}.png").read_bytes()))
            shown[name] = client.get("answer", asked=asked["asked"], k=3).json["sides"]
    assert shown["a"] == shown["b"]  # the ends were cut off


def test_one_gradient_at_a_time_and_a_queue(place: Place, tmp_path: Path) -> None:
    config = ServeConfig(store=place.store.location, timesteps=2, draws=1)
    gradients = Gradients(place.store, place.checkpoints, config, form={"size": 8, "mode": "L"})
    try:
        asked = [
            gradients.submit(Upload.read(picture(tmp_path / f"{n}.png", (8 + n, 8))))
            for n in range(5)
        ]
        assert gradients.ahead(asked[4]) >= 3
        assert gradients.waiting == 5
        while not asked[1].over.wait(0.001):
            assert sum(one.state == "running" for one in asked) <= 1
    finally:
        gradients.close()
        gradients.remove()
    # What ran was finished; what waited was told.
    assert asked[0].state == "done"
    assert {one.state for one in asked} <= {"done", "failed"}
    assert asked[4].state == "failed"
    assert asked[4].error is not None


@pytest.mark.parametrize(("most", "count"), [(32 * 2**20, 4), (1, 1)])
def test_stored_queries_are_answered_ahead(
    place: Place, monkeypatch: pytest.MonkeyPatch, most: int, count: int
) -> None:
    """As many as there is room for."""
    monkeypatch.setattr("query.serve.answers._MOST_BYTES", most)
    monkeypatch.setattr("query.serve.answers._AHEAD", 1)
    given: dict[str, gs.Store] = {}
    answers = Answers(Library(place.store, place.queries, None, None), given.__getitem__)
    try:
        answers.ahead()
        looks = [Look(query=name, measure="retrac") for name in place.queries.manifest.ids]
        found = [isinstance(answers.ask(look), bytes) for look in looks]
        assert found == [True] * count + [False] * (4 - count)
    finally:
        answers.close()


def test_the_command_opens_a_browser(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = tmp_path / "opened"
    monkeypatch.setenv("BROWSER", f"/bin/sh -c 'echo $0 > {opened}' %s")
    with Started(place.store.location, browser=True) as started:
        until = monotonic() + 60
        while not (opened.exists() and opened.read_text().strip() == started.url):
            assert monotonic() < until
            sleep(0.05)


def test_sigterm_finishes_what_runs(place: Place, tmp_path: Path) -> None:
    flags = [
        "--timesteps",
        100,
        "--draws",
        4,
        *(f"--checkpoints={one}" for one in place.checkpoints),
    ]
    states: list[str] = []
    with Started(place.store.location, *flags) as started:
        client = Client(started)
        asked = client.post("asked", picture(tmp_path / "given.png")).json["asked"]
        until = monotonic() + 120
        while client.get(f"asked/{asked}").json["state"] == "waiting":
            assert monotonic() < until
        started.process.send_signal(signal.SIGTERM)

        def follow() -> None:
            while not states or states[-1] not in {"done", "failed"}:
                states.append(client.get(f"asked/{asked}").json["state"])
                sleep(0.02)
            states.append(client.get("answer", asked=asked, k=2).json["measure"])

        following = Thread(target=follow)
        following.start()
        following.join(120)
        assert states[-2:] == ["done", "retrac"]
        assert started.process.wait(60) == 0


def test_only_a_notebook_of_this_machine_may_frame_the_page(place: Place) -> None:
    with gs.serve(place.store, port=0) as server:
        assert "<iframe" in server._repr_html_()
        policy = Client(server).get("about").headers["content-security-policy"]
        assert "frame-ancestors http://127.0.0.1:* http://localhost:*" in policy
    with gs.serve(place.store, port=0, token=TOKEN) as server:
        assert "<iframe" not in server._repr_html_()
        assert TOKEN in server._repr_html_()
        policy = Client(server).get("about").headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
    with Started(place.store.location) as started:
        policy = Client(started).send("GET", "/").headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
