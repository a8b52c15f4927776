"""`caudal customers split`, `move`, `undo` and `decisions`: who is who, where the evidence had it wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caudal.cli._output import Json, counted, emit, examples, note, resolved, table

if TYPE_CHECKING:
    import psycopg

    from caudal.decisions import Decision
    from caudal.processors.identity import Link
    from caudal.settings import Settings

__all__ = ["register"]

Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help="A subject, <source>:<type>:<id>.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why, for those who look at it later.")]
Alone = Annotated[
    bool,
    typer.Option(
        "--alone", help="Take nothing along: it is parted from what names it (its orders, deals, tickets), too."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show who would go where.")]
Wait = Annotated[float, typer.Option("--wait", min=0, max=600, help="Longest wait for a worker to do it, in seconds.")]


def register(app: typer.Typer) -> None:
    """Add the commands to those of customers."""
    for command, lines in (
        (split, ("caudal customers split shop-br:customer:2071 --dry-run",
                 "caudal customers split shop-br:customer:2071 --reason 'shares the phone of her mother'")),
        (move, ("caudal customers move crm:contact:7 --to 4f1c9a52-7d0e-5b6c-8a1f-2f0c6a1d9c77",
                "caudal customers move crm:contact:7 --to shop-br:customer:2071 --json")),
        (undo, ("caudal customers undo 0f8b7c52-3a51-4f0e-9a0e-0c8f3f1d2b7a",)),
        (decisions, ("caudal customers decisions", "caudal customers decisions --subject crm:contact:7 --json")),
    ):  # fmt: skip
        app.command(epilog=examples(*lines))(command)


def split(
    subject: Subject,
    *,
    reason: Reason = None,
    alone: Alone = False,
    dry_run: DryRun = False,
    wait: Wait = 10.0,
    as_json: Json = False,
) -> None:
    """Split an account off its customer: it becomes a customer of its own, and nothing that they share joins them again.

    What names it goes with it. Others of the customer that only it held together part too. Exit status 1 when no such subject is known.
    """
    from caudal.decisions import plan_split

    _decide(lambda db: plan_split(db, subject, actor=_actor(), comment=reason, alone=alone), dry_run, wait, as_json)


def move(
    subject: Subject,
    *,
    to: Annotated[str, typer.Option("--to", help="The customer's id, or a subject of the customer.")],
    reason: Reason = None,
    alone: Alone = False,
    dry_run: DryRun = False,
    wait: Wait = 10.0,
    as_json: Json = False,
) -> None:
    """Move an account to another customer; no evidence takes it away again.

    What names it goes with it. Exit status 1 when no such subject or customer is known.
    """
    from caudal.decisions import plan_move

    _decide(lambda db: plan_move(db, subject, to, actor=_actor(), comment=reason, alone=alone), dry_run, wait, as_json)


def undo(
    decision: Annotated[str, typer.Argument(metavar="DECISION", help="The decision's id.")],
    *,
    reason: Reason = None,
    dry_run: DryRun = False,
    wait: Wait = 10.0,
    as_json: Json = False,
) -> None:
    """Undo a split or a move: the evidence decides again, and customers have the ids that they had.

    Exit status 1 when there is no such decision.
    """
    from caudal.decisions import plan_undo

    _decide(lambda db: plan_undo(db, decision, actor=_actor(), comment=reason), dry_run, wait, as_json)


def decisions(
    *,
    subject: Annotated[str | None, typer.Option(help="Only those about this subject.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most decisions shown.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was split, moved and undone, the newest first."""
    from caudal.decisions import listed

    with _connected(resolved()) as db:
        found = listed(db, subject=subject, limit=limit)
    if as_json:
        emit(found)
    else:
        table(
            ("decision", "at", "what", "subject", "by", "reason", "moved", "undone by"),
            [
                (d["decision_id"], d["decided_at"], d["kind"], d["subject"], d["actor"], d["comment"], len(d["moves"]),
                 d["undone_by"])
                for d in found
            ],
        )  # fmt: skip


def _actor() -> str:
    from caudal.cli.segments import user

    return user()


def _decide(plan: Callable[[psycopg.Connection[Any]], Decision], dry_run: bool, wait: float, as_json: bool) -> None:
    from caudal import decisions
    from caudal.schemas.codec import Codec, Registry

    settings = resolved()
    with _connected(settings) as db:
        decision = plan(db)
        if dry_run:
            links = _preview(settings, db, decision)
            _tell(
                decision,
                [(link.subject, link.previous_customer_id, link.customer_id) for link in links],
                as_json,
                "previewed",
            )
            return
        registry = Registry(settings)
        try:
            decisions.store(settings, Codec(registry), decision)
        finally:
            registry.close()
        done = decisions.wait(db, decision.id, wait)
    moves = [(move["subject"], move["from"], move["to"]) for move in done["moves"]] if done else []
    _tell(decision, moves, as_json, "done" if done else "stored")


def _preview(settings: Settings, db: psycopg.Connection[Any], decision: Decision) -> list[Link]:
    from caudal.processors import rules
    from caudal.processors._links import Links

    return Links(lambda: db, rules.load(settings)).preview(decision)


def _tell(decision: Decision, moves: Sequence[tuple[str, str | None, str]], as_json: bool, state: str) -> None:
    if as_json:
        emit(
            {
                "decision_id": decision.id,
                "kind": decision.kind,
                "subject": decision.subject,
                "state": state,
                "moves": [{"subject": subject, "from": was, "to": now} for subject, was, now in moves],
            }
        )
        return
    if moves:
        table(("subject", "from", "to"), moves)
    match state:
        case "previewed":
            note(f"this would move {counted(len(moves), 'subject')}; nothing was changed")
        case "done":
            note(f"decision {decision.id}: {counted(len(moves), 'subject')} moved")
        case _:
            note(f"decision {decision.id} is stored; it is done as soon as a worker translates")


@contextmanager
def _connected(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    from caudal import postgres

    with postgres.translated(), postgres.connect(settings.postgres, role="cli", schema="hub") as db:
        yield db
