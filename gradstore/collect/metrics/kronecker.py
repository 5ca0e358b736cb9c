"""K-FAC and EK-FAC as metrics."""

from __future__ import annotations

from collections import Counter
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradstore.collect import devices
from gradstore.collect.engines.streaming import StreamingEngine
from gradstore.collect.metrics.fisher import Damped, inverse_root, second_moments
from gradstore.collect.metrics.rounding import is_rounding, rounding_floor
from gradstore.collect.metrics.whitening import Factors, Whitening, has_factors
from gradstore.collect.models.parameters import trainable
from gradstore.collect.objectives.wrappers import precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from gradstore.collect.engines import Receive
    from gradstore.collect.engines.streaming import LayerGradients, Transform
    from gradstore.collect.metrics.protocol import Fitting
    from gradstore.collect.objectives.protocol import Batch

# Entries of the patches of a convolution's input that are unfolded at once.
_UNFOLDED = 1 << 24


class Kfac(Damped):
    """Whitens each layer's gradient G by Kronecker factors of the Fisher matrix.

    A row's entries of a layer are `(S + d·s·1)^(−½) G (A + d·a·1)^(−½)` (arXiv 1503.05671), where S
    is the mean over events of `Σ δ δᵀ` over positions, A the mean over events and positions of
    `a aᵀ` (with the constant 1 appended for the bias of a linear layer), d the damping, and s, a
    their mean eigenvalues. For a convolution, whose input at a position is a patch, A is the
    product `C ⊗ T` of a factor over channels and one over the positions of the kernel, each a mean
    over the other (the whole matrix, as in arXiv 1602.01407, has taps² times the entries of C).
    Other parameters are multiplied by `(F + d · mean F)^(−½)`, as by `Fisher`, each tensor by
    itself: those of other layers, and of layers that a model uses more than once. Parameters whose
    gradients are only rounding are mapped to 0 (see `rounding`).

    Args:
        damping: added to the factors, relative to their mean eigenvalue.
    """

    name = "kfac"
    layerwise = True
    passes = 1

    def fit(self, fitting: Fitting) -> Whitening:
        """See `Metric.fit`."""
        moments, matrices = _matrices(fitting)
        factors = {
            layer: Factors(**{side: self._map(one) for side, one in own.items()}).to(fitting.device)
            for layer, own in matrices.items()
        }
        return self._scaled(fitting, factors, moments)

    def _map(self, matrix: Tensor) -> Tensor:
        values, vectors = _eigen(matrix)
        damped = values + self.damping * values.mean()
        root = torch.where(damped == 0, 0.0, damped.rsqrt())
        return ((vectors * root) @ vectors.T).float().to(matrix.device)

    def _scaled(
        self, fitting: Fitting, factors: dict[nn.Module, Factors], moments: Tensor
    ) -> Whitening:
        layers = {one: layer for layer in factors for one in layer.parameters(recurse=False)}
        pieces = {parameter: own for own, parameter in _pieces(fitting.model)}
        floor = rounding_floor([moments], precision(fitting.objective))
        scale = torch.ones_like(moments)
        for parameter, own in pieces.items():
            # A layer's bias shares its factors: it is rounding only if the weight is.
            layer: Any = layers.get(parameter)
            judged = own if layer is None else pieces[layer.weight]
            if is_rounding(moments[judged], floor):
                scale[own] = 0.0
            elif layer is None:
                scale[own] = inverse_root(moments[own], self.damping)
        return Whitening(scale, _named(fitting.model, factors))


class Ekfac(Kfac):
    """K-FAC with its eigenvalues corrected by one more pass (arXiv 1806.03884).

    A layer's gradient is rotated into the eigenvectors of its factors; each entry is then
    multiplied by `(λ + d · mean λ)^(−½)`, where λ is the mean over events of its square. Other
    parameters are as under K-FAC.
    """

    name = "ekfac"
    passes = 2

    def _map(self, matrix: Tensor) -> Tensor:
        return _eigen(matrix)[1].T.contiguous().float().to(matrix.device)

    def _scaled(
        self, fitting: Fitting, factors: dict[nn.Module, Factors], moments: Tensor
    ) -> Whitening:
        def rotated(given: LayerGradients) -> dict[str, Tensor]:
            own = factors.get(given.layer)
            return given.found if own is None else own.gradients(given)

        moments = second_moments(fitting, _Transformed(fitting, lambda: rotated))
        scale = torch.empty_like(moments)
        floor = rounding_floor([moments], precision(fitting.objective))
        for own, _ in _pieces(fitting.model):
            if is_rounding(moments[own], floor):
                scale[own] = 0.0
            else:
                scale[own] = inverse_root(moments[own], self.damping)
        return Whitening(scale, _named(fitting.model, factors))


