"""`caudal customers`: one person, as the API shows them, read straight from PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from caudal.cli import decisions
from caudal.cli._output import NEGATIVE, Json, compact, counted, emit, examples, note, resolved, say, table

if TYPE_CHECKING:
    from caudal.serving._read import Answer, Customers, Missing, Timeline
    from caudal.serving._search import Search, Searched

__all__ = ["app", "follow", "show", "views_needed"]

app = typer.Typer(
    help="Customers: by id, by an identifier, what happened; and who is who, put right.", no_args_is_help=True
)

Id = Annotated[uuid.UUID, typer.Argument(metavar="ID", help="The customer's id.")]
_T = TypeVar("_T")


@app.command(
    epilog=examples(
        "caudal customers get 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77",
        "caudal customers get 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77 --json | jq .metrics",
    )
)
def get(customer_id: Id, as_json: Json = False) -> None:
    """Show a customer: fields and their sources, metrics, segments, consents, subjects. Exit status 1 when there is none."""
    found = _present(customer_id, lambda customers, _, id_: customers.by_id(id_))
    if as_json:
        emit({**found.data, "token": found.token})
    else:
        show(found.data)


@app.command(
    epilog=examples(
        "caudal customers find --email maria@example.com",
        "caudal customers find --phone '+55 11 98765-4321'",
        "caudal customers find --subject shop-br:customer:2071 --json",
    )
)
def find(
    *,
    email: Annotated[str | None, typer.Option(help="An e-mail address.")] = None,
    phone: Annotated[
        str | None, typer.Option(help="A phone number; without a country code it is of the default region.")
    ] = None,
    cpf: Annotated[str | None, typer.Option(help="A CPF.")] = None,
    cnpj: Annotated[str | None, typer.Option(help="A CNPJ.")] = None,
    external_id: Annotated[str | None, typer.Option(help="An id that a source calls external.")] = None,
    subject: Annotated[str | None, typer.Option(help="A subject, <source>:<type>:<id>.")] = None,
    as_json: Json = False,
) -> None:
    """Find customers by one identifier. Exit status 1 when there is none."""
    from caudal import identifiers

    asked = {"email": email, "phone": phone, "cpf": cpf, "cnpj": cnpj, "external_id": external_id, "subject": subject}
    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) != 1:
        raise typer.BadParameter(f"give exactly one of {', '.join('--' + kind.replace('_', '-') for kind in asked)}")
    [(kind, raw)] = given.items()
    settings = resolved()
    value = identifiers.normalise(kind, raw, settings.default_region)
    if value is None:
        raise typer.BadParameter(f"that is no valid {kind}")

    async def ask(customers: Customers, _timeline: Timeline) -> Answer:
        return await (customers.by_subject(value) if kind == "subject" else customers.by_identifier(kind, value))

    found = _read(ask).data
    if as_json:
        emit(found)
    else:
        table(
            ("customer", "name", "sources", "subjects"),
            [(each["customer_id"], _name(each), each["sources"], len(each["subjects"])) for each in found],
        )
    if not found:
        raise typer.Exit(NEGATIVE)


@app.command(
    epilog=examples(
        "caudal customers timeline 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77",
        "caudal customers timeline 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77 --kind order --limit 5",
    )
)
def timeline(
    customer_id: Id,
    kind: Annotated[list[str] | None, typer.Option(help="Only items of this kind: order, ticket, consent, …")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most items shown.")] = 50,
    as_json: Json = False,
) -> None:
    """Show what happened to a customer, newest first. Exit status 1 when there is none."""
    from caudal.serving._read import KINDS

    if unknown := set(kind or ()) - set(KINDS):
        raise typer.BadParameter(f"unknown kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    found = _present(
        customer_id, lambda _, items, id_: items.page(id_, before=None, limit=limit, kinds=kind or list(KINDS))
    )
    if as_json:
        emit(found.data["items"])
    else:
        table(
            ("at", "kind", "source", "what"),
            [(item["at"][:19], item["kind"], item["source"], compact(item["data"])) for item in found.data["items"]],
        )


@app.command(
    epilog=examples(
        "caudal customers search joão recife",
        "caudal customers search --where 'bought(times >= 2, within = 90d)' --sort -spend_minor.BRL --count",
        "caudal customers search --where 'city = \"Recife\"' --facet segment,source",
        "caudal customers search --where @loyal.yaml --field name,email --export loyal.csv",
    )
)
def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...", help="Words of names, e-mail addresses, phones, documents, city; also misspelt."
        ),
    ] = None,
    *,
    where: Annotated[
        str | None, typer.Option(help="Criteria: the text form, or `@` and a file with text, YAML or JSON.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="A field, `-` before it for descending.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Most customers shown.")] = 50,
    after: Annotated[str | None, typer.Option(help="Go on where a page ended: what it said.")] = None,
    field: Annotated[str | None, typer.Option(help="Fields shown, comma-separated.")] = None,
    count: Annotated[bool, typer.Option("--count", help="Say how many there are.")] = False,
    facet: Annotated[
        str | None,
        typer.Option(help="Count those found by value, comma-separated: city, source, favourite_category, segment."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write everyone found to this file: .csv, .ndjson or .parquet.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search customers by words, by criteria, or both. Exit status 1 when there is none."""
    from caudal.cli.criteria import read
    from caudal.serving._search import DEFAULT_FIELDS, Searched

    asked = Searched(
        criteria=read(where) if where is not None else None, text=" ".join(words) if words else None, sort=sort, limit=limit,
        after=after, count=count,
        fields=_listed(field) or DEFAULT_FIELDS, facets=_listed(facet),
    )  # fmt: skip
    if export is not None:
        _export(asked, export)
        return
    found = _search(lambda s: s.page(asked))
    if as_json:
        emit({**found.data, "token": found.token})
    else:
        rows = [[each[name] for name in ("customer_id", *asked.fields)] for each in found.data["customers"]]
        table(("customer", *asked.fields), rows)
        if count:
            told = found.data["count"]
            say(f"\n{'' if told['exact'] else 'about '}{counted(told['value'], 'customer')}")
        for name, values in found.data.get("facets", {}).items():
            _section((name, "customers"), [(each["value"], each["count"]) for each in values])
        if found.data["next"]:
            note(f"there are more: --after {found.data['next']}")
    if not found.data["customers"]:
        for hint in found.data.get("hints", ()):
            note(f"hint: {hint}")
        raise typer.Exit(NEGATIVE)


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in names.split(","))) if names else ()


