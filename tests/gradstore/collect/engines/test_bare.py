"""Parameters that a module uses itself, against one backward pass per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradstore.collect import Autocast, Batch, Compiled, StreamingEngine
from gradstore.collect.conformance import check_engine
from gradstore.collect.engines.choice import require_agreement
from gradstore.collect.engines.loop import LoopEngine
from gradstore.errors import EngineError
from tests.support.gradients import OBJECTIVE, vectors
from tests.support.naive_rows import largest_error, naive_rows, streamed_rows


class Bare(nn.Module):
    """A layer, then something with bare parameters, then a layer."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(6, 6), nn.Linear(6, 6)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape) + 0.5))
        self.register_buffer("fixed", torch.rand(6) + 0.5)
        self._body = body

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        inner = self.before(noisy + timesteps[:, None] / 1000)
        out: Tensor = self.after(torch.tanh(self._body(self, inner)))
        return out


def exact(batch: Batch) -> Batch:
    return Batch(batch.inputs.double(), batch.timesteps, batch.noise.double(), {})


def require_streamed(model: nn.Module, rows: int = 3, draws: int = 2) -> dict[str, Tensor]:
    model = model.double()
    batch = exact(vectors(rows, draws))
    expected = naive_rows(model, OBJECTIVE, batch)
    found = streamed_rows(StreamingEngine(model, OBJECTIVE), model, batch)
    assert largest_error(found, expected) < 1e-5  # uses are summed in float32, and may cancel
    return expected


BODIES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, tuple[int, ...]]]] = {
    "x + p": (lambda m, x: x + m.p, {"p": (6,)}),
    "p - x": (lambda m, x: m.p - x, {"p": (6,)}),
    "x * p": (lambda m, x: x * m.p, {"p": (6,)}),
    "x / p": (lambda m, x: x / m.p, {"p": (1, 6)}),
    "p / x": (lambda m, x: m.p / (x.abs() + 1), {"p": (6,)}),
    "x ** p": (lambda m, x: x.abs() ** m.p, {"p": (6,)}),
    "a number": (lambda m, x: x * m.p, {"p": ()}),
    "one entry": (lambda m, x: x * m.p.sigmoid() + (1 - m.p.sigmoid()) * x.sin(), {"p": (1,)}),
    "tables": (
        lambda m, x: sum((m.p[None] + x.reshape(-1, 2, 3)).chunk(2, 1)).repeat(1, 1, 2)[:, 0],
        {"p": (2, 3)},
    ),
    "parts": (lambda m, x: x * m.p.unbind()[0].exp() + m.p[1:].sum(0), {"p": (3, 6)}),
    "where": (lambda m, x: torch.where(x > 0, x, m.p.sigmoid()[None]), {"p": (6,)}),
    "mixed": (lambda m, x: torch.addcmul(x, m.p, m.q), {"p": (6,), "q": (1,)}),
    "two": (lambda m, x: x * (m.p + m.q), {"p": (6,), "q": (1, 6)}),
    "sum": (lambda m, x: x * (m.p + m.q), {"p": (6,), "q": (6,)}),
    "a constant": (lambda m, x: x * (m.p / m.fixed) + m.p * 2, {"p": (6,)}),
    "thrice": (lambda m, x: (x * m.p + m.p).sin() * m.p, {"p": (6,)}),
    "tokens": (lambda m, x: (x[:, None] * m.p).sum(1), {"p": (5, 6)}),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(("rows", "draws"), [(1, 1), (1, 2), (3, 2), (6, 1)])
def test_functions_of_bare_parameters(name: str, rows: int, draws: int) -> None:
    body, shapes = BODIES[name]
    found = require_streamed(Bare(body, **shapes), rows, draws)
    assert all(one.any() for one in found.values())


def test_gradients_are_apart_in_memory() -> None:
    """Autograd's gradients of a and of b are one tensor in a + b."""
    body, shapes = BODIES["sum"]
    for rows in (1, 3):
        check_engine(StreamingEngine, Bare(body, **shapes), OBJECTIVE, vectors(rows, 2))


def test_what_is_not_used_has_no_gradient() -> None:
    model = Bare(
        lambda m, x: x * m.p.detach() + len(m.q) + m.r.dtype.itemsize, p=(6,), q=(6,), r=(1,)
    )
    found = require_streamed(model)
    assert not any(found[name].any() for name in "pqr")


def test_a_parameter_that_modules_share() -> None:
    one = Bare(lambda m, x: x * m.p, p=(6,))
    two = Bare(lambda m, x: one(x, torch.zeros(len(x))) + m.p, p=(6,))
    two.one, two.p = one, one.p
    assert len([name for name, _ in two.named_parameters() if name.endswith("p")]) == 1
    require_streamed(two)


def test_parameters_of_containers() -> None:
    model = Bare(lambda m, x: x * m.some[0] + m.named["b"])
    model.some = nn.ParameterList([torch.rand(6)])
    model.named = nn.ParameterDict({"b": torch.rand(6)})
    require_streamed(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(
            lambda inner: inner * m.p.sigmoid() + m.p, x, use_reentrant=reentrant
        )
        return out.add(m.p)

    require_streamed(Bare(body, p=(6,)))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: nn.functional.linear(x, m.p),
        lambda m, x: x @ m.p,
        lambda m, x: torch.cat([x, m.p.expand(len(x), 6, 6)[:, 0]], 1)[:, :6],
    ],
)
def test_other_functions_are_refused(body: Any) -> None:
    engine = StreamingEngine(Bare(body, p=(6, 6)), OBJECTIVE)
    with pytest.raises(EngineError, match=r"the parameter p of a Bare goes into '\w+'.*--params"):
        engine(vectors(3, 1), lambda start, piece: None)


