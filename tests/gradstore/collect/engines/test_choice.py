from __future__ import annotations

import logging
from functools import partial
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradstore.collect import LoopEngine, StreamingEngine, VmapEngine
from gradstore.collect.engines.allocated import peak_bytes
from gradstore.collect.engines.choice import choose
from gradstore.errors import ConfigError, EngineError
from tests.support.gradients import OBJECTIVE, Denoiser, batch, vectors
from tests.support.worlds import unet

CPU = torch.device("cpu")


def chosen(model: nn.Module, given: Any = None, wanted: Any = "auto", **options: Any) -> Any:
    options = {"memory": 1 << 30, "timed": False} | options
    return choose(wanted, model, OBJECTIVE, given or vectors(4, 1), **options)


def test_peak_bytes_are_what_is_held_together() -> None:
    def run() -> Tensor:
        one = torch.ones(1000)  # 4,000 bytes
        two = one.view(10, 100) + 1  # another 4,000
        del one
        three = two[:5] * 2  # another 2,000; the first are freed
        two += 1
        return three

    assert peak_bytes(run, CPU) == 8000


def test_what_an_engine_holds_grows_by_the_row() -> None:
    choice = chosen(unet(0), batch(8, 1), "vmap")
    engine = VmapEngine(unet(0), OBJECTIVE)
    measured = [
        peak_bytes(partial(engine, batch(rows, 1), lambda start, piece: None), CPU)
        for rows in (1, 8)
    ]
    assert choice.nbytes(1) == measured[0]
    assert choice.nbytes(8) == pytest.approx(measured[1], rel=0.1)
    # The gradients of a single row are that large.
    assert choice.per_event > 4 * sum(p.numel() for p in unet(0).parameters())
    assert chosen(unet(0), batch(8, 1), "streaming").per_event < choice.per_event


@pytest.mark.parametrize(("power", "events"), [(0, 32), (2, 8)])
def test_as_many_events_at_once_as_are_fast(power: int, events: int) -> None:
    class Slow(StreamingEngine):
        """The time of a pass is constant, or grows with the square of the number of events."""

        def __call__(self, given: Any, sink: Any, transform: Any = None) -> Tensor:
            sleep(0.02 * (len(given) / 8) ** power)
            return super().__call__(given, sink)

    layer = nn.Linear(6, 6)
    assert chosen(Denoiser(layer, layer), vectors(32, 1), Slow, timed=True).events == events


def test_streaming_is_taken_where_it_works() -> None:
    assert chosen(unet(0), batch(4, 1)).make is StreamingEngine
    assert chosen(unet(0), batch(4, 1)).seconds is None


def test_where_streaming_does_not_know_a_layer_vmap_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gradstore")
    own = nn.Linear(6, 6)
    own.extra = nn.Parameter(torch.ones(6))
    assert chosen(Denoiser(lambda x: own(x) * own.extra, own)).make is VmapEngine
    assert "engine streaming is not used" in caplog.text
    assert "layers.0 (Linear: it has a further parameter extra)" in caplog.text


def test_where_streaming_cannot_follow_a_parameter_vmap_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gradstore")
    own = nn.Linear(6, 6)
    model = Denoiser(lambda x: own(x) @ model.turn, own)
    model.turn = nn.Parameter(torch.eye(6))
    assert chosen(model).make is VmapEngine
    assert "turn of a Denoiser goes into 'matmul'" in caplog.text


def test_where_neither_works_one_row_at_a_time_is_taken() -> None:
    own = nn.Linear(6, 6)

    def body(x: Tensor) -> Tensor:
        # A value controls Python: vmap fails, and the weight is used without the layer's forward.
        out: Tensor = own(x) @ own.weight * (2 if float(x.detach()[0, 0]) > 1e9 else 1)
        return out

    assert chosen(Denoiser(body, own)).make is LoopEngine


def test_an_engine_that_was_asked_for_is_taken_or_refused() -> None:
    assert chosen(unet(0), batch(2, 1), "loop").make is LoopEngine
    assert chosen(unet(0), batch(2, 1), VmapEngine).name == "VmapEngine"
    norm = nn.BatchNorm1d(6).eval()
    with pytest.raises(EngineError, match=r"BatchNorm1d.*Use --engine vmap"):
        chosen(Denoiser(norm, norm), wanted="streaming")
    with pytest.raises(ConfigError, match=r"no engine 'best'; use one of auto, streaming"):
        chosen(unet(0), wanted="best")


def test_the_faster_engine_is_taken_and_the_reason_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gradstore")
    choice = chosen(unet(0), batch(4, 1), timed=True)
    assert choice.seconds is not None
    assert "streaming" in caplog.text
    assert "vmap" in caplog.text
    assert "ms an event" in caplog.text
    # If not one event fits, the engine is not timed.
    tight = chosen(unet(0), batch(4, 1), "streaming").nbytes(1)
    assert chosen(unet(0), batch(4, 1), timed=True, memory=tight).name == "streaming"
