"""`gradstore doctor`: checks that this machine has everything each step needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from operator import itemgetter
from pathlib import Path
from typing import Any

_MEND = "Install what is missing with `pip install 'gradstore[cpu]'` (or [gpu])."


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        what: the object checked.
        found: what was found.
        good: whether gradstore works with it.
        mend: what to do, if anything.
    """

    what: str
    found: str
    good: bool = True
    mend: str = ""


def examine() -> list[Finding]:
    """Check versions, devices, arithmetic, FAISS, fast_jl and shadowed packages."""
    return [
        Finding("python", platform.python_version()),
        *[_package(name) for name in ("torch", "diffusers", "traker", "zarr", "numpy")],
        *_devices(),
        *_arithmetic(),
        *_faiss(),
        *[_shadowed(name) for name in ("gradstore", "indexer", "query")],
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", good=False, mend=f"pip install {name}")


def _devices() -> list[Finding]:
    try:
        from gradstore.collect import devices
    except ImportError as error:
        return [
            Finding("gradstore.collect", f"cannot be imported: {error}", good=False, mend=_MEND)
        ]
    return [
        *[Finding("device", text) for text in devices.describe()],
        Finding("fast_jl", devices.fast_jl()),
    ]


def _arithmetic() -> list[Finding]:
    """Choices of `auto` on this machine, and the measured rates behind them."""
    try:
        from gradstore.arithmetic import precision_of, product_rates
        from indexer.product import way_seconds

        rates = product_rates()
        shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
        found = [
            Finding(
                "products, GFLOP/s a core",
                f"{shown}: --precision auto is {precision_of('auto', 'cpu')}",
            )
        ]
        for queries in (1, 16, 256):
            seconds = way_seconds(queries, 4096, "float16")
            ways = ", ".join(
                f"{way} {1 / taken:,.0f}"
                for way, taken in sorted(seconds.items(), key=itemgetter(1))
            )
            found.append(Finding(f"exact search, {queries} at once, rows/s a core", ways))
    except ImportError as error:
        return [Finding("arithmetic", f"torch cannot be imported: {error}", good=False, mend=_MEND)]
    return found


def _faiss() -> list[Finding]:
    names = {(found.metadata["Name"] or "").lower() for found in distributions()}
    builds = sorted(names & {"faiss-cpu", "faiss-gpu"})
    if len(builds) != 1:
        found = " and ".join(builds) or "not installed"
        mend = (
            "Keep exactly one: pip uninstall faiss-cpu faiss-gpu, then pip install 'gradstore[cpu]'"
        )
        return [Finding("faiss", found, good=False, mend=f"{mend} (or [gpu]).")]
    try:
        from indexer.approximate.first_stage import faiss_description
    except ImportError as error:
        return [Finding("indexer", f"cannot be imported: {error}", good=False, mend=_MEND)]
    return [Finding("faiss", f"{builds[0]} {version(builds[0])}, {faiss_description()}")]


def _shadowed(name: str) -> Finding:
    """Check whether a package is shadowed; the three plain names are easily taken."""
    here = Path(__file__).parents[2]
    module: Any = import_module(name)
    file = Path(module.__file__ or "")
    if file.parent.parent == here:
        return Finding(f"package {name}", str(file.parent))
    return Finding(
        f"package {name}",
        f"{file} is not gradstore's",
        good=False,
        mend=f"Another package or folder called {name!r} comes first on the path: rename it, or "
        "run from another folder.",
    )
