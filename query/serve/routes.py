"""The API: each route names what it takes and calls what answers it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field

from gradstore import __version__
from gradstore.errors import (
    BusyError,
    ConfigError,
    DatasetError,
    GradstoreError,
    QueryError,
    SearchIndexError,
)
from query.results.pictures import png, thumbnail
from query.results.report import Section, write_report
from query.serve import taking
from query.serve.about import described, told
from query.serve.answers import Answers, plain
from query.serve.look import Look, Name, Names
from query.serve.maps import Maps
from query.serve.metering import Meter
from query.serve.studies import Studies
from query.serve.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from query.results.pictures import Pictures
    from query.serve.gradients import Asked, Gradients
    from query.serve.library import Library

Study: TypeAlias = "Callable[..., Awaitable[Any]]"

_FILES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_STATUS: Final[dict[type[GradstoreError], int]] = {
    BusyError: 503,
    SearchIndexError: 409,
    QueryError: 400,
    ConfigError: 400,
    DatasetError: 422,
}
# Studies and exports run beside searches, two at once: each takes memory of its own.
_STUDY_THREADS: Final = 2
_MOST_LISTED: Final = 200

Looking = Annotated[Look, Query()]


class Several(Look):
    """A question under up to three measures."""

    measures: list[str] = Field(
        [], max_length=3, description="measures of a report, instead of measure"
    )


class Studied(Look):
    """A question and a training sample."""

    of: Name = Field(description="id of the training sample")


class Grouped(Look):
    """A question and a column."""

    by: Name = Field("label", description="column of the training samples")


class Selection(BaseModel):
    """Training samples to take away."""

    ids: Names


class Places(BaseModel):
    """Training samples by their numbers in the store."""

    places: list[int] = Field(max_length=taking.MOST)


def application(
    library: Library,
    gradients: Gradients,
    *,
    generates: bool,
    classes: int,
    meter: Meter,
) -> FastAPI:
    """The page and its API.

    Args:
        library: what answers come from.
        gradients: computes gradients of new images.
        generates: whether the model can generate an image by itself.
        classes: number of classes of a class-conditional model, else 0.
        meter: counts of the server.
    """
    app = FastAPI(
        title="gradstore",
        version=__version__,
        description="Which training images pushed a model towards an image, and which against it?",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    answers = Answers(library, gradients.rows)
    pool = ThreadPoolExecutor(_STUDY_THREADS, thread_name_prefix="study")
    app.state.answers, app.state.pool = answers, pool

    async def study(do: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, do, *given)

    _tell_errors(app, library)
    _serve_page(app, gradients, meter)
    _serve_answers(app, answers, study)
    _serve_images(app, library, gradients)
    _take_images(app, library, gradients, generates=generates)
    _hand_out(app, answers, gradients, study)
    _serve_map(app, Maps(library), study)

    @app.get("/api/about", tags=["store"])
    def about() -> Any:
        """The store, its measures, and what this server can do."""
        return described(library, gradients, generates=generates, classes=classes)

    return app


def _tell_errors(app: FastAPI, library: Library) -> None:
    @app.exception_handler(GradstoreError)
    async def failed(_: Request, error: GradstoreError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
        return JSONResponse({"error": told(error, library)}, status)

    @app.exception_handler(RequestValidationError)
    async def mistaken(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the request"
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)


def _serve_page(app: FastAPI, gradients: Gradients, meter: Meter) -> None:
    @app.get("/healthz", tags=["server"])
    async def health() -> dict[str, bool]:
        """Whether the server answers."""
        return {"ok": True}

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Counts in the text format of Prometheus."""
        now = {"gradients_waiting": float(gradients.waiting)}
        return Response(meter.text(now), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return _file(name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return RedirectResponse("/page/icon.svg")


def _serve_answers(app: FastAPI, answers: Answers, study: Study) -> None:
    library, studies = answers.library, Studies(answers)

    @app.get("/api/timesteps", tags=["store"])
    async def timesteps() -> Any:
        """How rows of training samples lie over timesteps."""
        return await study(studies.timesteps)

    @app.get("/api/list", tags=["store"])
    def listed(
        kind: Literal["query", "sample"],
        find: Annotated[str, Query(max_length=200, description="text in id or label")] = "",
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 24,
    ) -> Any:
        """Stored queries, or training samples, whose id or label contains a text."""
        store = library.shown[kind][0]
        if store is None:
            return {"found": [], "total": 0}
        ids, labels = store.manifest.ids, store.manifest.metadata.get("label")
        wanted = find.casefold()
        places = [
            place
            for place, name in enumerate(ids)
            if wanted in name.casefold() or (labels and wanted == str(labels[place]).casefold())
        ]
        return {
            "found": [
                {"id": ids[place], "label": plain(labels[place]) if labels else None}
                for place in places[offset : offset + limit]
            ],
            "total": len(places),
        }

    @app.get("/api/answer", tags=["answers"])
    async def answer(look: Looking) -> Any:
        """Proponents and opponents of one query under one measure, with their errors."""
        found = await run_in_threadpool(answers.ask, look)
        if isinstance(found, Future):  # others may wait for it too
            found = await asyncio.shield(asyncio.wrap_future(found))
        if look.near:
            found = await study(answers.collapsed, found, look.near)
        return Response(found, media_type="application/json")

    @app.get("/api/breakdown", tags=["studies"])
    async def breakdown(look: Annotated[Studied, Query()]) -> Any:
        """One score by checkpoint and pair of timesteps."""
        return await study(studies.breakdown, look, look.of)

    @app.get("/api/totals", tags=["studies"])
    async def totals(look: Annotated[Grouped, Query()]) -> Any:
        """Totals of groups of training samples, with 95% intervals."""
        return await study(studies.totals, look, look.by)

    @app.get("/api/sample", tags=["studies"])
    async def sample(look: Annotated[Studied, Query()]) -> Any:
        """A training sample: its rows, its self-influence, and which stored queries it serves."""
        return await study(studies.sample, look, look.of)

    @app.get("/api/norms", tags=["studies"])
    async def norms(look: Looking) -> Any:
        """Norm against timestep of the samples found, and of others."""
        return await study(studies.norms, look)


def _serve_images(app: FastAPI, library: Library, gradients: Gradients) -> None:
    @app.get("/api/image", tags=["images"])
    def image(
        kind: Literal["query", "sample", "asked"],
        id: Name,  # noqa: A002, its name in links
        side: Annotated[int, Query(ge=0, le=1024, description="0 for the original, as PNG")] = 128,
    ) -> Response:
        """An image as WebP, at most `side` pixels a side, or the original."""
        if kind == "asked":
            samples = gradients.get(id).samples
            whole = None if samples is None else samples.image(0)
            found = whole and (thumbnail(whole, side) if side else png(whole))
        elif side:
            found = library.thumbnail(kind, id, side)
        else:
            whole = library.image(kind, id)
            found = whole and png(whole)
        if not found:
            return JSONResponse({"error": "this sample cannot be shown as an image."}, 404)
        return Response(
            found,
            media_type="image/webp" if side else "image/png",
            headers={"cache-control": "private, max-age=600"},
        )


def _take_images(app: FastAPI, library: Library, gradients: Gradients, *, generates: bool) -> None:
    decoding = asyncio.Lock()

    @app.post("/api/asked", tags=["asking"], status_code=202)
    async def ask(
        request: Request,
        label: Annotated[str | None, Query(max_length=100)] = None,
        seed: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
        prompt: Annotated[
            str | None, Query(max_length=1000, description="of a text-to-image model")
        ] = None,
    ) -> Any:
        """Ask about the image in the body, or, with `seed`, about one that the model generates."""
        prompt = prompt or None
        if prompt is not None and not gradients.prompts:
            raise ConfigError("this model takes no prompt.")
        if seed is not None:
            if gradients.prompts and prompt is None:
                raise ConfigError("say what the model shall draw, with prompt.")
            if not (generates or gradients.prompts):
                raise ConfigError("this model cannot generate an image by itself.")
            return _progress(gradients.submit(None, seed, prompt), gradients, library)
        content = await request.body()
        async with decoding:  # one image at a time: each may take 200 MB

            def submitted() -> Asked:
                return gradients.submit(Upload.read(content, label or None, prompt))

            one = await asyncio.to_thread(submitted)
        return _progress(one, gradients, library)

    @app.get("/api/asked/{name}", tags=["asking"])
    async def asked(name: str) -> Any:
        """How far the gradients of an image are."""
        return _progress(gradients.get(name), gradients, library)


def _hand_out(app: FastAPI, answers: Answers, gradients: Gradients, study: Study) -> None:
    library = answers.library

    @app.post("/api/take/{form}", tags=["taking"])
    async def take(form: Literal["ids", "csv", "parquet", "dataset"], some: Selection) -> Response:
        """A selection of training samples as a file."""
        make, kind, name = taking.FORMS[form]
        content = await study(make, library, some.ids)
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=kind, headers=headers)

    @app.post("/api/delete-command", tags=["taking"])
    async def delete_command(some: Selection) -> dict[str, str]:
        """The command that deletes a selection from the store. This server changes nothing."""
        return {"command": taking.delete_command(library, some.ids)}

    @app.get("/api/report", tags=["taking"])
    async def report(look: Annotated[Several, Query()]) -> Response:
        """The answer under some measures as one self-contained page."""
        content = await study(_report, answers, gradients, look)
        headers = {"content-disposition": 'attachment; filename="report.html"'}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)


