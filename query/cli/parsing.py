"""Flags and YAML for configurations: each field of a pydantic model is a flag of the same name."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError

from gradstore.errors import ConfigError
from gradstore.flags.files import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS: Final = "Settings"
ADVANCED: Final = "Advanced"

# Settings that are paths.
_PATHS: Final = {"base", "checkpoints", "dataset", "out", "queries", "results", "store"}

# Settings that may name a class to import.
_MEASURES: Final = {"measure", "measures"}

Model = TypeVar("Model", bound=BaseModel)


class Flag(click.Option):
    """A flag that `--help` lists under a heading."""

    def __init__(self, *arguments: Any, heading: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.heading = heading


class Command(click.Command):
    """A command whose `--help` groups flags by their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags grouped by heading, in the order of the headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(one, "heading", "Options"), []).append(record)
        known = {SETTINGS: -1, ADVANCED: 1, "Options": 2}
        for heading in sorted(groups, key=lambda one: known.get(one, 0)):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])


def flags(
    model: type[BaseModel], *, argument: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a click command with one flag per field, and `[CONFIG]`, a YAML file.

    Args:
        model: the configuration.
        argument: field that is given by its place, without a flag, in place of `[CONFIG]`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(model.model_fields.items()):
            if name == argument or _marked(model, name, "internal"):
                continue
            kind, many = _kind(field.annotation)
            commas = _commas(model, name)
            text = field.description or ""
            default = field.get_default(call_default_factory=True)
            flag, heading = f"--{name.replace('_', '-')}", _heading(model, name)
            settings: dict[str, Any] = {"default": None, "cls": Flag, "heading": heading}
            if kind is bool:  # a flag without a value
                command = click.option(flag, name, is_flag=True, help=text, **settings)(command)
                continue
            if field.is_required():
                text += "  [required]"
            elif default not in (None, "", []):
                shown = ", ".join(map(str, default)) if isinstance(default, list) else default
                text += f"  [default: {shown}]"
            command = click.option(
                flag,
                name,
                type=str if many else kind,
                multiple=many,
                metavar="A,B,…" if commas else None,
                help=text + ("" if commas or not many else "; repeat the flag for more"),
                **settings,
            )(command)
        if _MEASURES & model.model_fields.keys():
            command = click.option(
                "--allow-imports",
                is_flag=True,
                help="import a measure PACKAGE.MODULE.NAME that the YAML file names, which runs "
                "that module; one given by flag is imported without this",
            )(command)
        if argument is not None:
            return click.argument(argument)(command)
        return click.argument(
            "config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
        )(command)

    return decorate


def _heading(model: type[BaseModel], name: str) -> str:
    """Heading of a field: the name of the specification that declares it."""
    if _marked(model, name, "advanced"):
        return ADVANCED
    owner = next(
        cls for cls in reversed(model.__mro__) if name in vars(cls).get("__annotations__", ())
    )
    return owner.__name__.removesuffix("Spec") if owner.__name__.endswith("Spec") else SETTINGS


def parse(model: type[Model], config: Path | None, given: dict[str, Any]) -> Model:
    """Build a configuration from a YAML file and flags; flags override the file.

    Raises:
        ConfigError: names the file or flag, what was found, and what is allowed.
    """
    allowed = given.pop("allow_imports", False)
    values = {} if config is None else settings_of(config)
    for name in _MEASURES & values.keys():
        for measure in values[name] if isinstance(values[name], list) else [values[name]]:
            if not allowed and "." in str(measure).partition("@")[0].partition(":")[0]:
                raise ConfigError(
                    f"{config}: {name} has {measure!r}, which would import and run a module. If "
                    "you trust the file, add --allow-imports."
                )
    values |= {name: _home(values[name]) for name in _PATHS & values.keys()}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    for name, value in given.items():
        if _commas(model, name):
            values[name] = [one for text in value for one in text.split(",")]
        else:
            values[name] = list(value) if isinstance(value, tuple) else value
        if name in _PATHS:  # a shell expands `--store ~/x` but not `--store=~/x`
            values[name] = _home(values[name])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, config, model, given)) from error


def _home(value: Any) -> Any:
    """A path, or a list of paths, with `~` replaced by the home folder, if that is known."""
    if isinstance(value, list):
        return [_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


def _commas(model: type[BaseModel], name: str) -> bool:
    """Whether one flag may give several values, separated by commas, which none can contain."""
    kind, many = _kind(model.model_fields[name].annotation)
    return many and (kind is not str or _marked(model, name, "commas"))


def _marked(model: type[BaseModel], name: str, mark: str) -> bool:
    extra = model.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(mark))


def _explain(
    error: ValidationError, config: Path | None, model: type[BaseModel], given: dict[str, Any]
) -> str:
    lines = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else ""
        flag = f"--{name.replace('_', '-')}"
        if config is not None and given.get(name) is None and item["type"] != "missing":
            flag = f"{config}: {name}"
        if item["type"] == "missing":
            lines.append(f"{flag} is missing: {model.model_fields[name].description}")
        elif item["type"] == "extra_forbidden":
            near = get_close_matches(name, model.model_fields, n=1)
            meant = f"did you mean {near[0]!r}?" if near else "see --help for all settings."
            lines.append(f"{config} has a setting {name!r} that does not exist; {meant}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            lines.append(f"{flag} is {item['input']!r}: {reason}")
    return "\n".join(lines)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Click type of a value with this annotation, and whether several values are allowed."""
    if get_origin(annotation) is UnionType or NoneType in get_args(annotation):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    if get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in get_args(annotation)]), False
    return annotation, False
