"""Rows in a metric are what its definition says, for training samples and queries."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from copy import deepcopy
from hashlib import sha256
from itertools import count
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor, nn

import gradstore as gs
from gradstore.collect import DiffusionLoss, InProcess, Recorder, Task
from gradstore.collect.engines.streaming import StreamingEngine
from gradstore.collect.events.planned import PlannedEvents
from gradstore.collect.metrics import Whitening
from gradstore.collect.models.loaders import load
from gradstore.collect.models.optimizer import load_moments
from gradstore.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    FingerprintError,
    GradientError,
)
from gradstore.store.format.spec import EventSpec, GradientSpec, MetricSpec
from gradstore.store.writer import write_shard
from tests.support import naive_metrics as naive
from tests.support.worlds import NAMES, World, images, unet
from tests.support.written_stores import edit_root

SCHEDULER = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
OBJECTIVE = DiffusionLoss(SCHEDULER, "l1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that Adam trained for some steps, with its optimiser's state."""
    folder = tmp_path_factory.mktemp("trained") / "epoch-01"
    model = unet(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn = torch.randn(8, 1, 8, 8, generator=generator)
        times = torch.randint(0, 1000, (8,), generator=generator)
        optimizer.zero_grad()
        noise = torch.randn(8, 1, 8, 8, generator=generator)
        OBJECTIVE.losses(model, drawn, times, noise, {}).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    DDIMPipeline(model, SCHEDULER).save_pretrained(folder)
    Recorder(0, 1000).save(
        folder, ids=NAMES, epoch=1, learning_rate_sum=0.1, loss="l1", optimizer=optimizer,
        model=model,
    )  # fmt: skip
    torch.save(optimizer.state_dict(), folder.parent / "state.bin")
    return folder


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """A later checkpoint, without an optimiser's state."""
    folder = tmp_path / "epoch-02"
    DDIMPipeline(unet(2), SCHEDULER).save_pretrained(folder)
    Recorder(0, 1000).save(folder, ids=NAMES, epoch=2, learning_rate_sum=0.3, loss="l1")
    return folder


def require_true_scores(store: gs.Store, asked: gs.Store, world: World) -> None:
    """Full gradients, computed anew, give the scores of unprojected rows."""
    found = gs.search(store, asked, 7, measure="tracin")
    again = gs.rerank(
        found, gs.Features.of(store, "tracin"), 7,
        gs.Sources(train=world.train, queries=world.queries),
    )  # fmt: skip
    np.testing.assert_allclose(
        again.proponents.scores, found.proponents.scores,
        atol=1e-3 * np.abs(found.proponents.scores).max(),
    )  # fmt: skip


def flat(gradients: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([one.flatten() for one in gradients.values()]).numpy()


class Naive:
    """A checkpoint's gradients, mapped by definition. A row is the mean over its draws."""

    def __init__(self, folder: Path, name: str, train: gs.Samples) -> None:
        self.model = load(folder).model
        self.name, self.folder = name, folder
        plan = PlannedEvents(EventSpec(events="planned", timesteps=10), 1000, "metric")
        self.events = [
            event
            for row, sample in enumerate(train.ids)
            for event in naive.differentiated(
                self.model, OBJECTIVE, train[row].tensor, plan.at(0, [sample])
            )
        ]
        layers = dict(self.model.named_modules())
        self.maps = {}
        if name == "kfac":
            for layer_name, layer in layers.items():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    matrices = naive.layer_matrices(layer, layer_name, self.events)
                    self.maps[layer_name] = layer, [naive.power(one) for one in matrices]
        self.scale = self._scale()

    def _scale(self) -> dict[str, Tensor]:
        if self.name == "adam":
            return self._steps()
        owned = {f"{name}.{kind}" for name in self.maps for kind in ("weight", "bias")}
        moments = {}
        for name in self.events[0].gradients:
            every = [self._rotated(event.gradients)[name] for event in self.events]
            moments[name] = torch.stack(every).square().mean(0)
        means = {name: one.mean() for name, one in moments.items()}
        if self.name == "fisher":
            total = torch.cat([one.flatten() for one in moments.values()]).mean()
            means = dict.fromkeys(moments, total)
        return {
            name: torch.ones_like(one)
            if self.name == "kfac" and name in owned
            else (one + naive.DAMPING * means[name]) ** -0.5
            for name, one in moments.items()
        }

    def _steps(self) -> dict[str, Tensor]:
        state = torch.load(self.folder.parent / "state.bin", weights_only=True)["state"]
        steps = {}
        for (name, _), one in zip(self.model.named_parameters(), state.values(), strict=True):
            corrected = one["exp_avg_sq"].double() / (1 - 0.99 ** float(one["step"]))
            steps[name] = 1 / (corrected.sqrt() + 1e-8)
        for name in naive.without_gradient(self.events):
            steps[name] *= 0
        every = np.sort(flat(steps))
        return {
            name: one.clamp(max=every[int(0.99 * len(every)) - 1]) for name, one in steps.items()
        }

    def _rotated(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        gradients = dict(gradients)
        for name, (layer, maps) in self.maps.items():
            naive.mapped(layer, name, gradients, maps)
        return gradients

    def row(self, gradients: dict[str, Tensor]) -> np.ndarray:
        mapped = self._rotated(gradients)
        return flat({name: one * self.scale[name] for name, one in mapped.items()})

    def rows(self, samples: gs.Samples, timesteps: int, draws: int, role: str) -> list[np.ndarray]:
        """Raw and mapped gradients, `[samples, slots, parameters]`."""
        spec = EventSpec(events="planned", timesteps=timesteps, draws=draws)
        plan = PlannedEvents(spec, 1000, role)  # type: ignore[arg-type]
        found = [
            [
                event.gradients
                for event in naive.differentiated(
                    self.model, OBJECTIVE, samples[row].tensor, plan.at(0, [name])
                )
            ]
            for row, name in enumerate(samples.ids)
        ]
        return [
            np.array([[kind(one) for one in sample] for sample in found])
            for kind in (flat, self.row)
        ]


@pytest.mark.parametrize("metric", ["adam", "fisher", "kfac"])
@pytest.mark.parametrize("draws", [1, 3])
def test_rows_are_what_the_definition_says(
    trained: Path, world: World, tmp_path: Path, metric: str, draws: int
) -> None:
    exact = Naive(trained, metric, world.train)
    options: Any = {"projector": "identity", "dtype": "float32", "batch_size": 2, "quiet": True}
    events = EventSpec(events="planned", timesteps=2, draws=draws)
    store = gs.collect(
        world.train, [trained], tmp_path / "train.gradstore", metric=metric, events=events,
        **options,
    )  # fmt: skip
    queries = gs.collect_queries(
        store, world.queries, tmp_path / "asked.gradstore", events=events, dtype="float32",
        batch_size=2,
    )  # fmt: skip
    for found, samples, role in ((store, world.train, "train"), (queries, world.queries, "query")):
        raw, mapped = exact.rows(samples, 2, draws, role)
        rows = found.rows(0)
        whole = rows.direction * rows.norm[:, :, None]
        np.testing.assert_allclose(whole, mapped, atol=2e-3 * np.abs(mapped).max())
        assert rows.raw_norm is not None
        np.testing.assert_allclose(rows.norm, np.linalg.norm(mapped, axis=2), rtol=2e-3)
        np.testing.assert_allclose(rows.raw_norm, np.linalg.norm(raw, axis=2), rtol=1e-4)
        np.testing.assert_array_equal(found.column("raw_norm", 0), rows.raw_norm)


def test_ekfac_is_what_its_definition_says_in_the_basis_that_it_found(
    trained: Path, world: World, tmp_path: Path
) -> None:
    """Eigenvectors of close eigenvalues are not unique, so the basis is checked by itself."""
    events = EventSpec(events="planned", timesteps=2)
    store = gs.collect(
        world.train, [trained], tmp_path / "train.gradstore", metric="ekfac", events=events,
        projector="identity", dtype="float32",
    )  # fmt: skip
    (file,) = (store.path / "metrics").iterdir()
    fit = Whitening.parse(file.read_bytes(), where=str(file))
    exact = Naive(trained, "kfac", world.train)
    for name, (layer, _) in exact.maps.items():
        own = fit.factors[name]
        sides = [one for one in (own.outputs, own.inputs, own.taps) if one is not None]
        for side, matrix in zip(
            sides, naive.layer_matrices(layer, name, exact.events), strict=True
        ):
            turned = side.double() @ matrix @ side.double().T
            off = turned - torch.diag(turned.diagonal())
            assert off.abs().max() <= 1e-4 * turned.diagonal().max()
            identity = torch.eye(len(side), dtype=torch.float64)
            torch.testing.assert_close(side.double() @ side.double().T, identity, atol=1e-5, rtol=0)
        exact.maps[name] = layer, [side.double() for side in sides]
    exact.name = "ekfac"
    exact.scale = exact._scale()
    _, mapped = exact.rows(world.train, 2, 1, "train")
    rows = store.rows(0)
    whole = rows.direction * rows.norm[:, :, None]
    np.testing.assert_allclose(whole, mapped, atol=2e-3 * np.abs(mapped).max())


@pytest.mark.parametrize("metric", ["adam", "fisher"])
def test_every_engine_gives_the_same_rows(
    trained: Path, world: World, tmp_path: Path, metric: str
) -> None:
    found = [
        gs.collect(
            world.train, [trained], tmp_path / f"{engine}.gradstore", metric=metric,
            events="planned", engine=engine, projector="sjlt", dtype="float32",
        ).rows(0)
        for engine in ("streaming", "vmap", "loop")
    ]  # fmt: skip
    for other in found[1:]:
        np.testing.assert_allclose(other.norm, found[0].norm, rtol=1e-3)
        np.testing.assert_allclose(other.direction, found[0].direction, atol=1e-3)


def test_factors_need_the_streaming_engine(trained: Path, world: World, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        gs.collect(
            world.train, [trained], tmp_path / "x.gradstore", metric="kfac", engine="loop",
            events="planned",
        )  # fmt: skip
    assert not (tmp_path / "x.gradstore").exists()


def test_a_metric_is_fitted_once(trained: Path, world: World, tmp_path: Path) -> None:
    options: Any = {"events": "planned", "projector": "sjlt", "metric": "kfac"}
    store = gs.collect(world.train, [trained], tmp_path / "a.gradstore", **options)
    fits = sorted((tmp_path / "a.gradstore" / "metrics").iterdir())
    assert [one.stem for one in fits] == [store.spec.checkpoints[0].metric]
    more = gs.Samples(images(3, seed=5), ids=["x", "y", "z"])
    grown = gs.append(more, store)
    assert sorted((tmp_path / "a.gradstore" / "metrics").iterdir()) == fits
    alone = gs.collect(more, [trained], tmp_path / "b.gradstore", **options)
    assert not np.allclose(grown.rows(0, 7, 10).norm, alone.rows(0).norm, rtol=1e-2)


def test_stores_of_other_metrics_are_not_compared(
    trained: Path, world: World, tmp_path: Path
) -> None:
    def made(metric: str) -> gs.Store:
        return gs.collect(
            world.train, [trained], tmp_path / f"{metric}.gradstore", events="planned",
            projector="sjlt", metric=metric,
        )  # fmt: skip

    plain, adam, fisher = made("none"), made("adam"), made("fisher")
    asked = gs.collect_queries(adam, world.queries, tmp_path / "asked.gradstore")
    assert len(gs.search(adam, asked, 2, measure="retrac").proponents.scores) == 3
    for other in (plain, fisher):
        with pytest.raises(FingerprintError):
            gs.search(other, asked, 2, measure="retrac")
    with pytest.raises(FingerprintError):
        gs.collect(
            world.train, [trained], tmp_path / "none.gradstore", events="planned",
            projector="sjlt", metric="adam",
        )  # fmt: skip


def test_a_damaged_fit_is_not_used(trained: Path, world: World, tmp_path: Path) -> None:
    store = gs.collect(
        world.train, [trained], tmp_path / "a.gradstore", events="planned", metric="fisher",
        projector="sjlt",
    )  # fmt: skip
    (file,) = (store.path / "metrics").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(gs.StoreError):
        gs.collect_queries(store, world.queries, tmp_path / "asked.gradstore")
    with pytest.raises(gs.StoreError):
        list(gs.verify(store))


def test_a_fit_of_another_model_is_not_used(trained: Path, world: World, tmp_path: Path) -> None:
    store = gs.collect(
        world.train, [trained], tmp_path / "a.gradstore", events="planned", metric="fisher",
        projector="sjlt",
    )  # fmt: skip
    (file,) = (store.path / "metrics").iterdir()
    content = Whitening(torch.ones(3)).content()
    name = f"{sha256(content).hexdigest()}.0"
    file.with_name(f"{name}.safetensors").write_bytes(content)

    def other_fit(root: Any) -> None:
        root["checkpoints"][0]["metric"] = name

    edit_root(store.path, other_fit)
    with pytest.raises(gs.StoreError, match="is not one of this model"):
        gs.collect_queries(store, world.queries, tmp_path / "asked.gradstore")


def test_rows_of_another_fit_are_not_compared(trained: Path, world: World, tmp_path: Path) -> None:
    """A store that was collected again may name another fit than its queries went through."""
    store = gs.collect(
        world.train, [trained], tmp_path / "a.gradstore", events="planned", metric="fisher",
        projector="sjlt",
    )  # fmt: skip
    asked = gs.collect_queries(store, world.queries, tmp_path / "asked.gradstore")
    fit = store.spec.checkpoints[0].metric_sha256
    assert {one.seal(0, 0).metric for one in (*store.parts, *asked.parts)} == {fit}
    edit_root(store.path, lambda root: root["checkpoints"][0].update(metric="0" * 64 + ".0"))
    with pytest.raises(FingerprintError, match="another fit of the metric"):
        gs.search(store.path, asked, 2, measure="retrac")
    with pytest.raises(gs.StoreError, match="another fit of the metric"):
        gs.open_store(store.path).rows(0)


def test_a_query_store_is_not_fitted_to_queries(
    trained: Path, world: World, tmp_path: Path
) -> None:
    store = gs.collect(
        world.train, [trained], tmp_path / "a.gradstore", events="planned", metric="fisher",
        projector="sjlt",
    )  # fmt: skip
    asked = gs.collect_queries(store, world.queries, tmp_path / "asked.gradstore")
    more = gs.Samples(images(2, seed=8), ids=["x", "y"])
    with pytest.raises(gs.GradstoreError):
        gs.append(more, asked)


def test_a_checkpoint_that_is_added_gets_its_own_fit(
    trained: Path, later: Path, world: World, tmp_path: Path
) -> None:
    options: Any = {"events": "planned", "projector": "sjlt", "metric": "kfac", "dtype": "float32"}
    grown = gs.collect(world.train, [trained], tmp_path / "a.gradstore", **options)
    grown = gs.add_checkpoint(grown, later, datasets=[world.train])
    whole = gs.collect(world.train, [trained, later], tmp_path / "b.gradstore", **options)
    assert [one.metric for one in grown.spec.checkpoints] == [
        one.metric for one in whole.spec.checkpoints
    ]
    np.testing.assert_allclose(grown.rows(1).norm, whole.rows(1).norm, rtol=1e-4)
    gs.collect_queries(grown, world.queries, tmp_path / "asked.gradstore")
    left = gs.vacuum(gs.drop_checkpoint(grown, 0))
    assert [one.stem for one in (left.path / "metrics").iterdir()] == [
        left.spec.checkpoints[0].metric
    ]


def test_a_checkpoint_that_is_added_goes_through_one_fit(
    trained: Path, later: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted call may have sealed shards of another fit; here a seal is changed so."""
    store = gs.collect(
        world.train, [trained], tmp_path / "a.gradstore", events="planned", metric="fisher",
        projector="sjlt", shard_samples=2,
    )  # fmt: skip
    written = count()

    def write(*given: Any, **named: Any) -> None:
        if next(written) == 1:
            raise KeyboardInterrupt
        write_shard(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr("gradstore.collect.pipeline.worker.write_shard", write)
        with pytest.raises(KeyboardInterrupt):
            gs.add_checkpoint(store, later, datasets=[world.train])
    (seal,) = (store.path / "seals/1").iterdir()
    text = seal.read_text()
    own = gs.open_store(store.path).parts[0].seal(1, int(seal.stem)).metric
    assert own is not None
    seal.write_text(text.replace(own, "0" * 64))
    added = gs.add_checkpoint(store, later, datasets=[world.train])
    assert {report.problem for report in gs.verify(added)} == {None}
    assert added.parts[0].metrics(1) == {added.spec.checkpoints[1].metric_sha256}


def test_true_gradients_are_in_the_metric(trained: Path, world: World, tmp_path: Path) -> None:
    store = gs.collect(
        world.train, [trained], tmp_path / "a.gradstore", events="planned", metric="kfac",
        projector="identity", dtype="float32",
    )  # fmt: skip
    asked = gs.collect_queries(store, world.queries, tmp_path / "asked.gradstore", dtype="float32")
    require_true_scores(store, asked, world)


def test_the_states_of_other_trainers_are_read_or_refused(
    trained: Path, world: World, tmp_path: Path
) -> None:
    model = load(trained).model
    folder = tmp_path / "checkpoint-500" / "unet"
    model.save_pretrained(folder)
    own = load_moments(trained, model)
    state = torch.load(trained.parent / "state.bin", weights_only=True)
    torch.save(state, folder.parent / "optimizer.bin")
    for name, (moment, epsilon) in load_moments(folder, model).items():
        torch.testing.assert_close(moment, own[name][0])
        assert epsilon == own[name][1]
    wrong = deepcopy(state)
    wrong["state"] = {number: {"state1": torch.zeros(3)} for number in wrong["state"]}
    fewer = deepcopy(state)
    fewer["param_groups"][0]["params"] = fewer["param_groups"][0]["params"][:-1]
    other = deepcopy(state)
    other["state"][0]["exp_avg_sq"] = torch.zeros(2)
    for bad in (wrong, fewer, other, {"no": "state"}):
        torch.save(bad, folder.parent / "optimizer.bin")
        with pytest.raises(CheckpointError):
            load_moments(folder, model)
    (folder.parent / "optimizer.bin").unlink()
    with pytest.raises(CheckpointError):
        load_moments(folder, model)


def test_an_unknown_metric_is_refused(trained: Path, world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        gs.collect(world.train, [trained], tmp_path / "x.gradstore", metric="hessian")
    with pytest.raises(ConfigError):
        MetricSpec(damping=0)


def test_several_stores_and_later_ones_share_what_they_name(
    trained: Path, world: World, tmp_path: Path
) -> None:
    """With models that stay in memory, too: each store names the fit that its rows went through."""
    held = gs.CheckpointCache([trained])
    options: Any = {"events": "planned", "metric": "ekfac"}
    both = gs.collect_each(
        world.train, held, {tmp_path / name: "sjlt" for name in ("a.gradstore", "b.gradstore")},
        **options,
    )  # fmt: skip
    assert both[0].spec.checkpoints[0].metric == both[1].spec.checkpoints[0].metric
    third = gs.collect(world.train, held, tmp_path / "c.gradstore", projector="sjlt", **options)
    for number, store in enumerate([*both, third]):
        assert {file.stem for file in (store.path / "metrics").iterdir()} == {
            store.spec.checkpoints[0].metric
        }
        asked = gs.collect_queries(
            store, world.queries, tmp_path / f"asked-{number}.gradstore", checkpoints=held
        )
        assert np.isfinite(gs.search(store, asked, 2, measure="retrac").proponents.scores).all()


def test_a_checkpoint_that_is_not_finite_is_named(
    trained: Path, world: World, tmp_path: Path
) -> None:
    model = load(trained).model
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    folder = tmp_path / "epoch-01"
    DDIMPipeline(model, SCHEDULER).save_pretrained(folder)
    for metric in ("fisher", "kfac"):
        with pytest.raises((GradientError, EngineError)):
            gs.collect(
                world.train, [folder], tmp_path / f"{metric}.gradstore", events="planned",
                metric=metric, projector="sjlt", objective="l2",
            )  # fmt: skip


def test_some_parameters_in_the_metric_of_a_foreign_state(
    trained: Path, world: World, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "epoch-01"))
    (folder / "adam.safetensors").unlink()
    shutil.copy(trained.parent / "state.bin", folder / "optimizer.bin")
    options: Any = {
        "events": "planned", "projector": "identity", "metric": "adam", "dtype": "float32",
        "gradients": GradientSpec(params="conv_in"),
    }  # fmt: skip
    found = [
        gs.collect(world.train, [one], tmp_path / f"{number}.gradstore", **options).rows(0)
        for number, one in enumerate((trained, folder))
    ]
    np.testing.assert_array_equal(found[0].direction, found[1].direction)


def test_queries_after_a_checkpoint_was_dropped(
    trained: Path, later: Path, world: World, tmp_path: Path
) -> None:
    store = gs.collect(
        world.train, [trained, later], tmp_path / "a.gradstore", events="planned", metric="kfac",
        projector="identity", dtype="float32",
    )  # fmt: skip
    store = gs.drop_checkpoint(store, 0)
    asked = gs.collect_queries(store, world.queries, tmp_path / "q.gradstore", dtype="float32")
    require_true_scores(store, asked, world)


class Alternating(InProcess):
    """Goes from checkpoint to checkpoint, shard by shard."""

    def share(self, tasks: Sequence[Task]) -> Sequence[Task]:
        return sorted(tasks, key=lambda task: (task.shard, task.checkpoint))


def test_rows_do_not_depend_on_the_order_of_checkpoints(
    trained: Path, later: Path, world: World, tmp_path: Path
) -> None:
    options: Any = {
        "events": "planned", "projector": "sjlt", "metric": "kfac", "shard_samples": 2,
    }  # fmt: skip
    stores = [
        gs.collect(
            world.train, [trained, later], tmp_path / f"{number}.gradstore", executor=executor,
            **options,
        )
        for number, executor in enumerate((InProcess(), Alternating()))
    ]  # fmt: skip
    for checkpoint in range(2):
        found, expected = (store.rows(checkpoint) for store in stores)
        np.testing.assert_array_equal(found.direction, expected.direction)


def test_factors_use_the_streaming_engine_also_where_another_is_faster(
    trained: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradstore.collect.pipeline.prepare._TIMED_EVENTS", 1)
    fast = StreamingEngine.__call__

    def slow(self: Any, *given: Any) -> Tensor:
        sleep(0.2)
        return fast(self, *given)

    monkeypatch.setattr(StreamingEngine, "__call__", slow)
    events = EventSpec(events="planned", timesteps=1)
    options: Any = {"events": events, "projector": "sjlt", "batch_size": 8}
    plain, mapped = (
        gs.collect(
            world.train, [trained], tmp_path / f"{metric}.gradstore", metric=metric, **options
        )
        for metric in ("none", "kfac")
    )
    engines = [store.spec.parts[0].made_by["engine"] for store in (plain, mapped)]
    assert engines == ["vmap", "streaming"]
