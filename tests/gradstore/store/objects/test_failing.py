"""A store under a URL whose server or network fails now and then."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.worlds.s3 import Server
from gradstore import delete, open_store, vacuum
from gradstore.errors import GradstoreError
from gradstore.store.objects import remote
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.commands import Run
from tests.support.failing_proxy import proxied
from tests.support.written_stores import everything, filled, grown, require_equal


@pytest.mark.parametrize("kind", ["500", "503", "cut", "lost", "unheard", "hangs", "late"])
def test_what_fails_now_and_then_is_tried_again(
    kind: str, bucket: str, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_TIMEOUT", timedelta(seconds=0.5))
    expected = everything(grown(filled(tmp_path / "s.gradstore"), ["a", "b"]))
    expected_after = everything(vacuum(delete(open_store(tmp_path / "s.gradstore"), ["s4"])))

    def fault(number: int, method: str, path: str) -> str | None:
        if kind == "cut" and method != "GET":
            return None
        return kind if number % 17 == 5 else None

    url = f"{bucket}/s.gradstore"
    with proxied(s3_server.url, fault) as (proxy, done):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        store = grown(filled(url), ["a", "b"])
        require_equal(everything(open_store(url)), expected)
        after = vacuum(delete(store, ["s4"]))
        require_equal(everything(after), expected_after)
        assert not any(report.problem for report in verify(open_store(url)))
    assert done[kind] > 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    require_equal(everything(open_store(url)), expected_after)


@pytest.mark.parametrize("command", ["info {store}", "delete {store} --ids s1"])
def test_a_server_that_never_answers_is_told(
    command: str,
    bucket: str,
    *,
    s3_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While it waits, and at the end by one error; then the same command goes on."""
    monkeypatch.setattr(remote, "_TIMEOUT", timedelta(seconds=0.5))
    monkeypatch.setattr(remote, "_RETRIED", timedelta(seconds=2))
    monkeypatch.setattr(remote, "_TOLD_SECONDS", 0.3)
    url = f"{bucket}/s.gradstore"
    filled(url)
    run = Run(capsys, monkeypatch)
    words = command.format(store=url).split()
    for kept in (0, 1, 3):  # the first requests are answered

        def fault(number: int, method: str, path: str, kept: int = kept) -> str | None:
            return "hangs" if number >= kept else None

        with proxied(s3_server.url, fault) as (proxy, done):
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
            caplog.clear()
            told = run(*words, status=1)
            assert done["hangs"] > 1
        assert url in told
        assert "network" in told
        assert f"{url}/" in caplog.text
        assert "no answer" in caplog.text
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    run(*words)
    assert not any(report.problem for report in verify(open_store(url)))


@pytest.mark.parametrize("parity", [0, 1])
def test_lists_that_are_out_of_date_lose_nothing(
    parity: int, bucket: str, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache before the server answers with what there was before: that is refused, or right."""
    store = grown(filled(tmp_path / "s.gradstore"), ["a", "b"])
    before = everything(store)
    after = everything(vacuum(delete(store, ["s4"])))
    url = f"{bucket}/s.gradstore"

    def fault(number: int, method: str, path: str) -> str | None:
        return "stale" if method == "GET" and "list-type" in path and number % 2 == parity else None

    def again(change: Callable[[], Store]) -> Store:
        for _ in range(10):
            try:
                return change()
            except GradstoreError:
                monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
                assert not [r for r in verify(open_store(url)) if r.problem and r.sealed]
                monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        raise AssertionError("it never succeeded")

    with proxied(s3_server.url, fault) as (proxy, done):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        filled(url)
        again(lambda: grown(open_store(url), ["a", "b"]))
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
        require_equal(everything(open_store(url)), before)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        again(lambda: delete(open_store(url), ["s4"]))
        again(lambda: vacuum(open_store(url)))
    assert done["stale"] > 5
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    require_equal(everything(vacuum(open_store(url))), after)
    assert {report.problem for report in verify(open_store(url))} == {None}
