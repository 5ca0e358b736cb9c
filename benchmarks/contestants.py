"""Ways to the same scores: gradstore, and what a user would reach for instead.

Every contestant is given one model, its checkpoints with their weights η, and the same events, and
is asked in its own way. Each has the settings that were fastest where there was a choice; a comment
says which.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput

from benchmarks.denoiser import Denoiser, Tensors
from gradstore.collect import EventSpec, ProjectorSpec, Samples, SjltProjector, TrakProjector
from gradstore.collect import collect as collect_rows
from gradstore.collect.devices import choose
from indexer import ExactEngine, Features, TracIn, Trak
from indexer.kernel import build_kernel, fitted_by_kernel, kernel_path
from query import collect_queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.collect import Projector
    from gradstore.reader import Store

    Scores: TypeAlias = NDArray[np.float32]

TRACIN: Final = "TracIn"
TRAK: Final = "TRAK"
# What dattri projects to unless it is told otherwise.
DATTRI_DIM: Final = 512


@dataclass(frozen=True)
class Trial:
    """What every contestant is given.

    Attributes:
        folder: for what is kept; gone when the trial is over.
        checkpoints: folders, in training order.
        etas: their weights η.
        train: the training samples.
        training: their events at each checkpoint, one slot.
        timesteps: of every query.
        proj_dim: what is projected to.
        batch: training samples whose gradients a peer holds at once.
        few: those of captum, whose backward passes each run through the whole batch.
    """

    folder: Path
    checkpoints: Sequence[Path]
    etas: Sequence[float]
    train: Samples
    training: Tensors
    timesteps: int
    proj_dim: int
    batch: int
    few: int

    def denoiser(self) -> Denoiser:
        """The model, with all its checkpoints in memory, so that nobody's time is the disk's."""
        return Denoiser(self.checkpoints, "l1").to(choose(None))


@dataclass(frozen=True)
class Asked:
    """Some queries.

    Attributes:
        name: of the batch.
        samples: as gradstore takes them.
        events: as the others do, a slot for each timestep.
    """

    name: str
    samples: Samples
    events: Tensors


@dataclass(frozen=True)
class Kernel:
    """How TRAK scores come from gradients: `Σ_k w_k φ_k(z')ᵀ (Φ_kᵀΦ_k + λ_k I)⁻¹ φ_k(z)`.

    Attributes:
        lambdas: λ at each checkpoint, of gradients as they are: neither scaled nor projected.
        weights: w at each checkpoint.
    """

    lambdas: Sequence[float]
    weights: Sequence[float]


class Contestant(Protocol):
    """A way to scores.

    Attributes:
        name: of the contestant.
        measure: `TracIn` or `TRAK`.
        computes: what it does, in words.
        where: where it keeps what it keeps: `disk`, `memory`, or nothing.
    """

    name: str
    measure: str
    computes: str
    where: str

    def set_up(self) -> None:
        """Load models and make objects."""

    def collect(self) -> None:
        """All that can be done before the first query."""

    def ask(self, asked: Asked) -> Scores:
        """Influence of every training sample on each query, float32 `[queries, samples]`."""

    def nbytes(self) -> int:
        """Bytes that it keeps between queries, models and projections aside."""

    def kernel(self) -> Kernel | None:
        """How its TRAK scores are weighed; None under TracIn."""


class Plain:
    """A loop over samples, a backward pass each: what one writes oneself."""

    name = "plain PyTorch loop"
    measure = TRACIN
    computes = "one backward pass for each sample and checkpoint, nothing kept"
    where = ""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def set_up(self) -> None:
        """See `Contestant`."""
        self._model = self._trial.denoiser()

    def collect(self) -> None:
        """See `Contestant`."""

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        trial, model = self._trial, self._model
        total = torch.zeros(len(asked.samples), len(trial.train), device=choose(None))
        for checkpoint, eta in enumerate(trial.etas):
            model.load(checkpoint)
            left = torch.stack(list(gradients(model, asked.events)))
            for row, right in enumerate(gradients(model, trial.training)):
                total[:, row] += eta * (left @ right)
        return total.cpu().numpy()

    def nbytes(self) -> int:
        """See `Contestant`."""
        return 0

    def kernel(self) -> None:
        """See `Contestant`."""


class Gradstore:
    """gradstore: rows are collected once, and a query costs its own.

    Args:
        trial: what is given.
        projector: `identity`, `sjlt` or `trak`.
        measure: `TracIn` or `TRAK`.
    """

    where = "disk"

    def __init__(self, trial: Trial, projector: str, measure: str = TRACIN) -> None:
        self._trial = trial
        self._path = trial.folder / f"{projector}-{measure}.gradstore"
        self._spec = ProjectorSpec.model_validate(
            {"projector": projector, "proj_dim": trial.proj_dim}
        )
        self.name = f"gradstore, {projector}" + (", measure trak" if measure == TRAK else "")
        self.measure = measure
        dims = "unprojected" if projector == "identity" else f"{trial.proj_dim:,} dimensions"
        kept = "float32" if projector == "identity" else "float16"
        self.computes = f"a row for each timestep, {dims}, {kept} directions; all scores exactly"

    def set_up(self) -> None:
        """See `Contestant`."""
        # One object for the store and its queries keeps the matrices that TRAK's projector draws.
        self._projector: Projector | None = None
        if self._spec.projector != "identity":
            made = SjltProjector if self._spec.projector == "sjlt" else TrakProjector
            self._projector = made(self._spec)

    def collect(self) -> None:
        """See `Contestant`."""
        trial = self._trial
        self.store = collect_rows(
            trial.train,
            trial.checkpoints,
            self._path,
            projector=self._projector or self._spec,
            dtype=self._dtype,
        )
        self.engine = ExactEngine(self.store, Features.of(self.store, TracIn()))
        self._trak = None
        if self.measure == TRAK:
            build_kernel(self.store)
            self._trak = fitted_by_kernel(Trak(), self.store)

    @property
    def _dtype(self) -> str:
        return "float32" if self._spec.projector == "identity" else "float16"

    def rows(self, asked: Asked, name: str) -> Store:
        """The rows of queries."""
        return collect_queries(
            self.store,
            asked.samples,
            self._trial.folder / f"{self._path.stem}-{name}.gradstore",
            events=EventSpec(events="planned", timesteps=self._trial.timesteps),
            projector=self._projector,
            dtype=self._dtype,
        )

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        features = self.engine.features.range(self.rows(asked, asked.name))
        if self._trak is not None:
            features = self._trak.prepared(features)
        return np.concatenate([block for _, block in self.engine.scores(features)], axis=1)

    def nbytes(self) -> int:
        """See `Contestant`."""
        return self.store.nbytes + (on_disk(kernel_path(self.store)) if self._trak else 0)

    def kernel(self) -> Kernel | None:
        """See `Contestant`."""
        if self._trak is None:
            return None
        return Kernel(self._trak.lambdas or (), self._trial.etas)


class Captum:
    """captum's `TracInCP`."""

    name = "captum, TracInCP"
    measure = TRACIN
    computes = "all training gradients again for every call, a backward pass each; unprojected"
    where = ""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def set_up(self) -> None:
        """See `Contestant`."""
        with peers(vmap=False):
            from captum.influence import TracInCP

            model, etas = self._trial.denoiser(), self._trial.etas
            for parameter in model.parameters():
                # captum takes view()s of gradients; a convolution's may be laid out channels last.
                parameter.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]

            def load(module: Denoiser, checkpoint: int) -> float:
                module.load(checkpoint)
                return etas[checkpoint]

            # `sample_wise_grads_per_batch` would take all at once, but knows convolutions and
            # linear layers alone, and this model has normalisations that are trained too.
            self._tracin = TracInCP(
                model,
                _dataset(self._trial.training),
                # Not strings: captum puts those into an order of its own.
                list(range(len(etas))),
                checkpoints_load_func=load,
                loss_fn=model.losses,
                batch_size=self._trial.few,
            )

    def collect(self) -> None:
        """See `Contestant`."""

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        with peers(vmap=False):
            # Each query holds a batch of its own: its timesteps.
            found = self._tracin.influence(DataLoader(_dataset(asked.events), batch_size=1))
        scores: Scores = found.detach().cpu().numpy()
        return scores

    def nbytes(self) -> int:
        """See `Contestant`."""
        return 0

    def kernel(self) -> None:
        """See `Contestant`."""


