"""Processes of their own that start at once: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

# What collecting imports; pandas only because pyarrow looks for it.
_IMPORTED: Final = [
    "pandas",
    "torch",
    "diffusers.schedulers.scheduling_ddim",
    "benchmarks.worlds.models",
    "gradstore.collect.grow",
    "diffusers.pipelines.ddim.pipeline_ddim",
]


def context() -> ForkServerContext:
    """A context of `multiprocessing` whose processes have imported what collecting imports.

    There is one server to a process: what it has imported is decided by who starts the first.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_IMPORTED)
    return found
