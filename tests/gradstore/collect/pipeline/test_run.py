from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gradstore.collect import (
    ByRank,
    DiffusionLoss,
    EventSpec,
    GradientSpec,
    InProcess,
    LoopEngine,
    PlannedEvents,
    ProjectorSpec,
    Samples,
    Task,
    VmapEngine,
    collect,
    collect_each,
    load,
)
from gradstore.collect.pipeline import batches, differentiating
from gradstore.errors import (
    ConfigError,
    DatasetError,
    EngineError,
    FingerprintError,
    GradientError,
)
from gradstore.store.opening import open_store
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.collected import PAPER, PLAN, SMALL, contents, files
from tests.support.worlds import NAMES, World, images, save_checkpoint, unet


def test_a_store_says_what_it_is(world: World, reference: Store) -> None:
    assert list(verify(reference))
    assert [report.problem for report in verify(reference)] == [None] * 8
    assert reference.parts[0].layout.shards == 4
    assert reference.etas == pytest.approx([0.1, 0.3])
    assert reference.manifest.ids == NAMES
    assert reference.spec.identity["objective"]["loss"] == "l1"  # type: ignore[index,call-overload]
    assert reference.spec.parts[0].made_by["versions"]["torch"] == torch.__version__
    rows = reference.rows(0)
    assert rows.direction.dtype == np.float16
    lengths = np.linalg.norm(rows.direction.astype(np.float64), axis=2)
    # The squared length of a projected unit vector has mean 1 and variance at most 2/dim.
    assert np.abs(lengths**2 - 1).max() < 5 * np.sqrt(2 / 64)
    assert (rows.norm > 0).all()


def test_some_checkpoints_now_and_the_others_later(
    world: World, reference: Store, tmp_path: Path
) -> None:
    path = tmp_path / "s.gradstore"
    part = collect(world.train, world.checkpoints, path, only=[1], **SMALL)
    assert {place for place, _, _ in part.missing()} == {0}
    assert part.spec.fingerprint == reference.spec.fingerprint
    whole = collect(world.train, world.checkpoints, path, **SMALL)
    for name, expected in contents(reference).items():
        np.testing.assert_array_equal(contents(whole)[name], expected)
    for wrong in ([], [2], [-1]):
        with pytest.raises(ConfigError, match=r"name one or more by index, 0 … 1"):
            collect(world.train, world.checkpoints, tmp_path / "no", only=wrong, **SMALL)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("projector", "error"),
    [
        (SMALL["projector"], 1e-5),
        (
            ProjectorSpec(proj_dim=64, precision="bfloat16"),
            float(torch.finfo(torch.bfloat16).eps),
        ),
    ],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize(
    "options",
    [
        {"events": EventSpec(), "batch_size": 3},
        {"events": PLAN, "batch_size": 1},
        {"events": PLAN, "batch_size": 3},
    ],
)
def test_rows_do_not_depend_on_batches_order_or_company(
    world: World,
    tmp_path: Path,
    options: dict[str, Any],
    projector: ProjectorSpec,
    error: float,
) -> None:
    common = {**SMALL, "projector": projector, "dtype": "float32", "events": options["events"]}
    whole = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **common)
    order = [5, 0, 3]
    items = [(world.train.image(row), 0) for row in order]
    part = collect(
        Samples(items, ids=[NAMES[row] for row in order]),
        world.checkpoints,
        tmp_path / "b.gradstore",
        **{**common, **options, "shard_samples": 3},
    )
    for k in range(2):
        left, right = whole.rows(k), part.rows(k)
        np.testing.assert_array_equal(left.timestep[order], right.timestep)
        for name in ("direction", "norm", "loss"):
            expected = getattr(left, name)[order]
            scale = np.abs(expected).max()
            atol = scale * (error if name == "direction" else 1e-5)
            np.testing.assert_allclose(getattr(right, name), expected, atol=atol)


def test_memory_does_not_change_rows(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        **PAPER,
        "projector": ProjectorSpec(proj_dim=64, block_size=8, precision="float32"),
        "shard_samples": 2,
        "engine": "streaming",
    }

    def run(name: str, memory: float) -> Store:
        path = tmp_path / f"{name}.gradstore"
        return collect(world.train, world.checkpoints, path, memory=memory, **options)

    ample = run("ample", 1)
    assert not caplog.text
    tight = run("tight", 2.3e-4)
    assert "redrawn for every buffer" in caplog.text
    for name, expected in contents(ample).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(contents(tight)[name], expected, atol=2e-3 * scale)
    with pytest.raises(ConfigError, match=r"--memory is 0\.0001 GiB, but .*Give --memory 0\.01"):
        run("tighter", 1e-4)
    assert not (tmp_path / "tighter.gradstore").exists()


