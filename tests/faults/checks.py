"""What must hold when everything that a seed sent has come to rest; every function gives what does not hold, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
from caudal.projections import Prover, criteria
from caudal.projections.membership import definitions
from caudal.schemas import position
from logs import rebuilt
from model import ORDER, TICKET, Person
from stack import Stack, until
from story import Story
from watchers import CAPTURES, FEEDS, STATES, StreamWatcher, TopicWatcher

from caudal import kafka
from caudal._demo_data import SOURCES
from caudal.errors import CaudalError, DatabaseUnavailable

_TOPICS = (*CAPTURES, *FEEDS, kafka.CHANGES, kafka.DEAD_LETTERS)
_LEFT = """SELECT (SELECT count(*) FROM hub.outbox), (SELECT count(*) FROM hub.unpublished_links),
                   (SELECT count(*) FROM hub.segment_touched) + (SELECT count(*) FROM hub.segments WHERE state <> 'live')"""
_FIGURES = ("orders_count", "refunds_count", "tickets_count", "open_tickets_count")


def rest(stack: Stack, topics: TopicWatcher, stream: StreamWatcher) -> None:
    """Wait until nothing is left to do: no lag, nothing in the outbox, both watchers at the end.

    Raises:
        Stuck: it takes too long.
    """

    def idle() -> bool:
        try:
            with stack.connect() as conn:
                translated = {
                    (t, p): o for t, p, o in conn.execute("SELECT topic, partition, next_offset FROM hub.translated")
                }
                projected = {
                    (kafka.CHANGES, p): o for p, o in conn.execute("SELECT partition, next_offset FROM live.offsets")
                }
                left = conn.execute(_LEFT).fetchone()
            ends.update(kafka.end_offsets(stack.settings.kafka, _TOPICS, client))  # last: what is done by now is in it
        except (CaudalError, psycopg.Error) as exc:
            state.append(type(exc).__name__)
            return False
        done = translated | projected
        lag = {
            t: sum(end - done.get((t, p), 0) for p, end in ends.get(t, {}).items()) for t in (*CAPTURES, kafka.CHANGES)
        }
        state.append({**lag, "outbox, links, judgements": left})
        return set(ends) == set(_TOPICS) and not any(lag.values()) and left == (0, 0, 0)

    client = kafka.admin(stack.settings.kafka)
    ends: dict[str, dict[int, int]] = {}
    state: list[Any] = []
    watched = {*CAPTURES, *FEEDS, kafka.DEAD_LETTERS}
    try:
        until(idle, "rest")
        until(lambda: topics.reached({name: ends[name] for name in watched}), "end of the topics")
        until(lambda: stream.reached(ends), "end of the live stream")
    except AssertionError as exc:
        exc.add_note(f"it stands at {state[-1]}")
        raise


def faults(
    stack: Stack, story: Story, topics: TopicWatcher, stream: StreamWatcher, *, prover: Prover, tokens: list[str]
) -> Iterator[str]:
    """Every check of this module but `rest`."""
    yield from captured(story, topics)
    with stack.connect() as conn:
        customers = dict(
            conn.execute(
                "SELECT subject, customer_id::text FROM live.links WHERE subject = ANY (%s)",
                (sorted(story.model.subjects),),
            ).fetchall()
        )
        people = story.model.people()
        yield from clusters(people, customers)
        ids = sorted(set(customers.values()))
        yield from views(conn, people, customers)
        yield from things(conn, story, customers)
        yield from published(conn, ids, topics)
        yield from segments(conn, ids, topics)
        for view, (extra, missing) in rebuilt(conn).items():
            if extra or missing:
                yield f"{view} is not what its SELECT gives: {len(extra)} rows more, {len(missing)} fewer"
    yield from rebuilt_alike(ids, prover)
    yield from streamed(ids, topics, stream)
    yield from served(stack, story, people, customers, tokens)


def rebuilt_alike(ids: list[str], prover: Prover) -> Iterator[str]:
    """Each customer's rows are what the log says."""
    with contextlib.suppress(DatabaseUnavailable):  # its connection may be one that was broken; it makes another
        prover.rebuild(ids[0])
    for customer in ids:
        for difference in prover.rebuild(customer).differences:
            where = f"{difference.table} {dict(difference.key)}"
            yield f"customer {customer}: {where} is {difference.what} beside the log: {sorted(difference.fields)}"


