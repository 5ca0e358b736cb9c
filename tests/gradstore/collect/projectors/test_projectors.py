from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from trak.projectors import BasicProjector

from gradstore.collect import (
    CheckpointCache,
    IdentityProjector,
    ProjectorSpec,
    SjltProjector,
    TrakProjector,
)
from gradstore.collect.conformance import check_projector
from gradstore.collect.projectors import signs
from gradstore.collect.projectors.held import HeldProjector
from gradstore.collect.projectors.identity import IdentityProjection
from gradstore.collect.projectors.sjlt import signed_buckets
from gradstore.errors import ConfigError
from tests.support.worlds import World

CPU = torch.device("cpu")
KINDS = ["rademacher", "normal"]


def trak(**options: Any) -> TrakProjector:
    exact = {"proj_dim": 96, "block_size": 40, "precision": "float32"}
    return TrakProjector(ProjectorSpec(**(exact | options)))


def sjlt(**options: Any) -> SjltProjector:
    return SjltProjector(ProjectorSpec(**({"projector": "sjlt", "proj_dim": 96} | options)))


def raw(
    projector: TrakProjector | SjltProjector,
    gradients: torch.Tensor,
    checkpoint: int = 0,
    memory: int = 1 << 30,
) -> torch.Tensor:
    projection = projector.at(checkpoint, gradients.shape[1], CPU, memory)
    buffer = torch.zeros(len(gradients), projection.width, dtype=projection.dtype)
    projection.add(buffer, 0, gradients)
    return projection.finish(buffer)


@pytest.mark.parametrize("kind", KINDS)
def test_projectors_keep_their_promises(kind: str) -> None:
    check_projector(IdentityProjector())
    check_projector(sjlt())
    check_projector(trak(proj_type=kind))
    # Pieces that end inside a block of the bfloat16 product.
    check_projector(
        trak(proj_type=kind, precision="bfloat16"), num_parameters=40_001, tolerance=0.03
    )


def test_the_check_can_fail() -> None:
    class Folding(IdentityProjection):
        def add(self, buffer: torch.Tensor, start: int, gradients: torch.Tensor) -> None:
            super().add(buffer, start, gradients.abs())

    class Forgetful(IdentityProjector):
        def at(self, checkpoint: int, num_parameters: int, *rest: Any) -> Folding:
            return Folding(num_parameters)

    with pytest.raises(AssertionError, match="a projection is linear"):
        check_projector(Forgetful())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_parameters", "proj_dim", "block_size"),
    [(1003, 96, 40), (7, 5, 100), (5000, 128, 128), (60_000, 64, 33), (33_333, 250, 100)],
)
def test_raw_output_is_basic_projectors(
    kind: str, num_parameters: int, proj_dim: int, block_size: int
) -> None:
    gradients = torch.randn(6, num_parameters, generator=torch.Generator().manual_seed(0))
    for checkpoint in (0, 3):
        found = raw(
            trak(proj_dim=proj_dim, block_size=block_size, proj_type=kind, proj_seed=7),
            gradients,
            checkpoint,
        )
        expected = BasicProjector(
            num_parameters, proj_dim, 7, kind, CPU, block_size=block_size, model_id=checkpoint
        ).project(gradients, model_id=checkpoint)
        assert torch.equal(found, expected)


def test_fast_coins_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    continued: list[int] = []
    original = signs._continue

    def spy(out: Any, done: int, lags: Any) -> None:
        continued.append(len(out))
        original(out, done, lags)

    monkeypatch.setattr(signs, "_continue", spy)
    count = 64 * 60_000 + 13
    for seed in (0, 1000, 2**31 - 1):
        coins = torch.empty(count, dtype=torch.int8)
        coins.bernoulli_(p=0.5, generator=torch.Generator().manual_seed(seed))
        bits = np.unpackbits(signs.draw(seed, count), count=count, bitorder="little")
        np.testing.assert_array_equal(bits, coins.numpy() == 0)
    # With another generator in torch, the fast path is not used; torch's own is always correct.
    assert len(continued) == (3 if signs._taps() is not None else 0)


def test_coins_are_torchs_where_the_recurrence_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = signs.draw(5, 64 * 50_000)
    monkeypatch.setattr(signs, "_taps", lambda: np.array([600, 19937]))
    np.testing.assert_array_equal(signs.draw(5, 64 * 50_000), right)
    assert "the slow way" in caplog.text
    monkeypatch.setattr(signs, "_taps", lambda: None)
    np.testing.assert_array_equal(signs.draw(5, 64 * 50_000), right)