def test_the_loop_engine_gives_the_same_rows(
    world: World, tmp_path: Path, reference: Store
) -> None:
    looped = collect(
        world.train, world.checkpoints, tmp_path / "a.gradstore", engine=LoopEngine, **SMALL
    )
    for name, expected in contents(reference).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(contents(looped)[name], expected, atol=2e-3 * scale)


def test_several_stores_from_one_pass(world: World, tmp_path: Path, reference: Store) -> None:
    sparse = ProjectorSpec(projector="sjlt", proj_dim=32)
    alone = collect(
        world.train,
        world.checkpoints,
        tmp_path / "alone.gradstore",
        **{**SMALL, "projector": sparse},
    )
    paths = {tmp_path / "a.gradstore": SMALL["projector"], tmp_path / "b.gradstore": sparse}
    both: dict[str, Any] = {**PAPER, "shard_samples": 2}
    with pytest.raises(_Killed):
        collect_each(world.train, world.checkpoints, paths, executor=_Dies(3), **both)
    # First one of the two resumes alone, then both; only missing shards are written.
    collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    before = files(tmp_path / "a.gradstore")
    dense, found = collect_each(world.train, world.checkpoints, paths, **both)
    assert files(tmp_path / "a.gradstore") == before
    for store, expected in ((dense, reference), (found, alone)):
        assert store.missing() == []
        for name, array in contents(expected).items():
            np.testing.assert_array_equal(contents(store)[name], array)


def test_stores_of_different_shards_are_not_filled_together(world: World, tmp_path: Path) -> None:
    paths = {tmp_path / f"{name}.gradstore": ProjectorSpec(proj_dim=64) for name in "ab"}
    collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    with pytest.raises(ConfigError, match=r"shards of different sizes .*a\.gradstore: 2.*: 3"):
        collect_each(world.train, world.checkpoints, paths, shard_samples=3, **PAPER)
    assert not (tmp_path / "b.gradstore").exists()


def test_only_chosen_parameters(world: World, tmp_path: Path, reference: Store) -> None:
    chosen = GradientSpec(params="attentions")
    path = tmp_path / "a.gradstore"
    store = collect(world.train, world.checkpoints, path, gradients=chosen, **SMALL)
    identity: Any = store.spec.identity
    everything: Any = reference.spec.identity
    assert identity["model"]["num_parameters"] < everything["model"]["num_parameters"]
    assert (store.rows(0).norm < reference.rows(0).norm).all()
    with pytest.raises(FingerprintError, match=r"model\.num_parameters"):
        collect(world.train, world.checkpoints, path, **SMALL)
    with pytest.raises(ConfigError, match="found in none"):
        collect(
            world.train,
            world.checkpoints,
            tmp_path / "b.gradstore",
            gradients=GradientSpec(params="lora"),
            **SMALL,
        )


def test_a_store_is_finished_as_it_was_begun(world: World, tmp_path: Path) -> None:
    """Engine and batch size are kept, so that rows do not depend on the interruption."""
    options: dict[str, Any] = {**SMALL, "dtype": "float32"}
    whole = collect(
        world.train,
        world.checkpoints,
        tmp_path / "a.gradstore",
        engine="vmap",
        batch_size=2,
        **options,
    )
    path = tmp_path / "b.gradstore"
    with pytest.raises(_Killed):
        collect(
            world.train,
            world.checkpoints,
            path,
            engine="vmap",
            batch_size=2,
            executor=_Dies(3),
            **options,
        )
    assert open_store(path).spec.parts[0].made_by["engine"] == "vmap"
    assert open_store(path).spec.parts[0].made_by["events"] == 2
    resumed = collect(world.train, world.checkpoints, path, **options)
    for name, expected in contents(whole).items():
        np.testing.assert_array_equal(contents(resumed)[name], expected)


