"""The guide for writers of connectors says what is so: its code is run."""

from __future__ import annotations

import json
import re
import sys
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from caudal.connectors import Connector, Delivery
from caudal.connectors._tools import as_json

GUIDE = (Path(__file__).parents[2] / "docs" / "connectors.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = types.ModuleType("caudal_marca")  # models look up their annotations in the module that they name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile("\n".join(blocks("python")), "docs/connectors.md", "exec"), module.__dict__)
    return module.__dict__


def test_every_block_runs(guide: dict[str, Any]) -> None:
    assert len(blocks("python")) >= 7
    assert isinstance(guide["connector"], Connector)


def test_the_sample_on_the_page_is_right(guide: dict[str, Any]) -> None:
    (sample,) = (json.loads(block) for block in blocks("json"))
    given = sample["delivery"]
    events = guide["connector"].translate(
        Delivery(
            source="marca",
            body=json.dumps(given["body"]).encode(),
            headers=given["headers"],
            captured_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
    )
    same = {"event_id", "source", "captured_at"}
    assert [{name: value for name, value in as_json(event).items() if name not in same} for event in events] == sample[
        "events"
    ]


def test_the_purchase_on_the_page_counts_money_exactly(guide: dict[str, Any]) -> None:
    account = {"id": 42, "updated_at": "2026-01-31T09:00:00-03:00"}
    body = {"id": 9, "account": account, "amount": "19.90", "currency": "BRL", "points": 19}
    (event,) = guide["connector"].translate(
        Delivery(source="marca", kind="purchase/rewarded", body=json.dumps(body).encode())
    )
    assert event.value_minor == 1990