@pytest.mark.parametrize("kind", [*KINDS, "sjlt"])
def test_inner_products_keep_expectation_and_variance(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    g, h = torch.nn.functional.normalize(torch.randn(2, 500, generator=generator), dim=1)
    h = torch.nn.functional.normalize(g + h, dim=0)
    found = []
    for seed in range(400):
        if kind == "sjlt":
            left, right = raw(sjlt(proj_dim=64, proj_seed=seed), torch.stack([g, h]))
        else:
            projector = trak(proj_dim=64, block_size=64, proj_type=kind, proj_seed=seed)
            left, right = raw(projector, torch.stack([g, h])) * 64**-0.5
        found.append(float(left @ right))
    # Theory, per dimension: 1 + ⟨g,h⟩² for normal entries, less 2 Σ g²h² for signs and buckets.
    variance = 1 + float(g @ h) ** 2
    if kind != "normal":
        variance -= 2 * float((g**2 * h**2).sum())
    variance /= 64
    error = np.mean(found) - float(g @ h)
    assert abs(error) < 4 * np.sqrt(variance / 400)
    # The standard error of a variance from 400 draws is about √(2/400) = 7%.
    assert np.var(found) == pytest.approx(variance, rel=0.3)


def test_columns_of_a_larger_dimension_are_the_smaller_projection() -> None:
    gradients = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    large, small = raw(trak(proj_dim=120), gradients), raw(trak(proj_dim=60), gradients)
    assert torch.equal(large[:, :60], small)


def test_buckets_are_their_definition() -> None:
    """By definition for a few parameters, and the golden value that old stores depend on."""
    gradients = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3, 96)
    for parameter, bucket in enumerate(signed_buckets(7, 2, 200, 96).tolist()):
        sign = 1 if bucket < 96 else -1
        expected[:, bucket % 96] += sign * gradients[:, parameter]
    torch.testing.assert_close(raw(sjlt(proj_seed=7), gradients, 2), expected)
    assert signed_buckets(7, 2, 5, 96).tolist() == [38, 128, 77, 127, 93]
    assert not np.array_equal(signed_buckets(7, 2, 200, 96), signed_buckets(7, 3, 200, 96))
    assert not np.array_equal(signed_buckets(7, 2, 200, 96), signed_buckets(8, 2, 200, 96))


def test_buckets_and_signs_are_uniform() -> None:
    counts = np.bincount(signed_buckets(0, 0, 96_000, 48), minlength=96)
    # χ² with 95 degrees of freedom exceeds 145 once in a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 145


def test_a_folded_sketch_is_the_smaller_sketch() -> None:
    gradients = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    large, small = raw(sjlt(proj_dim=96), gradients), raw(sjlt(proj_dim=24), gradients)
    torch.testing.assert_close(large.reshape(3, 4, 24).sum(1), small)


def test_bfloat16_adds_the_stated_error() -> None:
    gradients = torch.randn(8, 50_000, generator=torch.Generator().manual_seed(0))
    exact, fast = raw(trak(), gradients), raw(trak(precision="bfloat16"), gradients)
    error = float((fast - exact).norm() / exact.norm())
    assert 0 < error < 0.004


def test_same_bits_in_another_process_with_another_thread_count() -> None:
    code = (
        "import torch; torch.set_num_threads(1);"
        "from gradstore.collect import TrakProjector, ProjectorSpec;"
        "print(*[TrakProjector(ProjectorSpec(proj_dim=96, block_size=40, proj_type=kind))"
        ".identity(1003)['probe'] for kind in ('rademacher', 'normal')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [trak(proj_type=kind).identity(1003)["probe"] for kind in KINDS]


def test_what_identifies_a_matrix_is_in_its_identity() -> None:
    base = trak().identity(100)
    for change in ({"proj_seed": 1}, {"proj_dim": 95}, {"block_size": 41}, {"proj_type": "normal"}):
        assert trak(**change).identity(100) != base


def test_matrices_are_kept_within_memory() -> None:
    projector = trak()
    one = projector.at(0, 10_000, CPU, 1 << 28)
    enough = one.nbytes
    assert enough == one.matrix_nbytes + one.scratch_nbytes
    assert projector.at(0, 10_000, CPU, 1 << 28) is one
    assert projector.at(1, 10_000, CPU, 1 << 28).nbytes == enough + one.matrix_nbytes
    # Another checkpoint's matrix makes room.
    little = one.matrix_nbytes * 3 // 2 + 200_000  # the minimum for a product
    assert projector.at(2, 10_000, CPU, little).nbytes <= little
    assert projector.at(0, 10_000, CPU, little) is not one
    tight = projector.at(5, 10_000, CPU, little - one.matrix_nbytes)
    assert not tight.kept
    assert tight.nbytes < enough


@pytest.mark.parametrize("kind", KINDS)
def test_little_memory_changes_nothing_but_rounding(kind: str) -> None:
    gradients = torch.randn(3, 9001, generator=torch.Generator().manual_seed(0))
    for precision in ("float32", "bfloat16"):
        projector = trak(proj_type=kind, precision=precision)
        torch.testing.assert_close(
            raw(projector, gradients, memory=0), raw(projector, gradients), rtol=1e-3, atol=1e-2
        )


def test_blocks_that_checkpoints_would_share_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"100 blocks;.*Use --block-size 11 or more"):
        trak(proj_dim=1000, block_size=10)
    assert ProjectorSpec(proj_dim=65536).resolved_block_size == 1024
    TrakProjector(ProjectorSpec(proj_dim=65536))


def test_buckets_stay_with_the_models(world: World) -> None:
    """They are made once for all questions, at any memory budget."""
    kept = CheckpointCache(world.checkpoints)
    gradient = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1000))).float()

    def sketch(projector: HeldProjector | SjltProjector, checkpoint: int) -> torch.Tensor:
        made = projector.at(checkpoint, 1000, CPU, 1 << 30)
        buffer = torch.zeros(2, made.width, dtype=made.dtype)
        made.add(buffer, 0, gradient)
        return made.finish(buffer)

    for checkpoint in (0, 1, 0):
        made = HeldProjector(sjlt(), kept).at(checkpoint, 1000, CPU, 1 << 30)
        assert made is HeldProjector(sjlt(), kept).at(checkpoint, 1000, CPU, 1 << 20)
        assert torch.equal(
            sketch(HeldProjector(sjlt(), kept), checkpoint), sketch(sjlt(), checkpoint)
        )
    one, other = (
        HeldProjector(sjlt(proj_seed=seed), kept).at(0, 1000, CPU, 1 << 30) for seed in (0, 5)
    )
    assert one is not other
