"""Conformance checks for implementations of the protocols, custom ones included.

Each check raises `AssertionError` that names the broken promise. Call them from your own tests::

    from gradstore.collect.conformance import check_projector

    def test_mine():
        check_projector(MyProjector())
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from gradstore.collect.engines import LoopEngine
from gradstore.collect.models.loaders import loader_of
from gradstore.collect.models.parameters import num_parameters as count_parameters
from gradstore.collect.models.parameters import trainable
from gradstore.collect.pipeline.executors import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from gradstore.collect.engines import EngineMaker, GradientEngine
    from gradstore.collect.models.protocol import Loader
    from gradstore.collect.objectives.protocol import Batch, Objective
    from gradstore.collect.pipeline.executors import Executor
    from gradstore.collect.projectors import Projector

_MEMORY = 1 << 28


def _require(promise: str, *, kept: bool) -> None:
    if not kept:
        raise AssertionError(f"broken promise: {promise}")


def _close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    scale = float(right.abs().max()) or 1.0
    return float((left - right).abs().max()) <= tolerance * scale


def check_projector(
    projector: Projector, *, num_parameters: int = 1003, tolerance: float = 1e-5
) -> None:
    """Check that a projector is linear, repeatable, and independent of pieces and batches.

    Args:
        projector: the projector to check.
        num_parameters: length of the gradients in the check.
        tolerance: allowed error relative to the largest entry; a projector that computes in
            bfloat16 needs about 0.02.
    """
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(3, num_parameters, generator=generator)
    dim = projector.dim(num_parameters)

    def sketch(gradients: Tensor, cuts: Iterable[int] = ()) -> Tensor:
        bounds = [0, *cuts, num_parameters]
        projection = projector.at(1, num_parameters, device, _MEMORY)
        buffer = torch.zeros(len(gradients), projection.width, dtype=projection.dtype)
        for start, stop in reversed(list(pairwise(bounds))):
            projection.add(buffer, start, gradients[:, start:stop])
        out = projection.finish(buffer)
        _require(
            "a sketch is float32 [rows, dim]",
            kept=out.shape == (len(gradients), dim) and out.dtype == torch.float32,
        )
        return out

    whole = sketch(gradients)
    identity = projector.identity(num_parameters)
    _require(
        "identity() is JSON and the same every time",
        kept=json.loads(json.dumps(identity)) == projector.identity(num_parameters),
    )
    _require("a repeated sketch is identical", kept=torch.equal(whole, sketch(gradients)))
    _require(
        "a gradient in pieces has the same sketch",
        kept=_close(sketch(gradients, (7, num_parameters // 2)), whole, tolerance),
    )
    _require(
        "a row's sketch does not depend on the other rows",
        kept=_close(sketch(gradients[1:2]), whole[1:2], tolerance),
    )
    mixed = 2 * gradients[:1] - 3 * gradients[1:2]
    _require(
        "a projection is linear",
        kept=_close(sketch(mixed), 2 * whole[:1] - 3 * whole[1:2], tolerance),
    )


def check_loader(loader: Loader) -> None:
    """Check that a loader's checkpoints are alike, told apart, and independent of each other.

    Args:
        loader: the loader to check, of two checkpoints or more.
    """
    folders = list(loader.folders)
    loaded = [loader.load(folder) for folder in folders]
    digests = [one.weights_digest() for one in loaded]
    _require("two checkpoints have two digests", kept=len(set(digests)) == len(folders) > 1)
    _require(
        "all checkpoints have one architecture",
        kept=all(one.architecture() == loaded[0].architecture() for one in loaded),
    )
    _require(
        "identity() is JSON and the same every time",
        kept=json.loads(json.dumps(loader.identity())) == loader.identity(),
    )
    again = loader.load(folders[0])
    _require("a repeated load is identical", kept=again.weights_digest() == digests[0])
    with torch.no_grad():
        for parameter in trainable(again.model).values():
            parameter.add_(1)
    _require(
        "a loaded checkpoint does not change with another",
        kept=[one.weights_digest() for one in loaded] == digests,
    )
    _require(
        "models are in eval() mode",
        kept=not any(module.training for one in loaded for module in one.model.modules()),
    )
    spec = loader.spec()
    if spec is not None:
        made = loader_of(folders, spec, exact=True)
        _require(
            "spec() makes the same loader",
            kept=[made.load(one).weights_digest() for one in made.folders] == digests
            and made.identity() == loader.identity(),
        )


def check_objective(
    objective: Objective,
    model: Callable[..., Any],
    inputs: Tensor,
    conditions: Mapping[str, Tensor] | None = None,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Check that an objective gives one finite loss per event and does not mix events.

    Args:
        objective: the objective to check.
        model: a model for the objective.
        inputs: at least three clean samples, `[samples, *shape]`.
        conditions: further inputs of the model.
        tolerance: allowed error relative to the largest loss.
    """
    count = len(inputs)
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(0, objective.num_train_timesteps, (count,), generator=generator)
    noise = torch.randn(inputs.shape, generator=generator)
    given = dict(conditions or {})

    def losses(rows: slice) -> Tensor:
        with torch.no_grad():
            return objective.losses(
                model,
                inputs[rows],
                steps[rows],
                noise[rows],
                {name: value[rows] for name, value in given.items()},
            )

    together = losses(slice(None))
    identity = objective.identity()
    _require("identity() is JSON", kept=json.loads(json.dumps(identity)) == identity)
    _require("there is one loss per event", kept=together.shape == (count,))
    _require("losses are finite", kept=bool(torch.isfinite(together).all()))
    alone = torch.cat([losses(slice(row, row + 1)) for row in range(count)])
    _require(
        "an event's loss does not depend on the other events",
        kept=_close(alone, together, tolerance),
    )


def check_engine(
    engine: EngineMaker,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    *,
    tolerance: float = 1e-4,
) -> None:
    """Compare a gradient engine with one backward pass per row.

    Args:
        engine: makes the engine from model and objective.
        model: a model in `eval()` mode.
        objective: an objective for the model.
        batch: rows to differentiate.
        tolerance: allowed error relative to the largest entry.
    """
    length = count_parameters(model)

    def gradients(made: GradientEngine) -> tuple[Tensor, Tensor]:
        whole = torch.full((len(batch), length), torch.nan)

        def receive(start: int, piece: Tensor) -> None:
            target = whole[:, start : start + piece.shape[1]]
            _require("pieces do not overlap", kept=bool(target.isnan().all()))
            target[:] = piece
            piece.fill_(torch.nan)  # a receiver may change what it is given

        losses = made(batch, receive)
        _require("pieces cover every parameter", kept=not bool(whole.isnan().any()))
        return losses, whole

    losses, found = gradients(engine(model, objective))
    expected_losses, expected = gradients(LoopEngine(model, objective))
    _require("losses equal the loop engine's", kept=_close(losses, expected_losses, tolerance))
    _require("gradients equal the loop engine's", kept=_close(found, expected, tolerance))


def check_executors(executors: Iterable[Executor]) -> None:
    """Check that executors that share the work do each task exactly once in total.

    Args:
        executors: one per process, or a single one that does all tasks.
    """
    tasks = [Task(checkpoint, shard) for checkpoint in range(3) for shard in range(5)]
    done: list[Task] = []
    for executor in executors:
        executor.run(executor.share(tasks), done.append)
    _require("every task is done exactly once", kept=sorted(done) == tasks)