def _pieces(model: nn.Module) -> Iterator[tuple[slice, nn.Parameter]]:
    """Each parameter's entries in a gradient."""
    start = 0
    for parameter in trainable(model).values():
        yield slice(start, start + parameter.numel()), parameter
        start += parameter.numel()


def _named(model: nn.Module, factors: dict[nn.Module, Factors]) -> dict[str, Factors]:
    return {name: factors[layer] for name, layer in model.named_modules() if layer in factors}


class _Transformed:
    """An engine of transformed gradients.

    Args:
        fitting: model and objective.
        transform: makes the transform of a batch's gradients.
    """

    def __init__(self, fitting: Fitting, transform: Callable[[], Transform]) -> None:
        self._engine = StreamingEngine(fitting.model, fitting.objective)
        self._transform = transform

    def __call__(self, batch: Batch, receive: Receive) -> Tensor:
        """See `GradientEngine`."""
        return self._engine(batch, receive, self._transform())


def _matrices(fitting: Fitting) -> tuple[Tensor, dict[nn.Module, dict[str, Tensor]]]:
    """Second moments of all gradients, and S, A or C, and T of each layer that has factors."""
    sums: dict[nn.Module, _Sums] = {}
    # A parameter that is used twice has a gradient that is no single sum of outer products.
    owners = Counter(
        parameter
        for layer in fitting.model.modules()
        for parameter in layer.parameters(recurse=False)
    )
    shared: set[nn.Module] = set()
    mine = set(trainable(fitting.model).values())

    def trained(layer: nn.Module, name: str) -> bool:
        return getattr(layer, name) in mine

    def add(seen: set[nn.Module], given: LayerGradients) -> dict[str, Tensor]:
        layer = given.layer
        if has_factors(layer) and trained(layer, "weight"):
            if layer in seen or any(owners[one] > 1 for one in layer.parameters(recurse=False)):
                shared.add(layer)
            seen.add(layer)
            if layer not in sums:
                sums[layer] = _Sums(layer, bias=trained(layer, "bias"))
            sums[layer].add(given.inputs.float(), given.grads.float(), given.rows)
        return given.found

    moments = second_moments(fitting, _Transformed(fitting, lambda: partial(add, set())))
    return moments, {layer: one.means() for layer, one in sums.items() if layer not in shared}


class _Sums:
    """Sums over events and positions of one layer, in float64 where the device has it."""

    def __init__(self, layer: Any, *, bias: bool) -> None:
        self._layer, self._bias = layer, bias
        self._events = self._positions = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, inputs: Tensor, grads: Tensor, rows: int) -> None:
        """Add the inputs and output gradients of some events."""
        self._events += rows
        if type(self._layer) is nn.Linear:
            inputs = inputs.flatten(0, -2)
            self._positions += len(inputs)
            if self._bias:
                inputs = F.pad(inputs, (0, 1), value=1.0)
            self._into("inputs", inputs)
            self._into("outputs", grads.flatten(0, -2))
            return
        if prod(self._layer.kernel_size) > 1:
            step = max(1, _UNFOLDED // (inputs[0].numel() * prod(self._layer.kernel_size)))
            for some in torch.split(inputs, step):
                self._into("taps", _patches(self._layer, some))
        channels_last = [one.flatten(2).transpose(1, 2).flatten(0, 1) for one in (inputs, grads)]
        self._positions += len(channels_last[0])
        self._into("inputs", channels_last[0])
        self._into("outputs", channels_last[1])

    def _into(self, side: str, vectors: Tensor) -> None:
        product = devices.exact(vectors.T @ vectors)
        self._sums[side] = self._sums[side] + product if side in self._sums else product

    def means(self) -> dict[str, Tensor]:
        """S, A or C, and T, whose mean eigenvalue is 1."""
        found = {
            "outputs": self._sums["outputs"] / self._events,
            "inputs": self._sums["inputs"] / self._positions,
        }
        if "taps" in self._sums:
            taps = self._sums["taps"]
            mean = taps.diagonal().mean()
            found["taps"] = taps / torch.where(mean > 0, mean, 1.0)
        return found


def _patches(layer: Any, inputs: Tensor) -> Tensor:
    """Inputs at the positions of a convolution's kernel, `[…, taps]`."""
    padding = [side for one in reversed(layer.padding) for side in (one, one)]
    found = F.pad(inputs, padding)
    axes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(axes, 2):
        found = found.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return found.reshape(-1, prod(layer.kernel_size))


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and eigenvectors of a symmetric matrix; NaN if it is not finite."""
    if not bool(matrix.isfinite().all()):
        return torch.full_like(matrix[0], torch.nan), torch.full_like(matrix, torch.nan)
    values, vectors = torch.linalg.eigh(devices.exact(matrix))
    return values.clamp(min=0), vectors
