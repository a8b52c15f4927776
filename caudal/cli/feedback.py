"""`caudal feedback`: links by which a customer answers a survey."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Literal

import typer

from caudal.cli._output import NEGATIVE, examples, note, resolved, say

__all__ = ["app"]

app = typer.Typer(help="Ask customers: signed links to a form.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Keep `link` a command of its own although it is the only one."""


@app.command(
    epilog=examples(
        "caudal feedback link --customer 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77 --survey 2026-05 --kind nps",
        "caudal feedback link --customer 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77 --survey shop --kind review --product Sandal --expires 90d",
    )
)
def link(
    *,
    customer: Annotated[uuid.UUID, typer.Option(metavar="ID", help="The customer's id.")],
    survey: Annotated[str, typer.Option(help="The name of the survey.")],
    kind: Annotated[Literal["nps", "csat", "ces", "review"], typer.Option(help="What is asked.")],
    product: Annotated[str | None, typer.Option(help="The product that it is about.")] = None,
    expires: Annotated[str, typer.Option(help="How long it can be answered: a number and min, h, d or w.")] = "30d",
) -> None:
    """Print the address of a form that this customer can answer, again to correct it. Exit status 1 when there is no such customer.

    The source `feedback` signs it: `caudal sources add feedback --connector feedback --generate` makes it.
    """
    from pydantic import ValidationError

    from caudal import postgres, sources
    from caudal.connectors.feedback import PATH, SOURCE, Claims, token
    from caudal.projections.criteria.tree import duration

    settings = resolved()
    configured = sources.load(settings)
    secret = configured.secrets(SOURCE)[0]
    with postgres.connect(settings.postgres, role="cli") as conn:
        row = conn.execute(
            "SELECT subject FROM hub.subjects WHERE customer_id = %s ORDER BY source = %s, subject LIMIT 1",
            (customer, SOURCE),
        ).fetchone()
    if row is None:
        note(f"caudal: no customer has the id {customer}")
        raise typer.Exit(NEGATIVE)
    try:
        claims = Claims(
            customer=str(customer), subject=row[0], survey=survey, kind=kind, product=product,
            expires=int(time.time() + duration(expires).total_seconds()),
        )  # fmt: skip
    except (ValidationError, ValueError) as exc:
        fault = exc.errors(include_input=False)[0]["loc"][0] if isinstance(exc, ValidationError) else "expires"
        raise typer.BadParameter(f"{fault} can't be used") from None
    base = settings.edge.public_url or f"http://{settings.edge.host}:{settings.edge.port}"
    say(f"{base.rstrip('/')}{PATH}?token={token(claims, secret)}")
