from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.worlds.denoiser import Denoiser, event_tensors
from gradstore.collect import (
    EventSpec,
    PlannedEvents,
    ProjectorSpec,
    Recorder,
    ReplayedEvents,
    Samples,
    collect,
)
from indexer import build_index
from query import collect_queries, search

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.worlds.denoiser import Tensors
    from gradstore import Store

    Scores = NDArray[np.float32]

# Neither equal nor symmetric, to detect lost or swapped weights.
ETAS = (0.6, 0.1, 0.3)
EPOCHS = (1, 2, 4)
SHAPE = (1, 8, 8)
TIMESTEPS = 1000  # diffusers' default
QUERY_EVENTS = EventSpec(events="planned", timesteps=4, draws=1)
TOLERANCE = 1e-4

# captum states its assumption for a plain loss function: one value per sample. It holds.
CAPTUM_ASSUMES = pytest.mark.filterwarnings(
    'ignore:Since `(test_)?loss_fn` has no "reduction" attribute:UserWarning:captum'
)
# The import of dattri compiles functions, and torch's compiler warns about torch's code.
DATTRI_IMPORTS = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning:torch.jit"
)


@dataclass(frozen=True)
class Case:
    folders: list[Path]
    store: Store
    queries: Store
    # Input of captum and dattri: noisy samples, timesteps, and noise as the label, each
    # [samples, checkpoints, slots, …].
    training: Tensors
    asked: Tensors


def small_unet(seed: int) -> Any:
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=SHAPE[1],
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )


def save_checkpoints(folder: Path, ids: Sequence[str]) -> list[Path]:
    folders = []
    recorder = Recorder(seed=5, num_train_timesteps=TIMESTEPS)
    for number, epoch in enumerate(EPOCHS):
        folders.append(folder / f"epoch-{epoch:04d}")
        scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
        DDIMPipeline(small_unet(seed=number), scheduler).save_pretrained(folders[-1])
        # A record holds a running sum; the test covers that gradstore takes differences.
        recorder.save(
            folders[-1],
            ids=ids,
            epoch=epoch,
            learning_rate_sum=sum(ETAS[: number + 1]),
            loss="l2",
        )
    return folders


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("agreement")
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(6, *SHAPE, generator=generator) * 2 - 1
    asked = torch.rand(3, *SHAPE, generator=generator) * 2 - 1
    ids = [f"train-{row}" for row in range(len(images))]
    asked_ids = [f"query-{row}" for row in range(len(asked))]
    folders = save_checkpoints(folder / "checkpoints", ids)
    store = collect(
        Samples(images, ids=ids),
        folders,
        folder / "train.gradstore",
        projector=ProjectorSpec(projector="identity"),
        events="replayed",
        metric="none",
        dtype="float32",
        batch_size=4,
        device="cpu",
    )
    queries = collect_queries(
        store,
        Samples(asked, ids=asked_ids),
        folder / "queries.gradstore",
        events=QUERY_EVENTS,
        dtype="float32",
        batch_size=5,
        device="cpu",
    )
    planned = PlannedEvents(QUERY_EVENTS, TIMESTEPS, "query")
    return Case(
        folders=folders,
        store=store,
        queries=queries,
        training=event_tensors(images, ReplayedEvents(folders, TIMESTEPS), ids, folders),
        asked=event_tensors(asked, planned, asked_ids, folders),
    )


def gradstore_scores(
    case: Case, path: Path, measure: str = "tracin", etas: Sequence[float] | None = None
) -> Scores:
    index = build_index(case.store, measure, path, etas=etas)
    ranking = search(index, case.queries, k=case.store.samples).proponents
    scores = np.full(ranking.scores.shape, np.nan, dtype=np.float32)
    np.put_along_axis(scores, ranking.samples, ranking.scores, axis=1)
    return scores


