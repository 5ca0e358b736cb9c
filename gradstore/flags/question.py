"""Flags of the gradients of a question."""

from __future__ import annotations

from pydantic import Field

from gradstore.store.format.spec import EventSpec, Spec


class QueryEvents(Spec):
    """Timesteps and noises of queries.

    Late timesteps, which are almost only noise, cost as much as others and foretell less of
    retraining: in benchmarks/query_cost.py, six timesteps below 0.6 keep at least as much of the
    LDS as ten of all, for both measures, on two data sets.
    """

    timesteps: int = Field(6, ge=1, le=10_000, description="timesteps per query")
    draws: int = Field(2, ge=1, le=10_000, description="noises averaged at each timestep")
    timesteps_below: float = Field(
        0.6, gt=0, le=1, description="timesteps lie below this share of the scheduler's"
    )
    event_seed: int = Field(0, ge=0, description="seed of the noises")

    def events(self) -> EventSpec:
        """The events of every query."""
        return EventSpec(
            events="planned",
            timesteps=self.timesteps,
            draws=self.draws,
            timesteps_below=self.timesteps_below,
            event_seed=self.event_seed,
        )