def captured(story: Story, topics: TopicWatcher) -> Iterator[str]:
    """Everything acknowledged is there, nothing refused is; dead letters are those that nobody can read."""
    found = {source: topics.captures[f"capture.{source}"] for source in SOURCES}
    damaged = set()
    for sent in story.sent:
        there = sent.delivery.body in found[sent.delivery.source]
        if there != (sent.fate != "refused"):
            yield f"a delivery of {sent.delivery.source} that was {sent.fate} is {'' if there else 'not '}in its topic"
        if sent.fate == "damaged":
            damaged.add(sent.delivery.body)
    bodies = {sent.delivery.body for sent in story.sent}
    letters = {letter["capture"]["body"] for letter in topics.letters} & bodies
    if damaged != letters:
        yield f"{len(damaged - letters)} damaged deliveries are no dead letters; {len(letters - damaged)} sound ones are"


def clusters(people: list[Person], customers: dict[str, str]) -> Iterator[str]:
    expected = {person.subjects for person in people}
    by_customer: dict[str, set[str]] = {}
    for subject, customer in customers.items():
        by_customer.setdefault(customer, set()).add(subject)
    found = {frozenset(subjects) for subjects in by_customer.values()}
    for subjects in expected - found:
        yield f"no customer is {sorted(subjects)}, but {sorted(sorted(one) for one in found - expected if one & subjects)}"
    for subjects in found - expected:
        if not any(subjects & one for one in expected):
            yield f"nobody spoke of {sorted(subjects)}"


def views(conn: Any, people: list[Person], customers: dict[str, str]) -> Iterator[str]:
    ids = sorted(set(customers.values()))
    profiles = _rows(conn, "profiles", ids)
    metrics = _rows(conn, "metrics", ids)
    for person in people:
        customer = customers.get(min(person.subjects), "")
        row = profiles.get(customer)
        if (row is None) != (person.profile is None):
            yield f"customer {customer} {'has no' if row is None else 'has a'} profile"
        if row is not None and person.profile is not None:
            for name, value in person.profile.items():
                if row[name] != value:
                    yield f"customer {customer}: {name} is {row[name]!r}, not {value!r}"
            if tuple(row["sources"]) != person.sources:
                yield f"customer {customer}: sources are {row['sources']}, not {person.sources}"
        figures = metrics.get(customer, {})
        for name in _FIGURES:
            if figures.get(name, 0) != person.metrics[name]:
                yield f"customer {customer}: {name} is {figures.get(name)}, not {person.metrics[name]}"
        spend = (figures.get("spend_minor") or {}).get("BRL", 0)
        if spend != person.metrics["spend"]:
            yield f"customer {customer}: spend is {spend}, not {person.metrics['spend']}"


def things(conn: Any, story: Story, customers: dict[str, str]) -> Iterator[str]:
    """Orders, refunds, tickets and consents, and whose they are."""
    for table, key, names, expected in (
        ("orders", "order_id", ORDER, story.model.orders()),
        ("tickets", "ticket_id", TICKET, story.model.tickets()),
    ):
        columns = ", ".join(names)
        found = {
            (source, id_): (subject, dict(zip(names, values, strict=True)))
            for source, id_, subject, *values in conn.execute(
                f"SELECT source, {key}, subject, {columns} FROM live.{table} WHERE {key} = ANY (%s)",
                ([id_ for _, id_ in expected],),
            )
        }
        for thing, (subject, fields) in expected.items():
            of, stated = found.get(thing, ("", {}))
            if stated != fields or customers.get(of) != customers.get(subject):
                yield f"{table}: {thing} of {of} is {stated}; of {subject} was said {fields}"
    refunds = story.model.refunds()
    paid = {
        (source, id_): (amount, currency)
        for source, id_, amount, currency in conn.execute(
            "SELECT source, refund_id, amount_minor, currency FROM live.refunds WHERE refund_id = ANY (%s)",
            ([r for _, r in refunds],),
        )
    }
    if paid != {key: (amount, currency) for key, (_, amount, currency) in refunds.items()}:
        yield f"refunds are {paid}, not {refunds}"
    consents = story.model.consents()
    given = {
        (subject, purpose): state
        for subject, purpose, state in conn.execute(
            "SELECT subject, purpose, state FROM live.consents WHERE subject = ANY (%s)", ([s for s, _ in consents],)
        )
    }
    if given != consents:
        yield f"consents are {given}, not {consents}"


