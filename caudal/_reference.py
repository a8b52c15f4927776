"""The reference pages that follow from the code: `python -m caudal._reference settings > docs/reference/settings.md`.

Pages: settings, cli, criteria. A test compares each with what is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["PAGES", "cli", "criteria", "settings"]


def settings() -> str:
    """Every setting with its default, by group."""
    from caudal.settings import PREFIX, SECRET_PREFIX, Settings

    groups: list[tuple[str, str, type[BaseModel]]] = []
    top: list[str] = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            groups.append((name, (field.annotation.__doc__ or "").strip(), field.annotation))
        else:
            top.append(_setting(f"{PREFIX}{name}", field))
    parts = [
        "# Settings",
        (
            f"Every setting is an environment variable. One that begins with `{PREFIX}` and is none of these is an error, "
            "so that a misspelling is found. `caudal.toml` holds the sources and the scheduled reports, and nothing else."
        ),
        _table(("variable", "default", "what it is"), top),
    ]
    for name, text, group in groups:
        rows = [_setting(f"{PREFIX}{name}__{sub}", field) for sub, field in group.model_fields.items()]
        parts += [
            f"## {_TITLES.get(name, name.capitalize())}",
            text,
            _table(("variable", "default", "what it is"), rows),
        ]
    parts += [
        "## Secrets",
        (
            f"`{SECRET_PREFIX}<NAME>` holds a source's secret: the name is the one in `caudal.toml` in capitals, hyphens "
            "as underscores. One that isn't in the environment is looked for under `[secrets]` in the secrets file."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def cli() -> str:
    """Every command with its arguments, options and examples."""
    import typer.main

    from caudal.cli import app
    from caudal.cli._output import STATUSES

    parts = [
        "# Commands",
        (
            "`caudal COMMAND --help` says the same. Commands that print data take `--json`. Data go to standard output, "
            "all else to standard error."
        ),
        _table(("exit status", "means"), [f"| {status} | {meaning} |" for status, meaning in STATUSES.items()]),
    ]
    for path, command in _commands(typer.main.get_command(app), "caudal"):
        parts += [f"## {path}", (command.help or "").replace("\n\n", "\n").strip()]
        rows = [_parameter(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        if rows:
            parts.append(_table(("argument or option", "what it is"), rows))
        lines = (command.epilog or "").split("\n")[1:]
        parts.append("```console\n" + "\n".join(f"$ {line.strip()}" for line in lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def criteria() -> str:
    """Every field and every kind of fact that criteria can speak of."""
    from caudal.projections.criteria.fields import FACT_KINDS, FIELDS, OPERATORS

    def rows(fields: Mapping[str, Any]) -> list[str]:
        return [f"| `{name}` | {field.kind} | {field.about} |" for name, field in fields.items()]

    parts = [
        "# Fields of criteria",
        "What [criteria](../segments.md) can speak of. Beside these: `consent(…)`, `segment(…)`, `source(…)`, `near(…)`.",
        _table(
            ("kind", "what can be asked"),
            [f"| {kind} | {', '.join(f'`{o}`' for o in operators)} |" for kind, operators in OPERATORS.items()],
        ),
        "## Customers",
        (
            "Fields of kind money are followed by a dot and a currency, `attributes` by a dot and the attribute's name, `custom` by a dot\n"
            "and the name of a value of a [custom metric](../metrics.md#your-own)."
        ),
        _table(("field", "kind", "what it is"), rows(FIELDS)),
    ]
    for name, kind in FACT_KINDS.items():
        measures = [
            "`times`",
            *(["`units`"] if kind.lines else []),
            *(["`amount_minor.<currency>`"] if kind.amount else []),
        ]
        parts += [
            f"## {name}",
            f"{kind.about[0].upper()}{kind.about[1:]}. Counted by {', '.join(measures)}.",
            _table(("field", "kind", "what it is"), rows(kind.fields)),
        ]
    return "\n\n".join(parts) + "\n"


_TITLES = {"postgres": "PostgreSQL", "serving": "API"}

PAGES = {"settings": settings, "cli": cli, "criteria": criteria}
"""Page name = its text."""


def _table(columns: tuple[str, ...], rows: list[str]) -> str:
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    return "\n".join([head, *rows])


def _setting(variable: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, "", {}) else f"`{default}`"
    return f"| `{variable.upper()}` | {shown} | {field.description} |"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    subcommands = getattr(command, "commands", {})
    if not subcommands or command.invoke_without_command:
        yield path, command
    for name, sub in subcommands.items():
        yield from _commands(sub, f"{path} {name}")


def _parameter(parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if is_argument else parameter.opts
    name = ", ".join(f"`{each}`" for each in names)
    return f"| {name} | {parameter.help} |"


if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1]]())
