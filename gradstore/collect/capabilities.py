"""What an implementation of a protocol says that it can do, beyond the protocol.

A class says so by an attribute of its own, set to True. Subclasses say it anew: they may hold
something that their base does not.

    thread_safe     objective, event plan, engine, projector: several threads may share one
    stays_in_memory projector: a projection is so small that it is kept with the model
"""

from __future__ import annotations

from typing import Literal


def can(implementation: object, what: Literal["thread_safe", "stays_in_memory"]) -> bool:
    """Whether the class of an implementation, or a class that makes one, says so.

    Example:
        >>> class Mine:
        ...     thread_safe = True
        >>> can(Mine(), "thread_safe"), can(Mine(), "stays_in_memory")
        (True, False)
    """
    cls = implementation if isinstance(implementation, type) else type(implementation)
    return vars(cls).get(what) is True