def published(conn: Any, ids: list[str], topics: TopicWatcher) -> Iterator[str]:
    """The last message of each customer is the row; versions never go back."""
    for name, table in ((kafka.PROFILES, "profiles"), (kafka.METRICS, "metrics")):
        rows = _rows(conn, table, ids)
        for customer in ids:
            came = topics.changes.get((name, customer), [])
            versions = [version for version, _ in came if version is not None]
            if versions != sorted(versions):
                yield f"{name}: versions of {customer} go back: {versions}"
            row, last = rows.get(customer), came[-1][1] if came else None
            if (row is None) != (last is None):
                yield f"{name}: the last message of {customer} is {'none' if last is None else 'a row'}, the table says otherwise"
            if row is None or last is None:
                continue
            differing = [field for field, value in row.items() if field in last and not _same(value, last[field])]
            if differing:
                yield f"{name}: the last message of {customer} is not the row: {differing}"


def segments(conn: Any, ids: list[str], topics: TopicWatcher) -> Iterator[str]:
    """Members are whom the criteria hold of; the history leads there step by step, and so do the messages."""
    for segment in definitions.defined(conn):
        assert segment.condition is not None
        asked = criteria.members(segment.condition)
        parameters = {**asked.parameters, "now": datetime.now(UTC)}
        fits = {str(customer) for (customer,) in conn.execute(asked.text, parameters)}
        kept = "SELECT customer_id::text FROM hub.segment_memberships WHERE segment_id = %s"
        members = {customer for (customer,) in conn.execute(kept, (segment.id,))}
        if members != fits:
            yield f"{segment.name} has {sorted(members - fits)} too many, and lacks {sorted(fits - members)}"
        for customer in ids:
            moves = conn.execute(
                "SELECT entered FROM hub.segment_history WHERE customer_id = %s AND segment_id = %s ORDER BY at, ctid",
                (customer, segment.id),
            ).fetchall()
            if moves != [(n % 2 == 0,) for n in range(len(moves))] or (len(moves) % 2 == 1) != (customer in members):
                yield f"{segment.name}: the history of {customer} is {moves}"
            told = [
                v for _, v in topics.changes.get((kafka.SEGMENTS, customer), []) if v and v["segment"] == segment.name
            ]
            if (told[-1]["change"] == "entered" if told else False) != (customer in members):
                yield f"{segment.name}: the last message of {customer} says {told[-1]['change'] if told else 'nothing'}"


def streamed(ids: list[str], topics: TopicWatcher, stream: StreamWatcher) -> Iterator[str]:
    """The stream brought what is on the topics, in the same order, once."""
    for name in STATES:
        for customer in ids:
            on_topic = [version for version, _ in topics.changes.get((name, customer), [])]
            heard = [version for version, _ in stream.changes.get((name, customer), [])]
            if on_topic != heard:
                yield f"the live stream brought {name} of {customer} as {heard}, the topic has {on_topic}"


def served(
    stack: Stack, story: Story, people: list[Person], customers: dict[str, str], tokens: list[str]
) -> Iterator[str]:
    """Who asks for what was acknowledged last finds it."""
    token = position.encode(_newest(tokens))
    with httpx.Client(
        base_url=stack.api, headers={"authorization": f"Bearer {stack.token}"}, timeout=30, verify=False
    ) as client:
        for email in story.emails[:3]:
            expected = {customers.get(min(p.subjects)) for p in people if p.profile and p.profile["email"] == email}
            answer = until(lambda email=email: _asked(client, email, token), "answer of the API")
            found = {customer["customer_id"] for customer in answer["customers"]}
            if not expected <= found:
                yield f"the API knows of {email} {found}, not {expected}"


def _asked(client: httpx.Client, email: str, token: str) -> Any:
    try:
        answer = client.get("/customers", params={"email": email, "min-token": token})
    except httpx.HTTPError:
        return None
    return answer.json() if answer.status_code == 200 else None


def _newest(tokens: list[str]) -> position.Position:
    reached: position.Position = {}
    for token in tokens:
        reached = position.merge(reached, position.decode(token))
    return reached


def _rows(conn: Any, table: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    cursor = conn.execute(f"SELECT t.* FROM live.{table} t WHERE customer_id = ANY (%s::uuid[])", (ids,))
    names = [column.name for column in cursor.description]
    return {str(row[names.index("customer_id")]): dict(zip(names, row, strict=True)) for row in cursor.fetchall()}


def _same(row: Any, told: Any) -> bool:
    """Whether a value of a table and one of a message are the same; other types tell it in other ways."""
    if isinstance(told, dict) and (row is None or isinstance(row, dict)):
        row = row or {}  # a map has no null
        return {k: str(v) for k, v in row.items()} == {k: str(v) for k, v in told.items()}
    if isinstance(row, (list, tuple)) and told is not None:
        return [str(v) for v in row] == [str(v) for v in told]
    return row == told or str(row) == str(told)
