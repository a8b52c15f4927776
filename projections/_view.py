"""What a view is: one SELECT over facts with a key."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """A table kept equal to a SELECT.

    Attributes:
        name: the table.
        key: its primary key; the first column is `customer_id`. With a second one the table has several rows a customer, the members
            of a set, and the SELECT gives one row a customer with the set as the array `members`.
        columns: column → SQL type, in the order of the SELECT.
        reads: the facts or views whose change touches a customer's rows. Moved subjects touch every view; `links` is named by a view
            that a subject without any facts changes.
        select: the SELECT. It starts from the CTE `subjects(customer_id, subject, source, deleted_at)` (or, for a view of views, from
            `customers(customer_id)`), which the runner restricts to the touched customers, and a rebuild doesn't. `{schema}` is the
            schema that holds the facts; `{priority}` is an SQL expression for a source's priority over the column `source`. Facts
            are joined as `CROSS JOIN LATERAL (SELECT … WHERE x.subject = s.subject {fence})`: the fence keeps a refresh on the index
            whatever the planner believes of tables that grow; a rebuild leaves it out, and the planner joins as it likes.
        topic: the change topic its rows go to, if any.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, str]
    reads: tuple[str, ...]
    select: str
    topic: str | None = None