@pytest.fixture(scope="module")
def captum(case: Case) -> Scores:
    from captum.influence import TracInCP

    model = Denoiser(case.folders, "l2")
    for parameter in model.parameters():
        # captum calls view() on gradients; those of convolutions here are channels-last.
        parameter.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]

    def load(module: Denoiser, checkpoint: int) -> float:
        module.load(checkpoint)
        return ETAS[checkpoint]

    tracin = TracInCP(
        model,
        TensorDataset(*case.training),
        # Not strings: captum reorders those.
        list(range(len(ETAS))),
        checkpoints_load_func=load,
        loss_fn=model.losses,
        batch_size=4,
    )
    scores: Scores = tracin.influence(case.asked).numpy()
    return scores


def dattri_scores(case: Case, *, normalized: bool) -> Scores:
    # Imported here, because the import warns and a test can filter that.
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    model = Denoiser(case.folders, "l2")

    def loss(parameters: dict[str, Tensor], data: Tensors) -> Tensor:
        noisy, timestep, label = (tensor[None] for tensor in data)
        predicted = functional_call(model, parameters, (noisy, timestep))
        return model.losses(predicted, label)[0]

    def load(module: Denoiser, checkpoint: int) -> Denoiser:
        module.load(checkpoint)
        return module

    attributor = TracInAttributor(
        AttributionTask(
            loss_func=loss,
            model=model,
            checkpoints=list(range(len(ETAS))),
            checkpoints_load_func=load,
        ),
        weight_list=torch.tensor(ETAS),
        normalized_grad=normalized,
        # None would mean a random projection to 512 dimensions.
        projector_kwargs={"proj_type": "identity"},
    )
    # Every event of a query is scored separately, then scores are averaged. dattri thus normalises
    # each event's gradient and not their mean, like ReTrac.
    one_by_one = [tensor.transpose(1, 2).flatten(0, 1).unsqueeze(2) for tensor in case.asked]
    # dattri differentiates under vmap, which has no fused attention in torch.
    with sdpa_kernel(SDPBackend.MATH):
        scores: Tensor = attributor.attribute(
            DataLoader(TensorDataset(*case.training), batch_size=4),
            DataLoader(TensorDataset(*one_by_one), batch_size=5),
        )
    by_event: Scores = scores.T.numpy()
    averaged: Scores = by_event.reshape(-1, QUERY_EVENTS.timesteps, by_event.shape[1]).mean(1)
    return averaged


def difference(scores: Scores, expected: Scores) -> float:
    """Largest difference, relative to the largest score of the same query."""
    assert scores.shape == expected.shape == (3, 6)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    return float((np.abs(scores - expected) / scale).max())


@CAPTUM_ASSUMES
def test_tracin_scores_are_captums(case: Case, captum: Scores, tmp_path: Path) -> None:
    assert difference(gradstore_scores(case, tmp_path / "index"), captum) < TOLERANCE


# ReTrac is included because TracIn cannot detect a wrong norm: a direction divides by the norm that
# the measure multiplies back.
@DATTRI_IMPORTS
@pytest.mark.parametrize("measure", ["tracin", "retrac"])
def test_scores_are_dattris(measure: str, case: Case, tmp_path: Path) -> None:
    scores = gradstore_scores(case, tmp_path / "index", measure)
    assert difference(scores, dattri_scores(case, normalized=measure == "retrac")) < TOLERANCE


# Otherwise scores that hardly depend on weights or norms would agree anyway.
@CAPTUM_ASSUMES
@pytest.mark.parametrize(
    ("measure", "etas"),
    [("tracin", ETAS[::-1]), ("tracin", (1.0, 1.0, 1.0)), ("retrac", None)],
    ids=["swapped weights", "equal weights", "retrac"],
)
def test_agreement_is_lost_with(
    measure: str, etas: Sequence[float] | None, case: Case, captum: Scores, tmp_path: Path
) -> None:
    scores = gradstore_scores(case, tmp_path / "index", measure, etas)
    assert difference(scores, captum) > 100 * TOLERANCE
