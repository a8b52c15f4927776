"""`caudal run`: the whole tree on real servers, and each role as deploy/ runs it."""

import base64
import hashlib
import hmac
import json
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from caudal.projections import ensure_live
from programs import address, caudal, environment, running, until

from caudal import postgres, sources, standing

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "deploy/compose.yaml").read_text())


@pytest.fixture
def hub(settings):
    """Settings with a Shopify source."""
    sources.add(settings, sources.Source(name="shop", connector="shopify", secrets=("shop",)))
    sources.store_secret(settings, "shop", "hush")
    standing.prepare(settings)
    return settings


def _send(edge: str, number: int, email: str, *, damaged: bool = False) -> str:
    body = json.dumps({"id": number, "email": email, "updated_at": datetime.now(UTC).isoformat()}).encode()
    body = body[:8] if damaged else body
    headers = {
        "x-shopify-topic": "customers/update",
        "x-shopify-webhook-id": f"delivery-{number}",
        "x-shopify-hmac-sha256": base64.b64encode(hmac.new(b"hush", body, hashlib.sha256).digest()).decode(),
    }
    answer = httpx.post(f"{edge}/in/shop", content=body, headers=headers, timeout=30)
    assert answer.status_code == 202, answer.text
    return answer.json()["token"]


def _children(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    found = {}
    for child in psutil.Process(process.pid).children():
        line = child.cmdline()
        if "--supervised-as" in line:
            found[line[line.index("--supervised-as") + 1]] = child
    return found


def test_a_tree_takes_a_delivery_to_the_api_and_survives_the_death_of_a_worker(hub, tmp_path):
    log = tmp_path / "run.log"
    token = json.loads(caudal(hub, "tokens", "create", "test", "--scope", "admin", "--json").stdout)["token"]
    with running(["run", "--workers", "2"], environment(hub), log) as tree:
        edge, api = address(hub, "edge", log), address(hub, "api", log)

        def customers(email: str, position: str) -> list[dict]:
            asked = {"email": email, "min-token": position}
            answer = httpx.get(
                f"{api}/customers", params=asked, headers={"authorization": f"Bearer {token}"}, timeout=30
            )
            return answer.json()["customers"] if answer.status_code == 200 else []

        first = _send(edge, 1, "ana@example.com")
        [ana] = until(lambda: customers("ana@example.com", first), log)
        assert ana["profile"]["email"]["value"] == "ana@example.com"

        children = _children(tree)
        steps = {"translate-1", "project-1", "translate-2", "project-2"}
        assert set(children) == {"edge", *steps, "api"}
        for name in steps:
            children[name].kill()
        second = _send(edge, 2, "bia@example.com")
        assert until(lambda: customers("bia@example.com", second), log)

        found = json.loads(caudal(hub, "customers", "find", "--email", "bia@example.com", "--json").stdout)
        assert [each["profile"]["email"]["value"] for each in found] == ["bia@example.com"]
        shown = caudal(hub, "customers", "get", found[0]["customer_id"])
        assert shown.returncode == 0
        assert re.search(r"^email +bia@example.com +shop ", shown.stdout, flags=re.MULTILINE)
        timeline = json.loads(caudal(hub, "customers", "timeline", found[0]["customer_id"], "--json").stdout)
        assert {item["kind"] for item in timeline} >= {"profile"}

        standing_now = json.loads(caudal(hub, "status", "--json").stdout)
        assert standing_now["workers"] == {"translate": 0, "project": 0}
        assert standing_now["sources"] == [{"name": "shop", "connector": "shopify", "captures": 2}]

        # a link may be published twice when a worker dies or is slow, so no more is asked for than there is for sure
        assert tailed(hub, "captures", 2) == {"Capture"}
        assert tailed(hub, "changes", 4) == {"SubjectLinked", "ProfileStated"}

        _send(edge, 3, "", damaged=True)
        [letter] = until(lambda: json.loads(caudal(hub, "dead-letters", "list", "--json").stdout), log)
        assert letter["code"] == "invalid_payload"
        shown = json.loads(caudal(hub, "dead-letters", "show", letter["dead_letter_id"][:8], "--json").stdout)
        assert shown["record"]["body"] == '{"id": 3'
        redriven = caudal(hub, "dead-letters", "redrive", "--code", "invalid_payload", "--json")
        assert json.loads(redriven.stdout) == {"redriven": 1, "skipped": 0}

        left = list(_children(tree).values())
        tree.send_signal(signal.SIGINT)
        assert tree.wait(60) == 0, log.read_text()[-4000:]
        assert not [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def tailed(hub, feed: str, count: int) -> set[str]:
    told = caudal(hub, "tail", feed, "--from-beginning", "--max", str(count), "--json").stdout
    return {json.loads(line)["type"] for line in told.splitlines()}


def test_a_tree_whose_parent_is_killed_ends(hub, tmp_path):
    log = tmp_path / "run.log"
    with running(["run"], environment(hub), log) as tree:
        address(hub, "edge", log)
        address(hub, "api", log)
        children = list(_children(tree).values())
        assert len(children) == 4
        tree.kill()
        psutil.wait_procs(children, timeout=60)
        assert not [child for child in children if child.is_running()]


def test_a_configuration_error_ends_the_tree_with_78(hub, tmp_path):
    hub.config_file.write_text("[sources.shop\n")
    done = caudal(hub, "run")
    assert done.returncode == 78
    assert str(hub.config_file) in done.stderr


@pytest.mark.parametrize(
    "role", [name for name, service in COMPOSE["services"].items() if service["image"] == "caudal"]
)
def test_a_service_of_the_compose_file_becomes_healthy_by_its_own_check(hub, tmp_path, role):
    service, log = COMPOSE["services"][role], tmp_path / "role.log"
    port = _free_port()
    own = {name: str(value) for name, value in service["environment"].items() if "HOST" in name}
    if role == "registry":
        own |= {name: str(value) for name, value in service["environment"].items() if "REGISTRY" in name}
    variable = {"registry": "REGISTRY", "edge": "EDGE", "api": "SERVING"}.get(role, "WORKER")
    own[f"CAUDAL_{variable}__{'WEB_PORT' if variable == 'WORKER' else 'PORT'}"] = str(port)
    _, python, *check = service["healthcheck"]["test"]
    assert python == "python"
    check = [re.sub(r"(127\.0\.0\.1):\d+", rf"\1:{port}", part) for part in check]
    env = environment(hub, **own)
    with postgres.connect(hub.postgres, role="tests") as connection:
        ensure_live(connection)  # a worker's work; the API is ready once there is something to read
    if role == "registry":
        del env["CAUDAL_REGISTRY__URL"]
    with running(service["command"], env, log) as process:
        until(
            lambda: subprocess.run([sys.executable, *check], capture_output=True, env=env, check=False).returncode == 0,
            log,
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(150) in {0, 128 + signal.SIGTERM}, log.read_text()[-4000:]


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
