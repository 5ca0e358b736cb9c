"""Answers questions that wait at the same time in one search, and keeps recent answers."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import copy_context
from threading import Condition, Thread
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gradstore.errors import BusyError, GradstoreError
from gradstore.progress import quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Shown: TypeAlias = "dict[str, Any]"

_THREADS: Final = 2
_MOST_WAITING: Final = 1000
_MOST_TOGETHER: Final = 64


class Together:
    """Answers one query per question; questions that differ in the query alone share a search.

    64 people who ask at once then wait for one pass over the store and not for 64.

    Args:
        answer: answers the named queries under what the key says, in their order.
    """

    def __init__(self, answer: Callable[[Any, Sequence[str]], Sequence[Shown]]) -> None:
        self._answer = answer
        self._waiting: dict[Hashable, dict[str, Future[Shown]]] = {}
        self._changed = Condition()
        self._over = False
        for number in range(_THREADS):
            context = copy_context()
            Thread(
                target=context.run, args=(self._work,), daemon=True, name=f"search-{number}"
            ).start()

    def ask(self, key: Hashable, name: str) -> Future[Shown]:
        """The answer to come.

        Raises:
            BusyError: if too many questions wait.
        """
        with self._changed:
            own = self._waiting.setdefault(key, {})
            if name not in own:
                if sum(map(len, self._waiting.values())) >= _MOST_WAITING:
                    if not own:
                        del self._waiting[key]
                    raise BusyError(f"{_MOST_WAITING:,} questions wait already. Ask again later.")
                own[name] = Future()
                self._changed.notify()
            return own[name]

    def close(self) -> None:
        """Stop the threads after what they answer now."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _work(self) -> None:
        with quietly():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._over)
                    if self._over and not self._waiting:
                        return
                    key = next(iter(self._waiting))
                    waiting = self._waiting[key]
                    names = list(waiting)[:_MOST_TOGETHER]
                    futures = [waiting.pop(name) for name in names]
                    if waiting:  # the rest comes after the questions of others
                        self._waiting[key] = self._waiting.pop(key)
                        self._changed.notify()
                    else:
                        del self._waiting[key]
                self._settle(key, names, futures)

    def _settle(self, key: Any, names: list[str], futures: list[Future[Shown]]) -> None:
        try:
            answers = self._answer(key, names)
        except GradstoreError as error:
            if len(names) > 1:  # one query may be at fault: ask them apart
                for name, future in zip(names, futures, strict=True):
                    self._settle(key, [name], [future])
                return
            futures[0].set_exception(error)
        except BaseException as error:
            for future in futures:
                future.set_exception(error)
        else:
            for future, found in zip(futures, answers, strict=True):
                future.set_result(found)
