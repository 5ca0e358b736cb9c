"""Command that serves the page: serve."""

from __future__ import annotations

import signal
from typing import Any

from gradstore.flags.serve import ServeConfig
from query.cli.group import cli, follow, kept, say, trusting
from query.cli.parsing import flags, parse


@cli.command()
@flags(ServeConfig, argument="store")
@trusting
def serve(*, follow_recorded: bool, **given: Any) -> None:
    """Serve a page that shows what taught the model, in a browser, and its JSON API."""
    settings = parse(ServeConfig, None, given)
    with kept("The server ended; the store is as it was. Rows of images that were asked are gone."):
        for store in (settings.store, settings.queries):
            follow(store, wanted=follow_recorded)
        from query.serve.server import serve_config

        server = serve_config(settings)
        try:
            say(f"{settings.store}: open {server.url}")
            say("The API is described at /api/openapi.json. Ctrl-C stops.")
            if settings.local and not settings.no_browser:
                import webbrowser

                webbrowser.open(server.url)
            ended = server.wait()
        except BaseException:
            server.stop()
            raise
        if ended == signal.SIGINT:
            raise KeyboardInterrupt
