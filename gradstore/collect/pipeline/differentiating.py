"""Computes gradients and their norms at a loaded checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from gradstore.collect import devices
from gradstore.collect.engines import LoopEngine, StreamingEngine
from gradstore.collect.engines.choice import require_agreement, tolerance_of
from gradstore.collect.models.parameters import num_parameters, trainable
from gradstore.collect.objectives.protocol import Batch
from gradstore.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from gradstore.collect.engines import EngineMaker, GradientEngine, Receive
    from gradstore.collect.engines.streaming import LayerGradients
    from gradstore.collect.metrics import Factors, Whitening
    from gradstore.collect.objectives.protocol import Objective


_SEGMENT = 1 << 14


@dataclass(frozen=True)
class Differentiated:
    """What is known of a batch's gradients besides themselves; float64 `[rows]`, see `exact`.

    Attributes:
        losses: mean loss over the draws.
        norms: L2 norms of the gradients, mapped by the metric if there is one.
        raw_norms: L2 norms of the gradients without the metric.
    """

    losses: Tensor
    norms: Tensor
    raw_norms: Tensor


class LoadedCheckpoint:
    """A checkpoint ready to compute gradients.

    Attributes:
        folder: its folder.
        model: its model, on the device.
        num_parameters: length of a gradient.
        device: the device.
        make_engine: makes its engine.
        whitened: name of the metric's map of its gradients; None if they are as they are.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        objective: Objective,
        engine: EngineMaker,
        device: torch.device,
    ) -> None:
        self.folder = folder
        self.model = model.to(device)
        self.num_parameters = num_parameters(model)
        self.device = device
        self.make_engine = engine
        self.whitened: str | None = None
        self._objective = objective
        self._engine: GradientEngine = engine(self.model, objective)
        self._checked = False
        self._whitening: Whitening | None = None
        self._factors: dict[nn.Module, Factors] = {}
        # First entry of each parameter whose layer has factors.
        self._factored: set[int] = set()
        # Number of entries, by the first, of each parameter whose scale is 1: most, under K-FAC.
        self._plain: dict[int, int] = {}

    @property
    def checked(self) -> bool:
        """Whether `check` is done or not needed."""
        return self._checked or isinstance(self._engine, LoopEngine)

    def check(self, batch: Batch) -> None:
        """Compare the engine with one backward pass per row, at these weights.

        A wrong engine may match at another checkpoint, if a later layer has no gradient there.

        Raises:
            EngineError: if they differ.
        """
        try:
            require_agreement(
                type(self._engine).__name__,
                self._engine,
                LoopEngine(self.model, self._objective),
                batch,
                tolerance_of(self._objective),
            )
        except EngineError as error:
            raise EngineError(f"checkpoint {self.folder}: {error}") from error
        self._checked = True  # stays valid while it is in memory

    def whiten(self, whitening: Whitening, name: str) -> None:
        """Map all further gradients by a metric; `whitened` becomes `name`."""
        self._whitening, self.whitened = whitening.to(self.device), name
        self._factored, self._plain = set(), {}
        layers = dict(self.model.named_modules())
        self._factors = {layers[name]: own for name, own in self._whitening.factors.items()}
        factored = {one for layer in self._factors for one in layer.parameters(recurse=False)}
        start = 0
        for parameter in trainable(self.model).values():
            if parameter in factored:
                self._factored.add(start)
            if bool((self._whitening.scale[start : start + parameter.numel()] == 1).all()):
                self._plain[start] = parameter.numel()
            start += parameter.numel()

    def differentiate(self, batch: Batch, events: int, receive: Receive) -> Differentiated:
        """Compute a batch's gradients and pass them on in pieces, mapped by the metric if any.

        Args:
            batch: rows and their noises.
            events: number of events (rows × noises) to compute at once; a row with more noises is
                split.
            receive: receives the gradients; see `GradientEngine`.
        """
        draws = batch.noise.shape[1]
        parts = torch.split(batch.noise, max(1, min(draws, events)), dim=1)
        raw, mapped = _Squares(batch, self.device), _Squares(batch, self.device)

        def passed(start: int, piece: Tensor) -> None:
            mapped.add(piece)
            receive(start, piece)

        if len(parts) == 1:
            losses = self._gradients(batch, raw.take, passed)
        else:
            losses = devices.exact(torch.zeros(len(batch), device=self.device))
            means = [torch.zeros(len(batch), self.num_parameters, device=self.device)]
            if self._whitening is not None:
                means.append(torch.zeros_like(means[0]))
            for noises in parts:
                share = noises.shape[1] / draws

                def part(start: int, piece: Tensor, *, into: Tensor, share: float = share) -> None:
                    into[:, start : start + piece.shape[1]].add_(piece, alpha=share)

                own = Batch(batch.inputs, batch.timesteps, noises, batch.conditions)
                raws, ours = partial(part, into=means[-1]), partial(part, into=means[0])
                losses += share * self._gradients(own, raws, ours)
            passed(0, means[0])
            if self._whitening is not None:
                raw.add(means[1])
        norms = mapped.norms()
        return Differentiated(losses, norms, norms if self._whitening is None else raw.norms())

    def _gradients(self, batch: Batch, raw: Receive, mapped: Receive) -> Tensor:
        """Pass on raw and mapped gradients; without a metric only the latter. Return the losses."""
        if self._whitening is None:
            return devices.exact(self._engine(batch, mapped))
        scale = self._whitening.scale

        def received(start: int, piece: Tensor) -> None:
            if start not in self._factored:  # else the transform has passed it on
                raw(start, piece)
            if self._plain.get(start) != piece.shape[1]:
                piece.mul_(scale[start : start + piece.shape[1]])
            mapped(start, piece)

        engine = self._engine
        if not self._factors:
            return devices.exact(engine(batch, received))
        if not isinstance(engine, StreamingEngine):
            raise EngineError(
                "this metric maps inputs and gradients of layers, which only the streaming engine "
                "has. Use --engine streaming, or --metric fisher."
            )

        def transform(given: LayerGradients) -> dict[str, Tensor]:
            own = self._factors.get(given.layer)
            if own is None:
                return given.found
            for name, gradient in given.found.items():
                start = engine.start(given.layer, name)
                if start is not None:
                    raw(start, gradient.float())
            return own.gradients(given)

        return devices.exact(engine(batch, received, transform))


