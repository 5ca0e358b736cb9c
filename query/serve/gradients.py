"""Images that are asked: one gradient computation at a time, and a queue whose length is told."""

from __future__ import annotations

import logging
from collections import OrderedDict
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import finalize

from gradstore.errors import BusyError, ConfigError, GradstoreError, QueryError
from gradstore.progress import quietly, watched
from query.collection import collect_queries
from query.serve.place import own_place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from gradstore.collect import Samples
    from gradstore.flags.serve import ServeConfig
    from gradstore.store.reader import Store
    from query.serve.uploads import Upload

_log = logging.getLogger("gradstore")

_MOST_WAITING: Final = 32
# Images whose rows are kept; those that were looked at least recently go.
_MOST_KEPT: Final = 256

State = Literal["waiting", "running", "done", "failed"]


@dataclass(eq=False)
class Asked:
    """An image that is asked, or an image to be generated.

    Attributes:
        name: its name in links.
        samples: the image, converted as training images are; None until it is generated.
        seed: seed of an image to generate.
        prompt: what to draw, for a text-to-image model.
        state: waiting, running, done or failed.
        step: what is done now.
        done: rows computed.
        total: rows to compute.
        error: why it failed.
        store: its rows, once done.
    """

    name: str
    samples: Samples | None
    seed: int | None = None
    prompt: str | None = None
    state: State = "waiting"
    step: str = ""
    done: int = 0
    total: int = 0
    error: GradstoreError | None = None
    store: Store | None = None
    over: Event = field(default_factory=Event)


