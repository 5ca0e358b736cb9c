"""Devices without float64, such as mps, simulated on the CPU by rejecting float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradstore.collect import EventSpec, ProjectorSpec, collect_each, devices
from gradstore.collect.pipeline.differentiating import _norms
from gradstore.collect.projectors import IdentityProjector
from gradstore.collect.unprojected import Unprojected
from gradstore.store.format.rows import ARRAYS
from gradstore.store.reader import Store
from tests.support.worlds import NAMES, World

PROJECTORS: dict[str, Any] = {
    "trak": ProjectorSpec(proj_dim=64, precision="float32"),
    "normal": ProjectorSpec(proj_dim=64, proj_type="normal", precision="float32"),
    "sjlt": ProjectorSpec(projector="sjlt", proj_dim=64),
    "identity": IdentityProjector(),
}


class NoFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails when float64 is created from another dtype, except on the host.

    The simulated device holds no float64, so float64 there can only come from other dtypes or from
    nothing. A single number is a Python number.
    """

    on_host = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _reals(args, kwargs)
        made = [one for one in _reals(result) if one.dtype == torch.float64]
        others = [one for one in given if one.dtype != torch.float64 and one.ndim]
        if not self.on_host and any(others or (not given and one.ndim) for one in made):
            raise AssertionError(f"{func} makes float64 on a device that has none")
        return result


def _reals(*found: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(found)
    return [one for one in leaves if isinstance(one, torch.Tensor) and one.is_floating_point()]


@pytest.fixture
def without_float64(expected: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with NoFloat64() as mode:  # type: ignore[no-untyped-call]
        real = devices.exact

        def exact(values: torch.Tensor) -> torch.Tensor:
            mode.on_host = True
            try:
                return real(values)
            finally:
                mode.on_host = False

        monkeypatch.setattr(devices, "exact_dtype", lambda device: torch.float32)
        monkeypatch.setattr(devices, "exact", exact)
        yield


def rows(store: Store) -> dict[str, Any]:
    return {
        f"{k}/{name}": getattr(store.rows(k), name)
        for k in range(store.checkpoints)
        for name in ARRAYS
    }


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `road` with float64."""
    return road(world, tmp_path_factory.mktemp("float64"), "loop")


def road(world: World, folder: Path, engine: str, metric: str = "none") -> dict[str, Any]:
    """Rows of each projector, and sums and products of whole gradients."""
    samples = world.train.only(NAMES[:3])
    stores = collect_each(
        samples,
        world.checkpoints,
        {folder / f"{name}.gradstore": projector for name, projector in PROJECTORS.items()},
        # Several noises per row, split over batches.
        events=EventSpec(events="planned", timesteps=2, draws=3),
        batch_size=2,
        metric=metric,
        dtype="float32",
        engine=engine,
    )
    some = Unprojected(stores[0], np.array([0, 2]), samples)
    sums = some.sums(1, np.ones((1, 2, 2), np.float32))
    found = {"sums": sums.numpy(), "products": some.products(1, sums)}
    for name, store in zip(PROJECTORS, stores, strict=True):
        found |= {f"{name}/{key}": array for key, array in rows(store).items()}
    return found


@pytest.fixture(scope="module")
def expected_in_metric(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of `road` in the default metric, with float64."""
    return road(world, tmp_path_factory.mktemp("kfac"), "streaming", "kfac")


@pytest.mark.usefixtures("expected_in_metric", "without_float64")
def test_a_metric_is_fitted_without_float64(
    world: World, tmp_path: Path, expected_in_metric: dict[str, Any]
) -> None:
    found = road(world, tmp_path, "streaming", "kfac")
    for name, array in expected_in_metric.items():
        np.testing.assert_allclose(
            found[name], array, atol=1e-4 * np.abs(array).max(), err_msg=name
        )


@pytest.mark.usefixtures("without_float64")
@pytest.mark.parametrize("engine", ["streaming", "vmap", "loop"])
def test_no_float64_where_there_is_none(
    world: World, tmp_path: Path, expected: dict[str, Any], engine: str
) -> None:
    found = road(world, tmp_path, engine)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(array).max()
        np.testing.assert_allclose(found[name], array, atol=1e-5 * scale, err_msg=name)


@pytest.mark.usefixtures("without_float64")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(2, dtype=torch.float64),
        lambda: torch.ones(2).double(),
        lambda: torch.linalg.vector_norm(torch.ones(2), dtype=torch.float64),
        lambda: devices.exact(torch.ones(2)) * torch.ones(2),
    ],
)
def test_float64_is_caught(make: Any) -> None:
    with pytest.raises(AssertionError, match="makes float64"):
        make()


@pytest.mark.usefixtures("without_float64")
def test_norms_of_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(5, 40_000, generator=generator)
    sizes = torch.tensor([0.0, 1e-30, 1.0, 1e30, 1e-3])
    found = _norms(unit * sizes[:, None]).numpy()
    exact = np.linalg.norm(unit.numpy().astype(np.float64), axis=1) * sizes.numpy().astype(float)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_which_devices_lack_it() -> None:
    assert devices.exact_dtype(torch.device("cpu")) == torch.float64
    assert devices.exact_dtype(torch.device("cuda:1")) == torch.float64
    assert devices.exact_dtype(torch.device("mps")) == torch.float32
    assert devices.exact(torch.ones(2)).dtype == torch.float64