class DattriTracIn:
    """dattri's `TracInAttributor`.

    Args:
        trial: what is given.
        proj_dim: of its projection; None for none.
    """

    measure = TRACIN
    where = ""

    def __init__(self, trial: Trial, proj_dim: int | None = None) -> None:
        self._trial = trial
        self._projection = _projection(proj_dim)
        self.name = "dattri, TracIn" + (f" in {proj_dim} dimensions" if proj_dim else "")
        dims = f"a normal matrix to {proj_dim}" if proj_dim else "unprojected"
        self.computes = f"all training gradients again for every call, by vmap; {dims}"

    def set_up(self) -> None:
        """See `Contestant`."""
        with peers():
            from dattri.algorithm.tracin import TracInAttributor

            self._attributor = TracInAttributor(
                _task(self._trial),
                weight_list=torch.tensor(self._trial.etas),
                normalized_grad=False,
                projector_kwargs=self._projection,
                device=str(choose(None)),
            )
        # The dictionary of defaults is one for all attributors: who is made later changes it.
        self._attributor.projector_kwargs = dict(self._projection)

    def collect(self) -> None:
        """See `Contestant`."""

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        # Large batches: gradients of all queries are computed again for each batch of training
        # samples.
        with peers():
            found = self._attributor.attribute(
                DataLoader(_dataset(self._trial.training), batch_size=self._trial.batch),
                DataLoader(_dataset(asked.events), batch_size=len(asked.samples)),
            )
        scores: Scores = found.T.contiguous().numpy()
        return scores

    def nbytes(self) -> int:
        """See `Contestant`."""
        return 0

    def kernel(self) -> None:
        """See `Contestant`."""