def _serve_map(app: FastAPI, maps: Maps, study: Study) -> None:
    @app.get("/api/map", tags=["map"])
    async def points() -> Any:
        """Where each training sample lies by its features; computed once, kept with the store."""
        return JSONResponse(await study(maps.points))

    @app.get("/api/map/colours", tags=["map"])
    async def colours(
        by: Annotated[Name, Query(description="norm, timestep, or a column")] = "norm",
    ) -> Any:
        """A value of each training sample to colour it by."""
        return JSONResponse(await study(maps.colours, by))

    @app.post("/api/map/samples", tags=["map"])
    async def samples(some: Places) -> Any:
        """Training samples by their numbers in the store, as the map has them."""
        return await study(maps.samples, some.places)


def _file(name: str) -> Response:
    kind = _FILES.get(name.rpartition(".")[2])
    place = files("query.serve") / "page" / name
    if kind is None or "/" in name or "\\" in name or not place.is_file():
        return JSONResponse({"error": "there is no such page."}, 404)
    return Response(place.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})


def _progress(one: Asked, gradients: Gradients, library: Library) -> dict[str, Any]:
    return {
        "asked": one.name,
        "state": one.state,
        "ahead": gradients.ahead(one),
        "step": one.step,
        "done": one.done,
        "total": one.total,
        "error": None if one.error is None else told(one.error, library),
    }


def _report(answers: Answers, gradients: Gradients, look: Several) -> bytes:
    library = answers.library
    names = look.measures or [look.measure]
    found = [answers.answer(look.model_copy(update={"measure": name})) for name in names]
    images: Pictures | None
    if look.asked is not None:
        images = gradients.get(look.asked).samples
    else:
        images = library.shown["query" if look.query is not None else "sample"][1]
    with TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        name = found[0].queries.ids[0]
        section = Section("Query", found, images, look.filter_text(), look.near)
        title = f"What taught {library.store.name} the image {name}?"
        write_report(file, title, [section], library.shown["sample"][1])
        return file.read_bytes()