class _Squares:
    """Sums of the squares of each row's gradient, float64, see `devices.exact`."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self._sums = devices.exact(torch.zeros(len(batch), device=device))

    def add(self, piece: Tensor) -> None:
        """Add a piece of the gradients."""
        self._sums.add_(_norms(piece).square())

    def take(self, start: int, piece: Tensor) -> None:  # noqa: ARG002
        """Add a piece; a `Receive`."""
        self.add(piece)

    def norms(self) -> Tensor:
        """The norms, `[rows]`."""
        return self._sums.sqrt()


def _norms(piece: Tensor) -> Tensor:
    """L2 norm of each row, float64 `[rows]`, see `devices.exact`."""
    if not piece.is_cuda:
        # Ten times faster on a CPU. Float32 sums of segments are accurate to 1e-6; one over 10^8
        # entries is a percent too small. Within these bounds squares do not over- or underflow.
        norms = _segmented(piece)
        if all(1e-12 < norm < 1e12 for norm in norms.tolist()):
            return norms
        if devices.exact_dtype(piece.device) != torch.float64:
            largest = piece.abs().amax(1)
            unit = torch.where(largest > 0, largest, 1.0)
            return devices.exact(largest) * _segmented(piece / unit[:, None])
    wide: Tensor = torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64)
    return wide


def _segmented(piece: Tensor) -> Tensor:
    """L2 norm of each row, from float32 sums over segments."""
    whole = piece.shape[1] // _SEGMENT * _SEGMENT
    norms: Tensor = devices.exact(torch.linalg.vector_norm(piece[:, whole:], dim=1))
    if whole:
        segments = torch.unflatten(piece[:, :whole], 1, (-1, _SEGMENT))
        found = devices.exact(torch.linalg.vector_norm(segments, dim=2))
        norms = torch.linalg.vector_norm(found, dim=1).hypot(norms)
    return norms