class DattriTrak:
    """dattri's `TRAKAttributor`, of the loss itself.

    Args:
        trial: what is given.
        ridge: λ, of gradients as they are.
    """

    name = "dattri, TRAK"
    measure = TRAK
    where = "memory"

    def __init__(self, trial: Trial, ridge: float) -> None:
        self._trial, self._ridge = trial, ridge
        self._projection = _projection(trial.proj_dim)
        self.computes = (
            f"a normal matrix to {trial.proj_dim:,} dimensions, float32; the kernel of training "
            "samples is cached"
        )

    def set_up(self) -> None:
        """See `Contestant`."""
        with peers():
            from dattri.algorithm.trak import TRAKAttributor

            task = _task(self._trial)
            count = sum(one.numel() for one in task.get_model().parameters())
            self._attributor = TRAKAttributor(
                task,
                # The output is the loss: its derivative is 1, which is what dattri makes of this.
                correct_probability_func=lambda _, data: data[0].sum() * 0.0,
                projector_kwargs=self._projection,
                device=str(choose(None)),
                # It divides gradients by √parameters, and projects keeping lengths.
                regularization=self._ridge / count,
            )
        self._attributor.projector_kwargs = dict(self._projection)

    def collect(self) -> None:
        """See `Contestant`."""
        # Large batches: the matrix is drawn again for each.
        with peers():
            self._attributor.cache(
                DataLoader(_dataset(self._trial.training), batch_size=self._trial.batch)
            )

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        with peers():
            found = self._attributor.attribute(
                DataLoader(_dataset(asked.events), batch_size=len(asked.samples))
            )
        scores: Scores = found.T.contiguous().cpu().numpy()
        return scores

    def nbytes(self) -> int:
        """See `Contestant`."""
        return sum(one.nbytes for one in self._attributor.inv_XTX_XT_list)

    def kernel(self) -> Kernel:
        """See `Contestant`."""
        count = len(self._trial.etas)
        return Kernel([self._ridge] * count, [1 / count] * count)


class Loss(AbstractModelOutput):  # type: ignore[misc]
    """The loss as the output function of `TRAKer`: its gradients are TracIn's, too."""

    def __init__(self) -> None:
        pass

    def get_output(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        *event: Tensor,
    ) -> Tensor:
        """Mean loss of one sample's slots: noisy, timestep and label, `[slots, …]` each."""
        noisy, timestep, label = event
        predicted = functional_call(model, (weights, buffers), (noisy, timestep)).sample
        loss: Tensor = (predicted - label).abs().mean()
        return loss

    def get_out_to_loss_grad(self, *given: Any) -> Tensor:
        """Ones `[samples, 1]`, for the output is the loss; the last that is given is the batch."""
        noisy = given[-1][0]
        return torch.ones(len(noisy), 1, device=noisy.device)


