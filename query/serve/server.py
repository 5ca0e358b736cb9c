"""`gradstore serve`: the server as an object, and as a process."""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import threading
from contextlib import ExitStack, suppress
from html import escape
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import ValidationError

from gradstore.collect.models.folders import checkpoint_folders
from gradstore.collect.provenance import Provenance, followed_models, recorded_folders
from gradstore.errors import ConfigError, DependencyError, GradstoreError, UnknownNameError
from gradstore.flags.dataset import DatasetSpec
from gradstore.flags.serve import ServeConfig
from gradstore.store.opening import as_store, open_store
from query.checks import require_comparable
from query.results.pictures import pictures_of
from query.serve.guard import Guard, allowed_names
from query.serve.metering import Meter, Metered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from query.results.pictures import Pictures

_log = logging.getLogger("gradstore")

# Seconds to start, and, after the last gradients, in which the page fetches what they answer.
_START: Final = 30.0
_LINGER: Final = 2.0
_BACKLOG: Final = 256


class Server:
    """A running server.

    Attributes:
        url: link to the page, with the token if there is one.

    Examples:
        >>> import gradstore as gs
        >>> with gs.serve("train.gradstore", queries="asked.gradstore", port=0) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        app: Any,
        config: ServeConfig,
        token: str | None,
        parts: _Parts,
        *,
        framed: bool = False,
    ) -> None:
        import uvicorn

        self._parts, self._framed = parts, framed
        self._socket = _listening(config)
        port = self._socket.getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.url = f"http://{host}:{port}/" + (f"?token={token}" if token else "")
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            ws="none",
        )
        self._server = uvicorn.Server(settings)
        self._stopping = threading.Lock()
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True, name="server"
        )
        self._thread.start()
        until = monotonic() + _START
        while not self._server.started:
            if not self._thread.is_alive() or monotonic() > until:
                raise ConfigError(
                    f"no server could be started at {self.url}. Choose another --port."
                )
            sleep(0.01)

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _repr_html_(self) -> str:
        """The page in a frame and a link to it, for notebooks; on another host a link alone.

        A frame would not keep the token.
        """
        url = escape(self.url)
        link = f'<a href="{url}" target="_blank" rel="noopener">{url}</a>'
        if not self._framed:
            return link
        return (
            f'<iframe src="{url}" title="gradstore" width="100%" height="800" '
            f'style="border: 1px solid #d0d7de"></iframe><p>{link}</p>'
        )

    def stop(self, linger: float = 0.0) -> None:
        """Finish what runs, then stop.

        Images that wait are refused; the gradients that are computed now are finished.

        Args:
            linger: seconds in which answers can still be fetched after that, if any ran.
        """
        with self._stopping:
            ran = self._parts.gradients.waiting > 0
            self._parts.gradients.close()
            if ran:
                sleep(linger)
            self._server.should_exit = True
            self._thread.join()
            self._parts.close()

    def wait(self) -> signal.Signals | None:
        """Serve until SIGTERM or SIGINT; a second one stops at once. For the main thread.

        What the page shows first is loaded meanwhile.

        Returns:
            The signal; None if the server ended by itself.
        """
        asked, first = threading.Event(), list[signal.Signals]()
        threading.Thread(target=self._parts.prepare, daemon=True).start()

        def stop(number: int, _: object) -> None:
            first.append(signal.Signals(number))
            if asked.is_set():
                self._server.force_exit = True
            asked.set()

        before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not asked.wait(0.5) and self._thread.is_alive():
                pass
            _log.info("stopping: what runs is finished first")
            stopping = threading.Thread(target=self.stop, args=(_LINGER,), daemon=True)
            stopping.start()
            while stopping.is_alive() and not self._server.force_exit:
                stopping.join(0.2)
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
        return first[0] if first else None


class _Parts:
    """What a server stops at its end."""

    def __init__(self, gradients: Any, answers: Any, pool: Any) -> None:
        self.gradients, self._answers, self._pool = gradients, answers, pool

    def prepare(self) -> None:
        """Answer the first question, then the stored queries, under the first measures."""
        import gc

        self._answers.prepare()
        # The modules and manifests that a collection of garbage would look through again and again:
        # it took a third of the time in which 64 answers are written.
        gc.freeze()
        self._answers.ahead()

    def close(self) -> None:
        self._answers.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.gradients.remove()


def serve(
    store: StoreLike,
    *,
    queries: StoreLike | None = None,
    checkpoints: str | Path | Sequence[str | Path] | None = None,
    dataset: Any = None,
    images: Any = None,
    **options: Any,
) -> Server:
    """Serve the page of a store, and its JSON API, from this process.

    The page asks, shows and explains; `server.url` is its link, `server.stop()` ends it. A notebook
    shows the page below the cell. It listens on this machine's own address. On another `host` it
    wants a token, which is part of the link.

    Args:
        store: the training store.
        queries: a query store whose answers are shown without new gradients.
        checkpoints: the store's checkpoints, if they moved, for new images.
        dataset: the training images, if the store does not record them: what `Samples` accepts.
        images: the images of `queries`, likewise.
        options: `base`, `host`, `port`, `token`, `timesteps`, `draws`, `event_seed`, `memory` and
            `device` of `gradstore serve`.

    Raises:
        DependencyError: if the extra `serve` is not installed.
        GradstoreError: if the stores do not match, or the address is taken.

    Examples:
        >>> import gradstore as gs
        >>> server = gs.serve("train.gradstore", port=0)
        >>> server.stop()
    """
    require_installed()
    opened = as_store(store)
    asked = None if queries is None else as_store(queries)
    folders = [] if checkpoints is None else [str(one) for one in _several(checkpoints)]
    config = ServeConfig(store=opened.location, checkpoints=folders or None, **options)
    framed = config.local and config.token is None
    return _serve(config, opened, asked, dataset, images, framed=framed)


def serve_config(config: ServeConfig) -> Server:
    """`serve` with the settings of the command."""
    require_installed()
    for dataset in (config.dataset, config.images):
        if dataset is not None:
            DatasetSpec(dataset=dataset).require_there()
    if config.images is not None and config.queries is None:
        raise ConfigError("--images are those of --queries, which is not given.")
    store = open_store(config.store, skip_unsealed=config.skip_unsealed)
    store.require_complete()
    asked = None if config.queries is None else open_store(config.queries)
    return _serve(config, store, asked, config.dataset, config.images)


def require_installed() -> None:
    """Raise `DependencyError` unless the extra `serve` is installed."""
    from importlib.util import find_spec

    lacking = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if lacking:
        raise DependencyError(
            f"the page needs {' and '.join(lacking)}: pip install 'gradstore[serve]'"
        )


def _serve(
    config: ServeConfig,
    store: Store,
    asked: Store | None,
    dataset: Any,
    images: Any,
    *,
    framed: bool = False,
) -> Server:
    if asked is not None:
        require_comparable(store, asked)
        asked.require_complete()
    folders = _folders(config, store)
    token = config.token or (None if config.local else secrets.token_urlsafe(24))

    from query.serve.about import model_facts
    from query.serve.gradients import Gradients
    from query.serve.library import Library
    from query.serve.routes import application

    train = pictures_of(store, dataset)
    library = Library(store, asked, train, None if asked is None else pictures_of(asked, images))
    generates, classes = model_facts(folders)
    meter = Meter()
    gradients = Gradients(store, folders, config, form=_form(store, train))
    with ExitStack() as failed:
        failed.callback(gradients.remove)
        failed.callback(gradients.close)
        app = application(library, gradients, generates=generates, classes=classes, meter=meter)
        parts = _Parts(gradients, app.state.answers, app.state.pool)
        failed.callback(parts.close)
        names = allowed_names(config.host, local=config.local)
        guarded = Guard(Metered(app, meter), names, token, framed=framed)
        server = Server(guarded, config, token, parts, framed=framed)
        failed.pop_all()
    return server


def _several(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, str | Path) else paths


def _folders(config: ServeConfig, store: Store) -> list[Path]:
    """The checkpoints; none if the store's own may not be followed or are gone."""
    if config.checkpoints:
        folders = checkpoint_folders(config.checkpoints, followed_models(store, config.base))
        if len(folders) != store.checkpoints:
            raise ConfigError(
                f"{store.location} has {store.checkpoints} checkpoints, and --checkpoints names "
                f"{len(folders)}. Name those that the store was made from."
            )
        return folders
    try:
        models = followed_models(store, config.base)
        return checkpoint_folders(recorded_folders(store), models, exact=True)
    except (UnknownNameError, GradstoreError) as error:
        _log.warning("new images cannot be asked: %s", error)
        return []


def _form(store: Store, train: Pictures | None) -> dict[str, Any]:
    """How training images were converted, as keywords of `Samples`; what is unknown is left out."""
    recorded = Provenance.of(store.spec.parts[0]).config
    form = {}
    for name in ("size", "resize", "interpolation", "mode"):
        with suppress(ValidationError):  # a store from a stranger
            spec = DatasetSpec.model_validate({"dataset": "", name: recorded.get(name)})
            form[name] = getattr(spec, name)
    image = None if train is None else train.image(0)
    if image is not None:
        if form.get("mode") is None and image.mode in {"L", "RGB", "RGBA"}:
            form["mode"] = image.mode
        if (
            form.get("size") is None
            and form.get("resize") != "keep"
            and image.width == image.height
        ):
            form["size"] = image.width
    return form


def _listening(config: ServeConfig) -> socket.socket:
    """A socket that listens, so that an address that is taken is told at once."""
    host = config.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, config.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--host {config.host} --port {config.port}: {error.strerror or error}. Choose another "
            "--port, or 0 for a free one."
        ) from error
    return listening
