"""Which subjects are one customer: a pure decision from what is known and what a batch states.

*Law: as long as no limit of the rules bites, the partition of subjects into customers depends only on what was stated, never on
the order or the batches in which it arrived; two subjects that share an identifier are one customer.* Where limits bite, stronger
evidence decides before weaker, and older customers before younger.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from caudal.processors.rules import Rules
from caudal.schemas import Evidence, derived_id

__all__ = [
    "Carrier",
    "Customer",
    "Decided",
    "Decisions",
    "Key",
    "Known",
    "Link",
    "Member",
    "Merge",
    "State",
    "Statement",
    "founded",
    "resolve",
]

CUSTOMERS = uuid.UUID("0b8e2c1d-7a54-5d0e-8f53-9f2b6c3d4e5f").bytes
"""Namespace of customer ids; changing it changes every id that is yet to be given."""
EVIDENCE_MAX = 5
"""Reasons told with one link; more would say nothing new."""


class Key(NamedTuple):
    """An identifier as a key of dictionaries, which dataclasses hash ten times as slowly."""

    kind: str
    value: str


@dataclass(frozen=True, slots=True)
class Statement:
    """What a batch says of one subject. `at` is when the first capture that says it was captured."""

    subject: str
    source: str
    at: datetime
    identifiers: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """The newest link of a subject."""

    customer_id: str
    link_seq: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Carrier:
    """A customer of whose subjects some carry a value: how many, and one of them."""

    customer_id: str
    count: int
    subject: str


@dataclass(frozen=True, slots=True)
class Customer:
    """When a customer's first subject was created, and the values it has of kinds that are limited."""

    created_at: datetime
    values: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member:
    """One subject of a customer that is looked at subject by subject, with the identifiers that link it.

    One that was erased and has none left stays with whoever keeps the customer's id: nothing says any more whose it is.
    """

    subject: str
    source: str
    known: Known
    identifiers: tuple[Key, ...]
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """What a person decided of two subjects: that they are one customer, or that they are not. Customers are those they have now."""

    subject: str
    other: str
    together: bool
    decision: str
    subject_customer: str | None = None
    other_customer: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """All that is known and matters to a batch.

    Attributes:
        subjects: those of the statements that are known.
        held: the statements' identifiers that their subject already has.
        carriers: who has the identifiers that are new to their subject; for kind `subject` also the subject itself.
        customers: every customer named above.
        members: customers that must be taken subject by subject (see `Decisions.expand`).
        taken: ids that the new subjects would begin customers with, and that others have (a replay from captures keeps ids by giving
            them to whom they were known for).
        decided: what people decided of subjects of the customers above, the newest decision first.
        leaving: subjects that leave the id of their customer to others of it.
        ids: subject → the customer that it goes back to, where nobody else has become that one.
    """

    subjects: Mapping[str, Known] = field(default_factory=dict)
    held: frozenset[tuple[str, Key]] = frozenset()
    carriers: Mapping[Key, Sequence[Carrier]] = field(default_factory=dict)
    customers: Mapping[str, Customer] = field(default_factory=dict)
    members: Mapping[str, Sequence[Member]] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    decided: Sequence[Decided] = ()
    leaving: frozenset[str] = frozenset()
    ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """A new link of one subject."""

    subject: str
    source: str
    customer_id: str
    link_seq: int
    created_at: datetime
    linked_at: datetime
    reason: str
    previous_customer_id: str | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Merge:
    """All subjects of one customer go to another."""

    customer_id: str
    into: str
    linked_at: datetime
    evidence: tuple[Evidence, ...]


@dataclass(slots=True)
class Decisions:
    """What becomes of a batch.

    Attributes:
        links: new links of single subjects.
        merges: customers that move as a whole.
        identifiers: (subject, identifier, whether it links) to remember.
        expand: not empty: nothing is decided yet, the evidence contradicts what these customers were made of. Ask again with
            their members in the state.
    """

    links: list[Link] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    identifiers: list[tuple[str, Key, bool]] = field(default_factory=list)
    expand: set[str] = field(default_factory=set)


def founded(subject: str) -> str:
    """The id of the customer that begins with `subject`: the same for ever, so a replay gives the same ids."""
    return derived_id(CUSTOMERS, subject)


