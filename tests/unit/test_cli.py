"""The command line as a person or a script meets it, without servers."""

import base64
import hashlib
import hmac
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest
import structlog
import typer.main

from caudal.cli import app, main

ORDER = {
    "id": 17,
    "updated_at": "2026-01-02T03:04:05Z",
    "email": "a@example.com",
    "currency": "BRL",
    "total_price": "199.90",
}


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def caudal(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("CAUDAL_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, stdin: str | bytes = "") -> Done:
        body = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["caudal", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body)))
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return Done(int(stopped.value.code or 0), out, err)

    yield run
    structlog.reset_defaults()  # it was told to write to this test's standard error


def _commands():
    def walk(command, path):
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(sub, f"{path} {name}")
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield path, command

    return dict(walk(typer.main.get_command(app), "caudal"))


COMMANDS = _commands()


def test_the_commands_are_those_that_the_docs_promise():
    assert set(COMMANDS) == {
        *(
            f"caudal {name}"
            for name in [
                "up",
                "down",
                "status",
                "credentials",
                "run",
                "demo",
                "translate",
                "tail",
                "connectors",
                "replay",
                "verify",
            ]
        ),
        *(f"caudal sources {name}" for name in ["add", "list", "remove"]),
        *(f"caudal connectors {name}" for name in ["show", "verify"]),
        *(f"caudal criteria {name}" for name in ["check", "schema"]),
        *(
            f"caudal customers {name}"
            for name in ["get", "find", "search", "timeline", "split", "move", "undo", "decisions"]
        ),
        *(f"caudal dead-letters {name}" for name in ["list", "show", "redrive"]),
        *(f"caudal scores {name}" for name in ["refresh", "show"]),
        *(f"caudal metrics {name}" for name in ["list", "check", "apply", "remove"]),
        *(f"caudal rates {name}" for name in ["load", "list"]),
        *(
            f"caudal replay {name}"
            for name in ["cancel", "diff", "drop", "keep", "resume", "rollback", "status", "swap"]
        ),
        *(
            f"caudal segments {name}"
            for name in ["list", "show", "create", "edit", "archive", "apply", "preview", "members", "history"]
        ),
        *(f"caudal segments {name}" for name in ["overlap", "explain", "put", "take"]),
        "caudal feedback link",
        *(f"caudal report {name}" for name in ["list", "make", "run-due"]),
        *(f"caudal tokens {name}" for name in ["create", "list", "revoke"]),
    }


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_has_a_help_text_and_examples_of_itself(path):
    command = COMMANDS[path]
    assert command.help
    assert command.epilog
    assert all(parameter.help for parameter in command.params if getattr(parameter, "help", None) is not None)
    lines = command.epilog.split("\n")
    assert lines[0] == "Examples:"
    # `caudal report NAME` is short for `caudal report make NAME`
    assert all(path.removesuffix(" make") in line for line in lines[1:])


EXAMPLES = [line.strip() for _, command in sorted(COMMANDS.items()) for line in command.epilog.split("\n")[1:]]


@pytest.mark.parametrize("example", [*EXAMPLES, *app.info.epilog.split("\n")[1:]])
def test_every_example_is_a_command_line_that_can_be_read(example):
    for part in re.split(r"[|<]|&&", example):
        words = shlex.split(part)
        if not words or words[0] != "caudal":
            continue
        command, arguments = typer.main.get_command(app), words[1:]
        while arguments and arguments[0] in getattr(command, "commands", {}):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        assert command.make_context("caudal", list(arguments))


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = "import sys, caudal.cli; print([m for m in ('faust', 'confluent_kafka', 'psycopg', 'fastapi', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_translate_prints_one_event_a_line(caudal):
    done = caudal(
        "translate", "shopify", "--kind", "orders/create", "--source", "shop-br", "-", stdin=json.dumps(ORDER)
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["type"] for event in events] == ["ProfileStated", "OrderStated"]
    assert events[1]["total_minor"] == 19990
    assert events[1]["subject"] == "shop-br:order:17"


