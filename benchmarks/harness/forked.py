"""Processes that start quickly: forked from one that has done all imports."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

# The imports of collecting and asking; pandas only because pyarrow looks for it.
_IMPORTED: Final = [
    "pandas",
    "torch",
    "diffusers.schedulers.scheduling_ddim",
    "benchmarks.worlds.models",
    "gradstore.collect.grow",
    "diffusers.pipelines.ddim.pipeline_ddim",
    "faiss",
    "indexer.approximate.build",
    "query.ask",
    "query.scores",
    "query.serve.server",
    "query.serve.routes",
    "query.serve.library",
    "uvicorn.protocols.http.auto",
]


def context() -> ForkServerContext:
    """A `multiprocessing` context whose processes have the imports of collecting and asking done.

    A process has one server; the first context started decides its imports.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_IMPORTED)
    return found
