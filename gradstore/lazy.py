"""Loading of exported names on first use, so that `gradstore --help` answers at once."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def exporter(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's `__getattr__` (PEP 562), which imports each name from its module.

    Args:
        package: name of the package.
        homes: module of each exported name; for a submodule of the package, the package itself.
    """

    def find(name: str) -> Any:
        if name not in homes:
            near = get_close_matches(name, homes, 1)
            mend = f". Did you mean {near[0]!r}?" if near else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{mend}")
        if homes[name] == package:  # a submodule of the package
            return import_module(f"{package}.{name}")
        return getattr(import_module(homes[name]), name)

    return find