def test_translate_takes_the_kind_from_the_headers(caudal):
    headers = json.dumps({"X-Shopify-Topic": "orders/create"})
    done = caudal("translate", "shopify", "--headers", headers, "-", stdin=json.dumps(ORDER))
    assert done.returncode == 0
    assert '"OrderStated"' in done.stdout


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("orders/create", b"{", "invalid_payload"),
        ("orders/create", b"\xff\xfe", "invalid_payload"),
        ("orders/create", b"[" * 100_000, "invalid_payload"),
        ("orders/levitated", b"{}", "unknown_kind"),
    ],
)
def test_a_payload_that_cannot_be_used_gives_65_and_its_code_on_one_line(caudal, kind, body, code):
    done = caudal("translate", "shopify", "--kind", kind, "-", stdin=body)
    assert done.returncode == 65
    assert done.stdout == ""
    assert code in done.stderr
    assert done.stderr.count("\n") == 1


def test_ndjson_answers_every_line_and_never_stops(caudal):
    lines = [
        json.dumps({"kind": "orders/create", "body": ORDER}),
        json.dumps({"kind": "orders/create", "body": json.dumps(ORDER)}),
        json.dumps({"kind": "orders/create", "body": "{"}),
        "no json",
        json.dumps({"headers": {"x-shopify-topic": "orders/create"}, "body": ORDER}),
    ]
    done = caudal("translate", "shopify", "--ndjson", "-", stdin="\n".join(lines) + "\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert [set(answer) for answer in answers] == [
        {"events"},
        {"events"},
        {"poison", "message"},
        {"poison", "message"},
        {"events"},
    ]
    assert answers[0]["events"][1]["total_minor"] == answers[1]["events"][1]["total_minor"] == 19990


def test_verify_says_by_its_status_whether_the_signature_holds(caudal):
    signed = json.dumps({"X-Shopify-Hmac-Sha256": "Xh81Yq0FG4bf8gZG0rkQ+Jmc6dNnA0Y+f2s2FZ5v8J8="})
    body = "payload"
    wrong = caudal("connectors", "verify", "shopify", "--secret", "s", "--headers", signed, "-", stdin=body)
    assert wrong.returncode == 1
    assert "does not hold" in wrong.stdout
    mark = base64.b64encode(hmac.new(b"s", body.encode(), hashlib.sha256).digest()).decode()
    right = json.dumps({"X-Shopify-Hmac-Sha256": mark})
    for secrets in (("--secret", "s"), ("--secret", "old", "--secret", "s")):
        assert caudal("connectors", "verify", "shopify", *secrets, "--headers", right, "-", stdin=body).returncode == 0


def test_the_replay_window_is_judged_only_with_at(caudal):
    at = "2026-01-01T00:00:00Z"
    mark = base64.b64encode(hmac.new(b"s", at.encode() + b"{}", hashlib.sha256).digest()).decode()
    headers = json.dumps({"x-zendesk-webhook-signature": mark, "x-zendesk-webhook-signature-timestamp": at})

    def verify(*options: str) -> int:
        done = caudal(
            "connectors", "verify", "zendesk", "--secret", "s", "--headers", headers, *options, "-", stdin="{}"
        )
        return done.returncode

    assert verify() == 0
    assert verify("--at", "2026-01-01T00:01:00Z") == 0
    assert verify("--at", "2026-01-02T00:00:00Z") == 1


def test_connectors_lists_them_with_their_kinds(caudal):
    listed = json.loads(caudal("connectors", "--json").stdout)
    assert {"shopify", "hubspot", "zendesk"} <= {each["name"] for each in listed}
    shown = caudal("connectors", "show", "shopify").stdout
    assert "  orders/create\n" in shown


def test_a_wrong_command_line_gives_2(caudal):
    assert caudal("translate", "shopify").returncode == 2
    assert caudal("translate", "shopify", "--headers", "[]", "-").returncode == 2
    assert caudal("translate", "shopify", "no-such-file").returncode == 2
    assert caudal("levitate").returncode == 2
    assert caudal("connectors", "verify", "zendesk", "--secret", "s", "--at", "noon", "-").returncode == 2


def test_an_unknown_setting_gives_78_and_its_name(caudal, monkeypatch):
    monkeypatch.setenv("CAUDAL_KAFKA__BOOTSTRAP_SERVER", "x")
    done = caudal("status")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "CAUDAL_KAFKA__BOOTSTRAP_SERVER" in done.stderr