def resolve(state: State, statements: Sequence[Statement], rules: Rules, at: datetime | None = None) -> Decisions:
    """Decide the links of a batch; each subject has one statement.

    Union-find over known customers and new subjects. What people decided comes first. Values are taken strongest kind first; a union
    that would give a customer more values of a kind than the rules allow is refused, and the value is no evidence between those two.

    Args:
        state: what is known.
        statements: what is new.
        rules: of identity.
        at: when customers are looked at again of whom nothing is stated.
    """
    graph = _Graph(state, rules)
    statements = sorted(statements, key=lambda s: (s.at, s.subject))
    decisions = Decisions(identifiers=graph.state_all(statements))
    graph.unite()
    decisions.expand = graph.contradicted - state.members.keys()
    if not decisions.expand:
        graph.decide(statements, decisions, at)
    return decisions


@dataclass(slots=True, eq=False)
class _Node:
    """A customer as a whole, or one subject (new, or a member of an expanded customer)."""

    name: str
    created_at: datetime
    customer_id: str | None = None
    member: Member | None = None
    source: str = ""
    values: dict[str, set[str]] = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    """Decisions that keep it apart from others: the one side of a decision has its number, the other the negative of that."""
    parent: _Node | None = None
    evidence: list[Evidence] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return self.customer_id is not None and self.member is None

    @property
    def age(self) -> tuple[datetime, str]:
        return self.created_at, self.name


