"""Answers questions that wait at the same time in one search, and keeps recent answers."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import copy_context
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import BusyError, GradstoreError
from gradstore.progress import quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

_THREADS: Final = 2
_MOST_WAITING: Final = 1000
_MOST_TOGETHER: Final = 64


class Together:
    """Answers one query per question; questions that differ in the query alone share a search.

    64 people who ask at once then wait for one pass over the store and not for 64. One search runs
    at a time, because each uses all cores: two beside each other took longer than one after the
    other. Beside it, what another key needs is prepared, such as a kernel.

    Args:
        prepare: loads what the key says, before questions are taken.
        answer: answers the named queries under what the key says, in their order.
    """

    def __init__(
        self,
        prepare: Callable[[Any], object],
        answer: Callable[[Any, Sequence[str]], Sequence[bytes]],
    ) -> None:
        self._prepare, self._answer = prepare, answer
        self._waiting: dict[Hashable, dict[str, Future[bytes]]] = {}
        self._taken: set[Hashable] = set()
        self._changed, self._searching = Condition(), Lock()
        self._over = False
        for number in range(_THREADS):
            context = copy_context()
            Thread(
                target=context.run, args=(self._work,), daemon=True, name=f"search-{number}"
            ).start()

    def ask(self, key: Hashable, name: str) -> Future[bytes]:
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
                self._changed.notify_all()
            return own[name]

    def rest(self) -> bool:
        """Wait until no question waits; False once the threads are stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not (self._waiting or self._taken))
            return not self._over

    def close(self) -> None:
        """Stop the threads after what they answer now."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _next(self) -> Hashable | None:
        """The key that waits longest and that no thread has taken."""
        return next((key for key in self._waiting if key not in self._taken), None)

    def _work(self) -> None:
        with quietly():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._over or self._next() is not None)
                    key = self._next()
                    if key is None:
                        return
                    self._taken.add(key)
                self._answer_some(key)
                with self._changed:
                    self._taken.remove(key)
                    self._changed.notify_all()

    def _answer_some(self, key: Hashable) -> None:
        error: BaseException | None = None
        try:
            self._prepare(key)
        except BaseException as failed:
            error = failed
        with self._searching:  # those that came until now are answered together
            with self._changed:
                waiting = self._waiting.pop(key)
                names = list(waiting)[:_MOST_TOGETHER]
                futures = [waiting.pop(name) for name in names]
                if waiting:  # the rest comes after the questions of others
                    self._waiting[key] = waiting
            if error is None:
                self._settle(key, names, futures)
            else:
                for future in futures:
                    future.set_exception(error)

    def _settle(self, key: Any, names: list[str], futures: list[Future[bytes]]) -> None:
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