def test_servers_that_are_down_give_69_and_say_how_to_start_them(caudal):
    for command in (["tokens", "list"], ["tail"], ["customers", "find", "--email", "a@example.com"]):
        done = caudal(*command)
        assert done.returncode == 69, done.stderr
        assert "caudal up" in done.stderr
        assert done.stderr.count("\n") == 1
    assert caudal("status").returncode == 69


def test_stopping_what_does_not_run_is_no_error(caudal):
    done = caudal("down", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"stopped": []}


def test_an_unknown_connector_is_told_with_those_that_exist(caudal):
    done = caudal("translate", "salesforke", "-", stdin="{}")
    assert done.returncode == 78
    assert "shopify" in done.stderr


def test_adding_a_source_twice_changes_nothing_and_says_what_is_left_to_do(caudal):
    first = caudal("sources", "add", "shop-br", "--connector", "shopify", "--json")
    again = caudal("sources", "add", "shop-br", "--connector", "shopify", "--json")
    assert json.loads(first.stdout) == {
        "name": "shop-br",
        "connector": "shopify",
        "changed": True,
        "address": "http://127.0.0.1:8470/in/shop-br",
        "secret_variables": ["CAUDAL_SECRET_SHOP_BR"],
        "secret_set": False,
    }
    assert json.loads(again.stdout)["changed"] is False


def test_a_secret_is_read_from_standard_input_and_never_shown(caudal):
    done = caudal("sources", "add", "crm", "--connector", "hubspot", "--secret", "-", stdin="hush-hush-hush-hush\n")
    assert done.returncode == 0
    assert "hush" not in done.stdout + done.stderr
    [listed] = json.loads(caudal("sources", "list", "--json").stdout)
    assert listed["secret_set"] is True
    assert "hush" not in caudal("sources", "list").stdout


def test_a_secret_that_changes_is_said_to_be_saved_though_the_source_is_the_same(caudal):
    add = ("sources", "add", "crm", "--connector", "hubspot", "--secret", "-")
    told = [
        caudal(*add, stdin=f"{secret}\n").stdout
        for secret in ("the first of them", "the second of them", "the second of them")
    ]
    assert [[line.split(":")[0] for line in each.splitlines()[:2]] for each in told] == [
        ["saved", "saved"], ["unchanged", "saved"], ["unchanged", "unchanged"],
    ]  # fmt: skip
    assert caudal(*add, stdin="\n").returncode == 2
    assert caudal(*add, "--generate", stdin="x\n").returncode == 2


def test_the_source_of_own_forms_says_where_customers_answer_and_how_links_are_made(caudal):
    made = caudal("sources", "add", "feedback", "--connector", "feedback", "--generate")
    assert "http://127.0.0.1:8470/feedback;" in made.stdout
    assert "caudal feedback link" in made.stdout
    assert "webhooks" not in made.stdout
    assert caudal("sources", "add", "forms", "--connector", "feedback").returncode == 78


def test_a_generated_secret_is_shown_once(caudal):
    add = (
        "sources",
        "add",
        "crm",
        "--connector",
        "hubspot",
        "--auth",
        "header",
        "--header",
        "x-key",
        "--generate",
        "--json",
    )
    made = json.loads(caudal(*add).stdout)
    assert len(made["secret"]) >= 32
    assert made["secret"] not in caudal("sources", "list", "--json").stdout


@pytest.mark.parametrize("connector", ["shopify", "hubspot", "zendesk"])
def test_a_vendor_that_makes_its_own_secret_gets_none_made_up(caudal, connector):
    done = caudal("sources", "add", "it", "--connector", connector, "--generate")
    assert done.returncode == 78
    assert "makes its own secret" in done.stderr
    assert json.loads(caudal("sources", "list", "--json").stdout) == []
    told = caudal("sources", "add", "it", "--connector", connector)
    assert f"caudal connectors show {connector}" in told.stdout
    shown = json.loads(caudal("connectors", "show", connector, "--json").stdout)
    assert shown["key_at"] in told.stderr
    assert "HMAC-SHA256" in shown["signed"]
    assert shown["topics"]
    assert shown["signed"] in caudal("connectors", "show", connector).stdout


def test_a_made_up_secret_for_basic_is_user_and_password(caudal):
    add = ("sources", "add", "crm", "--connector", "hubspot", "--auth", "basic", "--generate", "--json")
    made = json.loads(caudal(*add).stdout)
    assert made["secret"].startswith("crm:")
    assert made["secret_set"] is True