def test_ranks_make_the_store_together(world: World, tmp_path: Path, reference: Store) -> None:
    path = tmp_path / "a.gradstore"
    # Eight tasks in three contiguous parts: 2, 3 and 3.
    for left, rank in ((5, 2), (3, 0), (0, 1)):
        part = collect(world.train, world.checkpoints, path, executor=ByRank(rank, 3), **SMALL)
        assert len(part.missing()) == left
    assert part.missing() == []
    for name, expected in contents(reference).items():
        np.testing.assert_array_equal(contents(part)[name], expected)


class _Killed(BaseException):
    pass


class _Dies(InProcess):
    """Does some tasks, then dies during the next one."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, tasks: Sequence[Task], work: Any) -> None:
        for task in tasks[: self.after]:
            work(task)
        raise _Killed


def test_collecting_goes_on_where_it_stopped(
    world: World, tmp_path: Path, reference: Store
) -> None:
    path = tmp_path / "a.gradstore"
    with pytest.raises(_Killed):
        collect(world.train, world.checkpoints, path, executor=_Dies(3), **SMALL)
    sealed = files(path / "seals")
    assert len(open_store(path).missing()) == 5
    resumed = collect(world.train, world.checkpoints, path, **SMALL)
    assert resumed.missing() == []
    assert sealed.items() <= files(path / "seals").items()
    for name, expected in contents(reference).items():
        np.testing.assert_array_equal(contents(resumed)[name], expected)
    before = files(path)
    collect(world.train, world.checkpoints, path, **SMALL)
    assert files(path) == before


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_any_prediction_type(world: World, tmp_path: Path, kind: str) -> None:
    scheduler = DDIMScheduler(prediction_type=kind)
    folder = save_checkpoint(tmp_path / "c", scheduler=scheduler)
    store = collect(world.train, [folder], tmp_path / "a.gradstore", **SMALL)
    assert (store.rows(0).norm > 0).all()


def test_a_class_conditional_model(world: World, tmp_path: Path) -> None:
    model = unet(0, num_class_embeds=3)
    folder = save_checkpoint(tmp_path / "c", model=model)
    items = [(world.train.image(row), row % 3) for row in range(7)]
    store = collect(Samples(items, ids=NAMES), [folder], tmp_path / "a.gradstore", **SMALL)
    others = [(image, (label + 1) % 3) for image, label in items]
    moved = collect(Samples(others, ids=NAMES), [folder], tmp_path / "b.gradstore", **SMALL)
    assert (np.abs(store.rows(0).norm - moved.rows(0).norm) > 0).all()
    bare = Samples([world.train.image(row) for row in range(7)], ids=NAMES)
    with pytest.raises(DatasetError, match=r"conditioned on class numbers 0 … 2.*--label-column"):
        collect(bare, [folder], tmp_path / "c.gradstore", **SMALL)


def test_samples_of_any_shape(tmp_path: Path) -> None:
    """A user-defined model on vectors, with a user-defined objective."""

    class Shrink(DiffusionLoss):
        def losses(self, model: Any, inputs: Tensor, timesteps: Tensor, *rest: Any) -> Tensor:
            return super().losses(
                lambda x, t: model(x.reshape(-1, 1, 8, 8), t).sample.reshape(len(x), -1),
                inputs,
                timesteps,
                *rest,
            )

    folder = save_checkpoint(tmp_path / "c")
    vectors = Samples(torch.rand(7, 64, generator=torch.Generator().manual_seed(0)), ids=NAMES)
    objective = Shrink(DDIMScheduler(), "l2")
    store = collect(vectors, [folder], tmp_path / "a.gradstore", objective=objective, **SMALL)
    assert (store.rows(0).norm > 0).all()


def test_a_zero_gradient_has_direction_zero(world: World, tmp_path: Path) -> None:
    class Constant(DiffusionLoss):
        def losses(self, *args: Any) -> Tensor:
            return super().losses(*args) * 0

    objective = Constant(DDIMScheduler())
    store = collect(
        world.train, world.checkpoints, tmp_path / "a.gradstore", objective=objective, **SMALL
    )
    assert (store.rows(0).norm == 0).all()
    assert (store.rows(0).direction == 0).all()


def test_tiny_and_huge_gradients_have_unit_directions(world: World, tmp_path: Path) -> None:
    class Scaled(DiffusionLoss):
        factor = 1.0

        def losses(self, *args: Any) -> Tensor:
            return super().losses(*args) * self.factor

    for number, factor in enumerate((1e-25, 1e25)):
        objective = Scaled(DDIMScheduler())
        objective.factor = factor
        store = collect(
            world.train,
            world.checkpoints[:1],
            tmp_path / f"{number}.gradstore",
            objective=objective,
            **SMALL,
        )
        lengths = np.linalg.norm(store.rows(0).direction.astype(np.float64), axis=2)
        assert (np.abs(lengths**2 - 1) < 1).all()


def test_a_gradient_that_is_not_finite_is_named(world: World, tmp_path: Path) -> None:
    class Breaks(DiffusionLoss):
        def losses(self, model: Any, inputs: Tensor, *rest: Any) -> Tensor:
            # The fourth image is the only one with this corner.
            broken = (inputs[:, 0, 0, 0] == corner).to(inputs.dtype)
            return super().losses(model, inputs, *rest) / (1 - broken)

    corner = world.train[3].tensor[0, 0, 0].item()
    path = tmp_path / "a.gradstore"
    with pytest.raises(GradientError, match=r"'image-3', timestep \d+, at checkpoint .*epoch-01"):
        collect(
            world.train, world.checkpoints, path, objective=Breaks(DDIMScheduler(), "l1"), **SMALL
        )
    assert open_store(path).parts[0].sealed(0) == {0}


def test_a_changed_dataset_is_refused_and_nothing_lost(
    world: World, tmp_path: Path, reference: Store
) -> None:
    path = Path(shutil.copytree(reference.path, tmp_path / "a.gradstore"))
    before = files(path)
    changed = [(world.train.image(row), world.train[row].label) for row in range(7)]
    changed[6] = (images(1, seed=8)[0], 0)
    for dataset, message in (
        (Samples(changed, ids=NAMES), "content of sample 'image-6' differs"),
        (Samples(changed[:6], ids=NAMES[:6]), "had 7 samples and now has 6"),
    ):
        with pytest.raises(DatasetError, match=message):
            collect(dataset, world.checkpoints, path, **SMALL)
    assert files(path) == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_do_not_depend_on_the_callers_mode(
    world: World, tmp_path: Path, reference: Store, mode: Any
) -> None:
    with mode():
        made = collect(world.train, world.checkpoints, tmp_path / "a.gradstore", **SMALL)
    for name, expected in contents(reference).items():
        np.testing.assert_array_equal(contents(made)[name], expected)


def test_norms_of_long_gradients_are_exact() -> None:
    """A float32 sum over this many squares is too small by 2e-4."""
    piece = torch.randn(2, 1 << 23, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.vector_norm(piece.double(), dim=1)
    torch.testing.assert_close(differentiating._norms(piece), exact, rtol=1e-6, atol=0)


def test_norms_count_what_is_left_of_whole_segments() -> None:
    piece = torch.ones(2, differentiating._SEGMENT + 3)
    piece[:, -3:] = 1000
    exact = torch.linalg.vector_norm(piece.double(), dim=1)
    torch.testing.assert_close(differentiating._norms(piece), exact, rtol=1e-6, atol=0)


class _WrongLater:
    """Right for the weights of one checkpoint, wrong for those of another."""

    def __init__(self, model: Any, objective: Any) -> None:
        self._engine = VmapEngine(model, objective)
        self._wrong = float(next(model.parameters()).detach().sum())

    right: float | None = None

    def __call__(self, batch: Any, receive: Any) -> Any:
        if _WrongLater.right is None:
            _WrongLater.right = self._wrong

        def altered(start: int, piece: torch.Tensor) -> None:
            if self._wrong != _WrongLater.right:
                piece = piece.clone()
                piece[:, :4] *= 1.5
            receive(start, piece)

        return self._engine(batch, altered)


def test_every_checkpoint_is_held_to_one_backward_pass(world: World, tmp_path: Path) -> None:
    path = tmp_path / "a.gradstore"
    with pytest.raises(EngineError, match=r"epoch-02: engine _WrongLater does not match"):
        collect(world.train, world.checkpoints, path, **{**SMALL, "engine": _WrongLater})
    assert {k for k, *_ in open_store(path).missing()} == {1}


def test_an_engine_is_tried_on_different_timesteps(world: World) -> None:
    plan = PlannedEvents(EventSpec(timesteps=3), 1000)
    model = load(world.checkpoints[0]).model
    batch = batches.trial(world.train, plan, 0, model, torch.device("cpu"), rows=5)
    assert len(set(batch.timesteps[:3].tolist())) == 3
    assert not torch.equal(batch.inputs[0], batch.inputs[1])
