"""`caudal verify`, and what `caudal replay` does for a proof: one customer from the log, the views as of a point in time."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.cli._output import NEGATIVE, Json, compact, counted, emit, examples, note, resolved, table

if TYPE_CHECKING:
    from caudal.projections import Prover
    from caudal.schemas.codec import Codec
    from caudal.settings import Settings

__all__ = ["as_of", "rebuild_customer", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=examples("caudal verify", "caudal verify --sample 500", "caudal verify --json | jq .tables"))(
        verify
    )


def verify(
    *,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Only so many customers, drawn at random of all; all when there are no more."
        ),
    ] = None,
    customer: Annotated[uuid.UUID | None, typer.Option(metavar="ID", help="Only this customer.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that the live tables are what the log says. Exit status 1 when they aren't.

    Without options everything is rebuilt beside the live tables and compared at the same offsets; with --sample or --customer,
    customers are rebuilt one by one; --sample also compares the rollups with the facts. Nothing is changed; `caudal replay --customer
    ID` puts a customer right.
    """
    from caudal.projections import known as population
    from caudal.projections import plain, verify_customers, verify_rollups
    from caudal.projections import sample as sampled

    if sample is not None and customer is not None:
        raise typer.BadParameter("give --sample or --customer, not both")
    told: dict[str, Any] = {}
    known: int | None = None
    if sample is None and customer is None:
        findings, told = _whole(as_json)
    else:
        from caudal import postgres

        with _prover() as (prover, settings):
            if customer is not None:
                customers = [str(customer)]
            else:
                with postgres.connect(settings.postgres, role="cli") as conn, postgres.translated():
                    customers, known = sampled(conn, sample or 0), population(conn)
            findings = verify_customers(prover, customers)
            if sample is not None:
                with postgres.connect(settings.postgres, role="cli") as conn, postgres.translated():
                    verify_rollups(conn, findings)
    if as_json:
        of = {} if known is None else {"of_customers": known}
        emit({**findings.plain(), **of, **({"offsets": told["offsets"], "digests": told["tables"]} if told else {})})
    else:
        _show([plain(difference) for difference in findings.differences])
        end = (
            f"; {counted(findings.rows, 'differing row')} of {counted(findings.differing, 'customer')}"
            if findings.rows
            else ": every row is what the log says"
        )
        of_all = "" if known is None else f" of {known:,}"
        note(f"{counted(findings.customers, 'customer')}{of_all} proved{end}")
    if findings.rows:
        raise typer.Exit(NEGATIVE)


def rebuild_customer(customer: uuid.UUID, *, dry_run: bool, as_json: bool) -> None:
    """Rebuild one customer from the log, show what differs, and put it right unless `dry_run`; then exit status 1 if it differs."""
    from caudal.projections import plain

    with _prover() as (prover, _):
        found = prover.rebuild(str(customer), repair=not dry_run)
    differences = [plain(difference) for difference in found.differences]
    if as_json:
        emit(
            {
                "customer_id": found.customer_id,
                "events": found.events,
                "subjects": found.subjects,
                "differences": differences,
                "repaired": found.repaired,
            }
        )
    else:
        _show(differences)
        end = "put right" if found.repaired else "not changed" if differences else "every row is what the log says"
        read = f"{counted(found.events, 'event')} of {counted(len(found.subjects), 'subject')}"
        note(f"{read}, {counted(len(differences), 'differing row')}: {end}")
    if differences and dry_run:
        raise typer.Exit(NEGATIVE)


def as_of(at: str, into: str, *, replace: bool, as_json: bool) -> None:
    """Build the views as they stood at a time into a schema of their own."""
    from caudal.cli.replay import progress
    from caudal.projections import replay as replays

    when, schema = replays.moment(at), replays.schema_name(into)
    with (
        _codec() as (settings, codec, priorities),
        progress(as_json) as tell,
        replays.Proof.opened(settings, codec, priorities=priorities, tell=tell) as proof,
    ):
        record = proof.as_of(when, schema, replace=replace)
    if as_json:
        emit(record.plain())
    else:
        note(
            f"schema {schema} holds the views as of {when:%Y-%m-%d %H:%M:%S} UTC; `caudal replay drop {schema}` removes it"
        )


def _whole(as_json: bool) -> Any:
    from caudal.cli.replay import progress
    from caudal.projections import replay as replays

    with (
        _codec() as (settings, codec, priorities),
        progress(as_json) as tell,
        replays.Proof.opened(settings, codec, priorities=priorities, tell=tell) as proof,
    ):
        return proof.verify()


@contextmanager
def _codec() -> Iterator[tuple[Settings, Codec, dict[str, int]]]:
    from caudal import sources
    from caudal.schemas.codec import Codec, Registry

    settings = resolved()
    registry = Registry(settings)
    try:
        yield settings, Codec(registry), {name: source.priority for name, source in sources.load(settings).items()}
    finally:
        registry.close()


@contextmanager
def _prover() -> Iterator[tuple[Prover, Settings]]:
    from caudal.projections import Prover

    with _codec() as (settings, codec, priorities):
        prover = Prover(settings, codec, priorities=priorities)
        try:
            yield prover, settings
        finally:
            prover.close()


def _show(differences: Iterable[dict[str, Any]]) -> None:
    rows = [
        (
            d["customer_id"] or "",
            d["table"],
            compact(d["key"]),
            d["what"],
            field,
            compact(both["live"]),
            compact(both["log"]),
        )
        for d in differences
        for field, both in d["fields"].items()
        if d["what"] == "changed" or field not in d["key"]
    ]
    if rows:
        table(("customer", "table", "key", "row", "field", "live", "log"), rows)