def test_a_short_secret_is_refused_and_an_odd_one_told(caudal):
    add = ("sources", "add", "crm", "--connector", "hubspot", "--secret")
    for secret, told in [("x", "1 characters"), ("fifteen-letters", "15 characters"), ('"in-quotes-in-quotes"', "quotes"),
                         ("in the mid\u200bdle of it", "U+200B")]:  # fmt: skip
        for done in (caudal(*add, secret), caudal(*add, "-", stdin=f"{secret}\r\n")):
            assert done.returncode == 78
            assert told in done.stderr
            assert secret.strip('"') not in done.stderr
    assert caudal(*add, " \u200b").returncode == 2
    assert caudal(*add, "-", stdin="\ufeffsixteen-letters-\u00a0\r\n").returncode == 0


def test_a_password_with_an_invisible_end_is_told_and_not_shown(caudal, monkeypatch):
    monkeypatch.setenv("CAUDAL_KAFKA__PASSWORD", "hush-hush\n")
    monkeypatch.setenv("CAUDAL_REGISTRY__PASSWORD", "\u00a0hush-hush")
    done = caudal("sources", "list")
    assert done.returncode == 0
    assert "setting.suspected" in done.stderr
    assert "CAUDAL_KAFKA__PASSWORD" in done.stderr
    assert "CAUDAL_REGISTRY__PASSWORD" in done.stderr
    assert "hush" not in done.stderr
    monkeypatch.setenv("CAUDAL_KAFKA__PASSWORD", "hush hush")
    monkeypatch.delenv("CAUDAL_REGISTRY__PASSWORD")
    assert caudal("sources", "list").stderr == ""


def test_removing_a_source_removes_its_secret(caudal, tmp_path):
    for options, kept in ((("--keep-secrets",), True), ((), False)):
        caudal("sources", "add", "crm", "--connector", "hubspot", "--secret", "hush-hush-hush-hush")
        done = caudal("sources", "remove", "crm", *options)
        assert done.returncode == 0
        assert "hush" not in done.stderr
        [path] = tmp_path.rglob("secrets.toml")
        assert ("hush-hush" in path.read_text()) == kept


def test_removing_a_source_that_is_not_there_gives_1(caudal):
    caudal("sources", "add", "crm", "--connector", "hubspot")
    assert caudal("sources", "remove", "crm").returncode == 0
    assert caudal("sources", "remove", "crm").returncode == 1


@pytest.mark.parametrize("name", ["Shop", "-x", "a b", "a" * 65])
def test_a_bad_source_name_is_a_configuration_error(caudal, name):
    done = caudal("sources", "add", "--connector", "shopify", "--", name)
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1


def test_an_unforeseen_error_is_one_line_by_type_and_place(monkeypatch, capsys):
    import caudal.cli
    from caudal.cli import _output

    def fail() -> None:
        raise RuntimeError("maria@example.com")

    monkeypatch.setattr(caudal.cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        caudal.cli.main()
    assert stopped.value.code == _output.FAILED
    told = capsys.readouterr().err
    assert "RuntimeError at test_cli.py" in told
    assert "maria" not in told


def test_tables_are_plain_where_nobody_looks(caudal):
    caudal("sources", "add", "crm", "--connector", "hubspot")
    header, row = caudal("sources", "list").stdout.splitlines()
    assert header.split() == ["name", "connector", "auth", "priority", "address", "secret_set"]
    assert row.split() == ["crm", "hubspot", "signature", "0", "http://127.0.0.1:8470/in/crm", "no"]


def test_criteria_are_checked_and_a_fault_gives_65_and_its_place(caudal, tmp_path):
    (tmp_path / "loyal.yaml").write_text("fact: bought\nhaving: [{measure: times, op: '>=', value: 2}]\nwithin: 90d\n")
    done = caudal("criteria", "check", "@loyal.yaml")
    assert done.stdout == "bought(times >= 2, within = 90d)\n"
    assert json.loads(caudal("criteria", "check", "--json", done.stdout).stdout)["within"] == "90d"
    wrong = caudal("criteria", "check", 'city = "x" or citty = "y"')
    assert wrong.returncode == 65
    assert "character 15" in wrong.stderr
    assert caudal("criteria", "check", "@none.yaml").returncode == 2
    assert json.loads(caudal("criteria", "schema").stdout)["title"] == "Caudal criteria"
