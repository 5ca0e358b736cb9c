"""Flags of `gradstore demo`."""

from __future__ import annotations

from pydantic import Field

from gradstore.store.format.spec import Spec


class DemoConfig(Spec):
    """Options of `gradstore demo`."""

    out: str = Field(
        "demo", description="folder of all files of the demo: a new one, or one to resume"
    )
    epochs: int = Field(72, ge=4, description="epochs of training; four checkpoints are kept")
    proj_dim: int = Field(4096, ge=1, le=1 << 20, description="projection dimension")
    digits: int = Field(400, ge=1, le=1700, description="number of training digits")
    heldout: int = Field(40, ge=1, le=97, description="number of held-out digits to query")
    generated: int = Field(12, ge=1, description="number of generated digits to query")
    copies: int = Field(10, ge=1, description="number of training digits to query, as copies")
    k: int = Field(10, ge=1, description="number of proponents and opponents per query and measure")
    seed: int = Field(0, ge=0, description="seed of all random numbers")