class Traker:
    """TRAK's own `TRAKer`, of the loss itself.

    Args:
        trial: what is given.
        ridge: λ, of gradients as they are.
    """

    name = "TRAKer"
    measure = TRAK
    where = "disk"

    def __init__(self, trial: Trial, ridge: float) -> None:
        self._trial, self._ridge = trial, ridge
        self._folder = trial.folder / "traker"
        self.computes = (
            f"a normal matrix to {trial.proj_dim:,} dimensions, float32; each checkpoint's kernel "
            "divided by the mean size of its entries"
        )

    def set_up(self) -> None:
        """See `Contestant`."""
        trial = self._trial
        self._model = trial.denoiser()
        count = sum(one.numel() for one in self._model.parameters())
        # It divides gradients by √parameters, and projects without dividing by √dimensions.
        self._scale = trial.proj_dim / count
        self._traker = TRAKer(
            model=self._model.unet,
            task=Loss(),
            train_set_size=len(trial.train),
            save_dir=str(self._folder),
            device=str(choose(None)),
            proj_dim=trial.proj_dim,
            # Half precision has no fast product on a CPU, and loses what the kernel needs.
            use_half_precision=False,
            lambda_reg=self._ridge * self._scale,
            logging_level=logging.ERROR,
        )
        self._kernel: Kernel | None = None

    def collect(self) -> None:
        """See `Contestant`."""
        with peers():
            for checkpoint, weights in enumerate(self._model.weights):
                self._traker.load_checkpoint(weights, model_id=checkpoint)
                # Large batches: the matrix is drawn again for each.
                for start in range(0, len(self._trial.train), self._trial.batch):
                    batch = _at(self._trial.training, checkpoint, start, self._trial.batch)
                    self._traker.featurize(batch, num_samples=len(batch[0]))
            self._traker.finalize_features()

    def ask(self, asked: Asked) -> Scores:
        """See `Contestant`."""
        count = len(asked.samples)
        with peers():
            for checkpoint, weights in enumerate(self._model.weights):
                self._traker.start_scoring_checkpoint(asked.name, weights, checkpoint, count)
                self._traker.score(_at(asked.events, checkpoint, 0, count), num_samples=count)
            found = self._traker.finalize_scores(asked.name)
        return np.array(found.T)

    def nbytes(self) -> int:
        """See `Contestant`. Training gradients are not counted: scoring needs them no more."""
        files = [self._folder / f"{k}" / "grads.mmap" for k in range(len(self._trial.etas))]
        return on_disk(self._folder) - sum(file.stat().st_size for file in files)

    def kernel(self) -> Kernel:
        """See `Contestant`."""
        count, weights = len(self._trial.etas), []
        for checkpoint in range(count):
            rows = np.load(self._folder / f"{checkpoint}" / "grads.mmap").astype(np.float64)
            gram = rows.T @ rows
            gram[np.diag_indices(len(gram))] += self._ridge * self._scale
            weights.append(1 / (count * float(np.abs(np.linalg.inv(gram)).mean())))
        return Kernel([self._ridge] * count, weights)


def gradients(model: Denoiser, events: Tensors) -> Iterator[Tensor]:
    """Whole gradients of each sample's mean loss at the loaded checkpoint, float32 `[P]`."""
    parameters = list(model.parameters())
    device = parameters[0].device
    for row in range(len(events[0])):
        noisy, timestep, label = (tensor[row : row + 1].to(device) for tensor in events)
        loss = model.losses(model(noisy, timestep), label)
        found = torch.autograd.grad(loss[0], parameters)
        yield torch.cat([one.flatten() for one in found])


def on_disk(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def peers(*, vmap: bool = True) -> Iterator[None]:
    """What the peers need around them: they warn, and most differentiate by vmap.

    vmap has no fused attention; and under `no_grad` torch's own record of what vmap does, which
    nobody asks for, is not kept.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        if vmap:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.no_grad())
        # captum says what it assumes of a loss that is a plain function: a value per sample. It is.
        warnings.filterwarnings("ignore", 'Since `(test_)?loss_fn` has no "reduction"', UserWarning)
        # dattri compiles functions as it is imported, and torch warns of its own code.
        warnings.filterwarnings(
            "ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning
        )
        yield


def _task(trial: Trial) -> Any:
    """The model and its loss, as dattri has them described."""
    from dattri.task import AttributionTask

    model = trial.denoiser()

    def loss(parameters: dict[str, Tensor], data: Tensors) -> Tensor:
        noisy, timestep, label = (tensor[None] for tensor in data)
        predicted = functional_call(model, parameters, (noisy, timestep))
        return model.losses(predicted, label)[0]

    def load(module: Denoiser, checkpoint: int) -> Denoiser:
        module.load(checkpoint)
        return module

    return AttributionTask(
        loss_func=loss,
        model=model,
        checkpoints=list(range(len(trial.etas))),
        checkpoints_load_func=load,
    )


def _projection(proj_dim: int | None) -> dict[str, Any]:
    """Settings of dattri's projection, all of them."""
    return {
        # None would mean a projection to 512 dimensions.
        "proj_type": "normal" if proj_dim else "identity",
        "proj_dim": proj_dim or DATTRI_DIM,
        "proj_max_batch_size": 32,
        "proj_seed": 0,
        "device": str(choose(None)),
    }


def _dataset(events: Tensors) -> TensorDataset:
    return TensorDataset(*(tensor.to(choose(None)) for tensor in events))


def _at(events: Tensors, checkpoint: int, start: int, count: int) -> list[Tensor]:
    """A batch of one checkpoint's events, each `[samples, slots, …]`."""
    return [tensor[start : start + count, checkpoint].to(choose(None)) for tensor in events]
