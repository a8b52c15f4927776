"""Whether what a SELECT gives hangs on the order in which rows happen to lie.

Reads a query as PostgreSQL stores it. Where an order decides (LIMIT, DISTINCT ON, texts and arrays of rows, windows that number, pick or
sum row by row), it has to be whole: no two different rows may be equal in it. It is, when it names every group of a grouped query,
the key of every relation in FROM (all the columns, of what has no key), or, except in windows, everything that comes out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["undecided"]

_TOKEN = re.compile(r"[(){}]|[^\s(){}]+")
_RELATION, _JOIN, _RESULT, _GROUP = "0", "2", "8", "9"
"""Kinds of what stands in FROM (`RTEKind` of PostgreSQL); a join adds no rows of its own."""
_WITH_TIES = "1"
_ROWS = 0x04
"""Of a window's frame: counted by rows (`FRAMEOPTION_ROWS`)."""
_PEERS_ALIKE = {"rank", "dense_rank", "percent_rank", "cume_dist"}
"""Window functions that are equal for rows equal in the order."""

OF_ROWS = {
    "array_agg", "string_agg", "json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg", "any_value", "xmlagg", "json_arrayagg",
    "json_objectagg",
}  # fmt: skip
"""Aggregates that give something else when rows come in another order."""

_Node = dict[str, Any]
_Keys = Mapping[int, Sequence[set[int]]]


def undecided(tree: str, keys: _Keys, functions: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """What an order that isn't whole decides: the word to look for, and what it is.

    Args:
        tree: the query as `pg_rewrite.ev_action` has it, without escaped characters.
        keys: relation → sets of columns, by number, each of which tells its rows apart.
        functions: the names of functions.
    """
    for query in _within(_read(iter(_TOKEN.findall(tree))), "QUERY", through=True):
        yield from _of_query(query, keys, functions)


def _of_query(query: _Node, keys: _Keys, functions: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    targets = _list(query["targetList"])
    windows = {window["winref"]: window for window in _list(query["windowClause"])}
    for function in _within(targets, "WINDOWFUNC"):
        name, window = functions.get(int(function["winfnoid"]), ""), windows[function["winref"]]
        if not _decided(query, name, function, window, keys):
            yield name, f"{name}()"
    for aggregate in _within([*query.values()], "AGGREF"):
        name, order = functions.get(int(aggregate["aggfnoid"]), ""), _references(aggregate["aggorder"])
        given = _list(aggregate["args"])
        if name in OF_ROWS and not (_named(given, order) or _rows_apart(query, given, order, keys)):
            yield name, f"{name}()"
    order = _references(query["sortClause"])
    if _named(targets, order) or _tells_apart(query, order, keys):
        return
    if query["hasDistinctOn"] == "true":
        yield "distinct", "DISTINCT ON"
    elif query["limitOffset"] != "<>":
        yield "offset", "OFFSET"
    elif query["limitCount"] != "<>" and query["limitOption"] != _WITH_TIES:
        yield ("limit" if query["limitOption"] == "0" else "fetch"), "LIMIT"


def _decided(query: _Node, name: str, function: _Node, window: _Node, keys: _Keys) -> bool:
    """Whether a window function gives the same however rows lie."""
    if name in _PEERS_ALIKE:
        return bool(window["orderClause"] != "<>")
    by_rows = bool(int(window["frameOptions"]) & _ROWS)
    if function["winagg"] == "true" and name not in OF_ROWS and not by_rows:
        return True
    return _tells_apart(query, _references(window["partitionClause"]) | _references(window["orderClause"]), keys)


def _named(targets: Sequence[_Node], order: set[str]) -> bool:
    """Whether everything that comes out is in the order: rows equal in it are equal."""
    shown = [target for target in targets if target["resjunk"] == "false"]
    return all(target["ressortgroupref"] in order or target["expr"]["node"] == "CONST" for target in shown)


def _tells_apart(query: _Node, order: set[str], keys: _Keys) -> bool:
    """Whether no two rows of a query are equal in these columns, by their references in the target list."""
    if query["hasTargetSRFs"] == "true" or query["setOperations"] != "<>":
        return False
    groups = _references(query["groupClause"])
    if groups or query["hasAggs"] == "true" or query["havingQual"] != "<>" or query["groupingSets"] != "<>":
        return query["groupingSets"] == "<>" and groups <= order
    return _rows_apart(query, _list(query["targetList"]), order, keys)


def _rows_apart(query: _Node, targets: Sequence[_Node], order: set[str], keys: _Keys) -> bool:
    """Whether no two rows of what stands in FROM are equal in these targets."""
    columns: dict[int, set[int]] = {}
    for target in targets:
        expression = target["expr"]
        if target["ressortgroupref"] in order and expression["node"] == "VAR" and expression["varlevelsup"] == "0":
            columns.setdefault(int(expression["varno"]), set()).add(int(expression["varattno"]))
    for number, entry in enumerate(_list(query["rtable"]), 1):
        if entry["rtekind"] in {_JOIN, _RESULT, _GROUP}:
            continue
        every = [set(range(1, len(_list(entry["eref"]["colnames"])) + 1))]
        ways = keys.get(int(entry["relid"]), every) if entry["rtekind"] == _RELATION else every
        if not any(way <= columns.get(number, set()) for way in ways):
            return False
    return True


def _references(clause: Any) -> set[str]:
    return {each["tleSortGroupRef"] for each in _list(clause)}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _within(value: Any, node: str, *, through: bool = False) -> Iterator[_Node]:
    """The nodes of a kind; those of queries within only when `through`."""
    if isinstance(value, list):
        for each in value:
            yield from _within(each, node, through=through)
    elif isinstance(value, dict):
        if value["node"] == node:
            yield value
        if through or value["node"] != "QUERY":
            for each in value.values():
                yield from _within(each, node, through=through)


def _read(tokens: Iterator[str], end: str = "") -> Any:
    """Lists as lists, nodes as dicts whose `node` is their kind, the rest as texts."""
    items: list[Any] = []
    for word in tokens:
        if word == end:
            break
        if word == "(":
            items.append(_read(tokens, ")"))
        elif word == "{":
            items.append(_fields(_read(tokens, "}")))
        else:
            items.append(word)
    return items


def _fields(items: list[Any]) -> _Node:
    found: _Node = {"node": items[0]}
    name = ""
    for item in items[1:]:
        if isinstance(item, str) and item.startswith(":"):
            name = item[1:]
        else:
            found.setdefault(name, item)
    return found