def test_axes_that_are_not_rows_are_refused() -> None:
    for body, shape in (
        (lambda m, x: x + (m.p * m.fixed).sum(0), (5, 1)),
        (lambda m, x: x + (m.p * torch.ones(5, 6)).sum(0), (6,)),
    ):
        engine = StreamingEngine(Bare(body, p=shape), OBJECTIVE)
        with pytest.raises(EngineError, match=r"the parameter p of a Bare meets.*2 rows"):
            engine(vectors(2, 1), lambda start, piece: None)


def test_an_axis_that_looks_like_rows_is_found_out() -> None:
    model = Bare(lambda m, x: x + (m.p * torch.ones(4, 6)).sin().sum(0), p=(6,))
    engines = StreamingEngine(model, OBJECTIVE), LoopEngine(model, OBJECTIVE)
    with pytest.raises(EngineError, match="does not match one backward pass per row"):
        require_agreement("streaming", *engines, vectors(2, 1), 1e-3)


def test_the_parameters_are_left_as_they_were() -> None:
    model = Bare(lambda m, x: x * m.p, p=(6,))
    before = dict(model.named_parameters())

    class StopError(Exception):
        pass

    def stop(start: int, piece: Tensor) -> None:
        raise StopError

    engine = StreamingEngine(model, OBJECTIVE)
    with pytest.raises(StopError):
        engine(vectors(2, 1), stop)
    engine(vectors(2, 1), lambda start, piece: None)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is one for name, one in before.items())
    assert all(one.requires_grad and one.grad is None for one in after.values())


def test_mixed_precision() -> None:
    model = Bare(lambda m, x: x * m.p.sigmoid() + m.p, p=(6,))
    check_engine(StreamingEngine, model, Autocast(OBJECTIVE), vectors(3, 2), tolerance=0.02)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # raised inside torch
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_model() -> None:
    model = Bare(lambda m, x: x * m.p.sigmoid() + m.p, p=(6,))
    check_engine(StreamingEngine, model, Compiled(OBJECTIVE), vectors(3, 2))
