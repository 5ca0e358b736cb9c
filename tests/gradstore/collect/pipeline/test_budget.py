from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradstore.collect import LoopEngine, ProjectorSpec, SjltProjector, TrakProjector
from gradstore.collect.engines.choice import EngineChoice
from gradstore.collect.pipeline.budget import Budget
from gradstore.errors import ConfigError
from gradstore.store.format.layout import Layout

CPU = torch.device("cpu")


@given(
    total=st.integers(1 << 10, 1 << 36),
    fixed=st.integers(0, 1 << 30),
    per_event=st.integers(1, 1 << 30),
    wanted=st.integers(1, 256),
    draws=st.integers(1, 64),
    parameters=st.integers(1, 1 << 26),
    dim=st.integers(1, 1 << 14),
    samples=st.integers(1, 10_000),
    sparse=st.booleans(),
)
def test_a_budget_is_never_overspent(
    *,
    total: int,
    fixed: int,
    per_event: int,
    wanted: int,
    draws: int,
    parameters: int,
    dim: int,
    samples: int,
    sparse: bool,
) -> None:
    spec = ProjectorSpec(proj_dim=dim, precision="bfloat16")
    projector = SjltProjector(spec) if sparse else TrakProjector(spec)
    layout = Layout.choose(samples, 1, dim, "float16")
    choice = EngineChoice("loop", LoopEngine, fixed, per_event, wanted)
    try:
        budget = Budget.spend(
            total,
            choice,
            wanted,
            [(projector, layout)],
            draws=draws,
            device=CPU,
            num_parameters=parameters,
        )
    except ConfigError:
        return
    assert 1 <= budget.events <= wanted
    assert budget.engine >= choice.nbytes(budget.events)
    projection = projector.at(0, parameters, CPU, budget.projection)
    rows = budget.rows([projection])
    assert rows >= 1
    held = budget.shard + budget.engine + projection.nbytes + rows * budget.per_row
    assert held <= total


CPU = torch.device("cpu")


def test_too_little_says_how_much_is_enough() -> None:
    projector = SjltProjector(ProjectorSpec(proj_dim=64))
    layout = Layout.choose(100, 1, 64, "float16")
    choice = EngineChoice("loop", LoopEngine, 0, 1 << 30, 32)

    def spend(total: int) -> Budget:
        return Budget.spend(
            total,
            choice,
            32,
            [(projector, layout)],
            draws=1,
            device=CPU,
            num_parameters=1000,
        )

    with pytest.raises(ConfigError, match=r"a gradient takes 1\.2, .*Give --memory 1\.51"):
        spend(1 << 30)
    assert spend(int(1.51 * 2**30)).events == 1