class _Graph:
    def __init__(self, state: State, rules: Rules) -> None:
        self.state = state
        self.rules = rules
        self.of: dict[str, _Node] = {}
        self.nodes: list[_Node] = []
        self.carried: defaultdict[Key, list[tuple[_Node, str]]] = defaultdict(list)
        self.uncounted: defaultdict[Key, int] = defaultdict(int)
        """Carriers of a value beyond the entries in `carried`, where one entry stands for several subjects of a customer."""
        self.restated: set[tuple[Key, str]] = set()
        """(value, customer) where a subject that the customer already had states the value now."""
        self.contradicted: set[str] = set()
        self.limits = {kind: most for kind in rules.kinds if (most := rules.most(kind)) is not None}
        self.wholes: dict[str, _Node] = {}
        self.standing: set[str] = set()
        """Ids of expanded customers that one of their subjects keeps, and those that were given anew."""
        self._place_known()

    def _place_known(self) -> None:
        wholes = self.wholes
        for customer_id, customer in self.state.customers.items():
            if customer_id not in self.state.members:
                values = {kind: set(values) for kind, values in customer.values.items() if kind in self.limits}
                wholes[customer_id] = node = _Node(customer_id, customer.created_at, customer_id, values=values)
                self.nodes.append(node)
        for subject, known in self.state.subjects.items():
            if known.customer_id in wholes:
                self.of[subject] = wholes[known.customer_id]
        for customer_id, members in self.state.members.items():
            for member in members:
                node = _Node(member.subject, member.known.created_at, customer_id, member, member.source)
                self.nodes.append(node)
                self.of[member.subject] = node
                for identifier in (*member.identifiers, Key("subject", member.subject)):
                    self.carried[identifier].append((node, member.subject))
                for identifier in member.identifiers:
                    if identifier.kind in self.limits:
                        node.values.setdefault(identifier.kind, set()).add(identifier.value)
        for identifier, carriers in self.state.carriers.items():
            for carrier in carriers:
                if carrier.customer_id in wholes:
                    self.carried[identifier].append((wholes[carrier.customer_id], carrier.subject))
                    self.uncounted[identifier] += carrier.count - 1

    def state_all(self, statements: Iterable[Statement]) -> list[tuple[str, Key, bool]]:
        """Take in the new identifiers; those over their own subject's or customer's limit are remembered but don't link."""
        remembered = []
        for statement in statements:
            subject = statement.subject
            node = self.of.get(subject)
            if node is None:
                node = self.of[subject] = _Node(subject, statement.at, source=statement.source)
                self.nodes.append(node)
                self.carried[Key("subject", subject)].append((node, subject))
            for identifier in sorted(statement.identifiers, key=self._strength):
                if (subject, identifier) in self.state.held:
                    continue
                links = self._take(node, identifier)
                remembered.append((subject, identifier, links))
                if links:
                    self.carried[identifier].append((node, subject))
                    if node.customer_id is not None:
                        self.restated.add((identifier, node.customer_id))
        return remembered

    def _take(self, node: _Node, identifier: Key) -> bool:
        most = self.limits.get(identifier.kind)
        if most is None:
            return True
        values = node.values.setdefault(identifier.kind, set())
        if identifier.value in values:
            return True
        if len(values) >= most:
            if most == 1 and node.whole:
                self.contradicted.add(node.name)
            return False
        values.add(identifier.value)
        return True

    def _strength(self, identifier: Key) -> tuple[int, str]:
        return self.rules.priority[identifier.kind], identifier.value

    def unite(self) -> None:
        """Join what people joined, then what shares a value, strongest kind first."""
        self._obey()
        shared = [identifier for identifier, nodes in self.carried.items() if len(nodes) > 1]
        for identifier in sorted(shared, key=self._strength):
            entries = self.carried[identifier]
            limit = self.rules.shared_by(identifier.kind)
            if limit is None or len(entries) + self.uncounted.get(identifier, 0) <= limit:
                self._join(identifier, entries)
                continue
            # no evidence any more, but it once was: what it held together when it was doesn't fall apart for it
            before: defaultdict[str, list[tuple[_Node, str]]] = defaultdict(list)
            for node, subject in entries:
                if node.member is not None and identifier in node.member.identifiers:
                    before[node.member.known.customer_id].append((node, subject))
            for entries in before.values():
                self._join(identifier, entries)

    def _join(self, identifier: Key, entries: Sequence[tuple[_Node, str]]) -> None:
        heads: list[tuple[_Node, str]] = []
        for node, subject in sorted(entries, key=lambda entry: (entry[0].age, entry[1])):
            root = _root(node)
            joined = False
            for head, carrier in heads:
                if _root(head) is root:
                    joined = True
                elif _kept_apart(_root(head), root):
                    if {(identifier, head.name), (identifier, node.name)} & self.restated:
                        # which subjects of the two go together may look different now
                        self.contradicted |= {one.name for one in (head, node) if one.whole}
                    continue
                elif (limit := self._limit_between(_root(head), root)) is None:
                    _union(_root(head), root)
                    node.evidence.append(Evidence(kind=identifier.kind, value=identifier.value, subject=carrier))
                    head.evidence.append(Evidence(kind=identifier.kind, value=identifier.value, subject=subject))
                    joined = True
                if joined:
                    break
                for refused in (head, node):
                    if limit == 1 and refused.whole and (identifier, refused.name) in self.restated:
                        self.contradicted.add(refused.name)
            if not joined:
                heads.append((node, subject))

    def _obey(self) -> None:
        """Take in what people decided. Where decisions contradict each other by way of third subjects, the newer ones hold."""
        placed = [
            (one, a, b)
            for one in self.state.decided
            if (a := self._node_of(one.subject, one.subject_customer)) is not None
            and (b := self._node_of(one.other, one.other_customer)) is not None
        ]
        for number, (one, a, b) in enumerate(placed, 1):
            if not one.together and a is not b:
                _root(a).apart.add(number)
                _root(b).apart.add(-number)
        for one, a, b in placed:
            if one.together and _root(a) is not _root(b) and not _kept_apart(_root(a), _root(b)):
                _union(_root(a), _root(b))
                a.evidence.append(Evidence(kind="manual", value=one.decision, subject=one.other))
                b.evidence.append(Evidence(kind="manual", value=one.decision, subject=one.subject))

    def _node_of(self, subject: str, customer_id: str | None) -> _Node | None:
        return self.of.get(subject) or self.wholes.get(customer_id or "")

    def _limit_between(self, a: _Node, b: _Node) -> int | None:
        """The lowest limit that forbids to join the two; None when they may be joined.

        What a person joined may be over a limit already; it may be joined with what adds nothing to it.
        """
        return min(
            (
                self.limits[kind]
                for kind, values in a.values.items()
                if kind in b.values
                and len(values | b.values[kind]) > max(self.limits[kind], len(values), len(b.values[kind]))
            ),
            default=None,
        )

    def decide(self, statements: Iterable[Statement], decisions: Decisions, at: datetime | None) -> None:
        """Name each group's customer, and write down every subject or customer that goes to another than it has."""
        heirs = {
            customer_id: self.of[
                min(
                    members,
                    key=lambda m: (m.subject in self.state.leaving, _forgotten(m), m.known.created_at, m.subject),
                ).subject
            ]
            for customer_id, members in self.state.members.items()
        }
        for node in self.nodes:
            if node.member is not None and _forgotten(node.member) and not node.evidence:
                heir = _root(heirs[node.member.known.customer_id])
                if heir is not node:
                    _union(heir, node)
        groups: dict[int, list[_Node]] = {}
        for node in self.nodes:
            groups.setdefault(id(_root(node)), []).append(node)
        self.standing = {customer_id for customer_id, heir in heirs.items() if heir.name not in self.state.ids}
        latest: dict[int, datetime] = {}
        for statement in statements:
            root = id(_root(self.of[statement.subject]))
            latest[root] = max(latest.get(root, statement.at), statement.at)
        for root, nodes in groups.items():
            if root in latest:
                self._decide_group(nodes, heirs, latest[root], decisions)
            else:
                # none of its subjects states anything: a part that fell off an expanded customer
                self._decide_group(nodes, heirs, at or max(latest.values()), decisions)

    def _decide_group(
        self, nodes: Sequence[_Node], heirs: Mapping[str, _Node], at: datetime, decisions: Decisions
    ) -> None:
        if len(nodes) == 1 and nodes[0].customer_id is None:
            decisions.links.append(_first(nodes[0], self._new_id(nodes[0].name), "new"))
            return
        standing = [
            node
            for node in nodes
            if node.whole
            or (
                node.member
                and heirs[node.member.known.customer_id] is node
                and node.member.known.customer_id in self.standing
            )
        ]
        wanted = sorted({self.state.ids[node.name] for node in nodes if node.name in self.state.ids})
        customers = sorted(
            (node.customer_id not in wanted, self._created_at(node), node.customer_id)
            for node in standing
            if node.customer_id
        )
        founder = None
        free = [customer_id for customer_id in wanted if customer_id not in self.standing]
        if customers:
            winner = customers[0][2]
        elif free:
            winner = free[0]
            self.standing.add(winner)
        else:
            founder = min(nodes, key=lambda node: node.age)
            winner = (
                self._new_id(founder.name)
                if founder.member is None
                # the founder's own id may be in use by those it leaves behind
                else founded(f"{founder.name}\n{founder.member.known.link_seq + 1}")
            )
        staying = {customer_id for *_, customer_id in customers}
        for node in nodes:
            evidence = tuple(dict.fromkeys(node.evidence))[:EVIDENCE_MAX]
            if node.customer_id == winner:
                continue
            if node.whole:
                decisions.merges.append(Merge(node.name, winner, at, evidence))
            elif node.member is not None:
                known = node.member.known
                decisions.links.append(
                    Link(
                        subject=node.name,
                        source=node.source,
                        customer_id=winner,
                        link_seq=known.link_seq + 1,
                        created_at=known.created_at,
                        linked_at=at,
                        reason="merge" if known.customer_id in staying else "split",
                        previous_customer_id=known.customer_id,
                        evidence=evidence,
                    )
                )
            elif node is founder:
                decisions.links.append(_first(node, winner, "new"))
            else:
                decisions.links.append(_first(node, winner, "identifier", evidence))

    def _new_id(self, subject: str) -> str:
        customer_id = founded(subject)
        return customer_id if customer_id not in self.state.taken else founded(f"{subject}\n1")

    def _created_at(self, node: _Node) -> datetime:
        assert node.customer_id is not None
        return self.state.customers[node.customer_id].created_at


def _first(node: _Node, customer_id: str, reason: str, evidence: tuple[Evidence, ...] = ()) -> Link:
    """The first link of a new subject."""
    return Link(
        subject=node.name,
        source=node.source,
        customer_id=customer_id,
        link_seq=1,
        created_at=node.created_at,
        linked_at=node.created_at,
        reason=reason,
        evidence=evidence,
    )


def _root(node: _Node) -> _Node:
    while node.parent is not None:
        if node.parent.parent is not None:
            node.parent = node.parent.parent
        node = node.parent
    return node


def _forgotten(member: Member) -> bool:
    return member.erased and not member.identifiers


def _kept_apart(a: _Node, b: _Node) -> bool:
    few, many = sorted((a.apart, b.apart), key=len)
    return any(-number in many for number in few)


def _union(a: _Node, b: _Node) -> None:
    if sum(map(len, a.values.values())) < sum(map(len, b.values.values())):
        a, b = b, a
    b.parent = a
    a.apart |= b.apart
    for kind, values in b.values.items():
        a.values.setdefault(kind, set()).update(values)
