"""Command that serves the page: serve."""

from __future__ import annotations

from typing import Any

import click

from gradstore.flags.serve import ServeConfig
from query.cli.group import cli, follow, trusting
from query.cli.parsing import flags, parse


@cli.command()
@flags(ServeConfig, argument="store")
@trusting
def serve(*, follow_recorded: bool, **given: Any) -> None:
    """Serve a page that shows what taught the model, in a browser, and its JSON API."""
    settings = parse(ServeConfig, None, given)
    for store in (settings.store, settings.queries):
        follow(store, wanted=follow_recorded)
    from query.serve.server import serve_config

    server = serve_config(settings)
    click.echo(f"{settings.store}: open {server.url}")
    click.echo("The API is described at /api/openapi.json. Ctrl-C stops.")
    if settings.local and not settings.no_browser:
        import webbrowser

        webbrowser.open(server.url)
    server.wait()