def _export(asked: Searched, file: Path) -> None:
    from caudal.serving._export import MEDIA_TYPES, encoded

    format_ = file.suffix.removeprefix(".")
    if format_ not in MEDIA_TYPES:
        raise typer.BadParameter(f"the file's name ends with .{', .'.join(MEDIA_TYPES)}")

    async def write(search: Search) -> None:
        rows = search.export(asked)
        async with aclosing(rows), aclosing(encoded(format_, asked.fields, rows)) as parts:
            first = await anext(parts, b"")  # a search that can't be made leaves no file
            try:
                with file.open("wb") as out:
                    out.write(first)
                    async for piece in parts:
                        out.write(piece)
            except OSError as exc:
                raise typer.BadParameter(f"{file}: {exc.strerror}") from None

    _search(write)


def _search(ask: Callable[[Search], Awaitable[_T]]) -> _T:
    from caudal import postgres
    from caudal.serving._search import Search

    settings = resolved()

    async def run() -> _T:
        async with postgres.opened(settings.postgres, role="cli") as pool:
            return await ask(Search(pool))

    with views_needed():
        return asyncio.run(run())


def show(customer: dict[str, Any]) -> None:
    """Print a customer as the API gives it."""
    fields = customer["profile"] or {}
    stated = [(name, field) for name, field in fields.items() if name not in {"attributes", "version", "changed_at"}]
    stated += [(f"attributes.{name}", field) for name, field in fields.get("attributes", {}).items()]
    say(f"customer {customer['customer_id']}, known to {', '.join(customer['sources'])}\n")
    table(
        ("field", "value", "source", "since"),
        [(name, field["value"], field["source"], (field["since"] or "")[:19]) for name, field in stated],
    )
    metrics = {
        k: v for k, v in (customer["metrics"] or {}).items() if v is not None and k not in {"version", "changed_at"}
    }
    _section(("metric", "value"), metrics.items())
    _section(("segment",), [(each["segment"],) for each in customer["segments"]])
    _section(
        ("consent", "state", "source", "since"),
        [(c["purpose"], c["state"], c["source"], c["occurred_at"][:19]) for c in customer["consents"]],
    )
    _section(
        ("subject", "state", "since"),
        [
            (each["subject"], state, (each[f"{state}_at"] or "")[:19] if state else "")
            for each in customer["subjects"]
            for state in ["erased" if each["erased"] else "deleted" if each["deleted"] else ""]
        ],
    )


def _section(columns: tuple[str, ...], rows: Any) -> None:
    if rows:
        say()
        table(columns, rows)


def _name(customer: dict[str, Any]) -> str:
    return str(((customer["profile"] or {}).get("name") or {}).get("value") or "")


def _present(
    customer_id: uuid.UUID, ask: Callable[[Customers, Timeline, uuid.UUID], Awaitable[Answer | Missing]]
) -> Answer:
    """What is asked about the customer, or about the one that the id went into."""
    from caudal.serving._read import Answer

    found = _read(lambda customers, timeline: ask(customers, timeline, customer_id))
    if isinstance(found, Answer):
        return found
    return _present(follow(customer_id, found), ask)


def follow(customer_id: uuid.UUID, found: Missing) -> uuid.UUID:
    """The customer that the id went into; else says why there is none, and ends the command."""
    match found.went_to:
        case (into,):
            note(f"{customer_id} is part of {into} now")
            return into
        case () if found.erased:
            note(f"caudal: customer {customer_id} was erased")
        case ():
            note(f"caudal: no customer has the id {customer_id}")
        case several:
            note(f"caudal: customer {customer_id} was split into {', '.join(map(str, several))}")
    raise typer.Exit(NEGATIVE)


def _read(ask: Callable[[Customers, Timeline], Awaitable[_T]]) -> _T:
    from caudal import postgres, sources
    from caudal.projections import priority_sql
    from caudal.serving._read import Customers, Timeline

    settings = resolved()
    priority = priority_sql({name: source.priority for name, source in sources.load(settings).items()})

    async def read() -> _T:
        async with postgres.opened(settings.postgres, role="cli") as pool:
            return await ask(Customers(pool, priority), Timeline(pool))

    with views_needed():
        return asyncio.run(read())


decisions.register(app)


@contextmanager
def views_needed() -> Iterator[None]:
    """Say how the views are built where there are none."""
    import psycopg

    from caudal.errors import Fatal

    try:
        yield
    except psycopg.errors.UndefinedTable as exc:
        raise Fatal("the views have not been built yet", hint="`caudal run` builds them") from exc
