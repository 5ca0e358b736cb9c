"""Optional capabilities of an implementation, beyond its protocol.

A class declares a capability with its own attribute, set to True. Subclasses do not inherit the
declaration, because they may hold more state than their base.

    thread_safe     objective, event plan, engine, projector: several threads may share one
    stays_in_memory projector: a projection is small enough to stay in memory with the model
"""

from __future__ import annotations

from typing import Literal


def can(implementation: object, what: Literal["thread_safe", "stays_in_memory"]) -> bool:
    """Whether a class, or the class of an instance, declares a capability.

    Examples:
        >>> class Mine:
        ...     thread_safe = True
        >>> can(Mine(), "thread_safe"), can(Mine(), "stays_in_memory")
        (True, False)
    """
    cls = implementation if isinstance(implementation, type) else type(implementation)
    return vars(cls).get(what) is True