class Gradients:
    """Computes the rows of images, one after another, with models that stay in memory.

    Args:
        store: the training store.
        folders: the checkpoints; empty if they are not known.
        config: timesteps, noises, memory, device.
        form: how images are converted, as keywords of `Samples`.
    """

    def __init__(
        self,
        store: Store,
        folders: Sequence[Path],
        config: ServeConfig,
        *,
        form: Mapping[str, Any],
    ) -> None:
        self._store, self._config = store, config
        self._folders, self._form = list(folders), dict(form)
        self._held: Any = None
        held = ExitStack()
        try:
            self._place = held.enter_context(own_place())
        except OSError as error:
            raise ConfigError(
                "no folder can be made for the rows of images that are asked: "
                f"{error.strerror or error}. Free disk space, or name another folder by TMPDIR."
            ) from error
        self._remove = finalize(self, held.close)  # also at the end of a process that stops nothing
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._waiting: list[Asked] = []
        self._changed = Condition()
        self._over = False
        context = copy_context()
        self._thread = Thread(target=context.run, args=(self._work,), daemon=True, name="gradients")
        self._thread.start()

    @property
    def possible(self) -> bool:
        """Whether the checkpoints are known."""
        return bool(self._folders)

    @property
    def prompts(self) -> bool:
        """Whether the model draws what a prompt says, and images have captions."""
        model = self._store.spec.identity.get("model")
        encoders = model.get("encoders") if isinstance(model, dict) else None
        return isinstance(encoders, dict) and "captions" in encoders and "input" not in encoders

    @property
    def waiting(self) -> int:
        """Number of images that wait or are being asked."""
        with self._changed:
            return sum(one.state in {"waiting", "running"} for one in self._asked.values())

    def submit(
        self, upload: Upload | None, seed: int | None = None, prompt: str | None = None
    ) -> Asked:
        """Ask about an image, or about one that the model generates from a seed, or a prompt too.

        The same image is asked once.

        Raises:
            ConfigError: if the checkpoints are not known.
            BusyError: if too many images wait, or the server stops.
        """
        if not self.possible:
            raise ConfigError(
                "this server cannot compute gradients: it does not know the checkpoints. Start it "
                "with --checkpoints, or with --follow-recorded if you trust the store."
            )
        name = f"seed-{seed}" if upload is None else upload.name
        if upload is None and prompt is not None:
            name += f"-{sha256(prompt.encode()).hexdigest()[:16]}"
        # At the model's size an image takes little memory while it waits.
        samples = (
            None if upload is None else self._samples(upload.image, upload.label, upload.caption)
        )
        with self._changed:
            known = self._asked.get(name)
            if known is not None and known.state != "failed":
                self._asked.move_to_end(name)
                return known
            if self._over:
                raise BusyError("the server stops and takes no more images.")
            if len(self._waiting) >= _MOST_WAITING:
                raise BusyError(f"{_MOST_WAITING} images wait already. Ask again later.")
            one = self._asked[name] = Asked(name, samples, seed, prompt)
            self._waiting.append(one)
            self._forget()
            self._changed.notify_all()
            return one

    def get(self, name: str) -> Asked:
        """An image that was asked.

        Raises:
            QueryError: if it is not known, or no longer.
        """
        with self._changed:
            if name not in self._asked:
                raise QueryError(
                    "this image is not known to the server, or no longer. Give it again."
                )
            self._asked.move_to_end(name)
            return self._asked[name]

    def rows(self, name: str) -> Store:
        """The rows of an image.

        Raises:
            QueryError: if they are not computed.
        """
        one = self.get(name)
        if one.store is None:
            raise one.error or QueryError("the gradients of this image are not computed yet.")
        return one.store

    def ahead(self, one: Asked) -> int:
        """Number of images that come before one."""
        with self._changed:
            if one not in self._waiting:
                return 0
            running = any(other.state == "running" for other in self._asked.values())
            return self._waiting.index(one) + running

    def close(self) -> None:
        """Finish the image that is computed now; those that wait fail."""
        with self._changed:
            self._over = True
            for one in self._waiting:
                one.state, one.error = "failed", BusyError("the server stopped before its turn.")
                one.over.set()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    def remove(self) -> None:
        """Remove the rows of all images from the disk."""
        self._remove()

    def _forget(self) -> None:
        """Forget the images that were looked at least recently."""
        import shutil

        over = [one for one in self._asked.values() if one.state in {"done", "failed"}]
        for one in over[: max(0, len(self._asked) - _MOST_KEPT)]:
            del self._asked[one.name]
            shutil.rmtree(self._place / f"{one.name}.gradstore", ignore_errors=True)

    def _work(self) -> None:
        with quietly():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._over)
                    if not self._waiting:
                        return
                    one = self._waiting.pop(0)
                    one.state = "running"
                try:
                    one.store = self._computed(one)
                    one.state = "done"
                except GradstoreError as error:
                    one.error, one.state = error, "failed"
                except Exception as error:  # the server goes on with the next image
                    _log.exception("the gradients of an image cannot be computed")
                    one.error = QueryError(
                        f"unexpected {type(error).__name__}; see the server's log"
                    )
                    one.state = "failed"
                one.over.set()

    def _computed(self, one: Asked) -> Store:
        from gradstore.collect import CheckpointCache, generate, recorded_loader

        def tell(step: str, done: int, total: int) -> None:
            one.step = step.split(" ", 1)[0]  # the rest is a path
            one.done, one.total = done, total

        config = self._config
        if self._held is None:
            one.step = "loading"
            self._held = CheckpointCache(recorded_loader(self._store, self._folders, config.base))
        with watched(tell):
            if one.samples is None:
                (image,) = generate(
                    self._held.loader,
                    1,
                    prompt=one.prompt,
                    seed=one.seed or 0,
                    device=config.device,
                )
                name = f"generated from seed {one.seed}"
                name += "" if one.prompt is None else f" by the prompt {one.prompt!r}"
                one.samples = self._samples(image, caption=one.prompt, name=name)
            return collect_queries(
                self._store,
                one.samples,
                self._place / f"{one.name}.gradstore",
                events=config.events(),
                checkpoints=self._held,
                memory=config.memory,
                device=config.device,
            )

    def _samples(
        self,
        image: Image.Image,
        label: str | None = None,
        caption: str | None = None,
        name: str = "asked image",
    ) -> Samples:
        """An image as a dataset, converted as training images are."""
        from gradstore.collect import Samples

        item: dict[str, Any] = {"image": image}
        if label is not None:
            item["label"] = label
        if self.prompts:
            item["text"] = caption or ""
        whole = Samples([item], ids=[name], **self._form)
        return whole.in_memory()
