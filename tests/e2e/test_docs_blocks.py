"""The docs' code runs: Python blocks that stand alone, and console blocks marked `<!-- runnable -->`, with the output they show."""

import re
import subprocess
from pathlib import Path

import pytest
from programs import environment
from pytest_examples import EvalExample, find_examples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"connectors.md", "contracts.md"}
"""Pages whose blocks build on each other and have tests of their own."""


def _runnable(page: Path) -> list[str]:
    return re.findall(r"<!-- runnable -->\n```console\n(.*?)```", page.read_text(), flags=re.DOTALL)


BLOCKS = [(page, number, block) for page in PAGES for number, block in enumerate(_runnable(page))]
PYTHON = [
    example for example in find_examples(*[p for p in PAGES if p.name not in ELSEWHERE]) if example.prefix == "python"
]


def test_there_is_something_to_run():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize(
    ("page", "number", "block"), BLOCKS, ids=[f"{page.name}-{number}" for page, number, _ in BLOCKS]
)
def test_a_console_block_does_what_it_shows(page, number, block, settings, tmp_path):
    env = environment(settings)
    # the pages speak of a machine where nothing is set: default ports, and files in the folder where one stands
    for name in ("CAUDAL_HOME", "CAUDAL_CONFIG_FILE", "CAUDAL_EDGE__PORT", "CAUDAL_SERVING__PORT"):
        del env[name]
    for command, expected in _steps(block):
        done = subprocess.run(
            ["bash", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        for line in expected:
            pattern = ".*".join(re.escape(part) for part in line.split("…"))
            assert re.search(f"^{pattern}$", done.stdout, flags=re.MULTILINE), (
                f"{command}\nprints\n{done.stdout}\nnot\n{line}"
            )


def test_python_blocks_that_stand_alone_run(eval_example: EvalExample):
    for example in PYTHON:
        eval_example.run(example)


def _steps(block: str) -> list[tuple[str, list[str]]]:
    """Each command with the lines that stand under it."""
    steps: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line.startswith("> "):  # the command goes on
            steps[-1] = (f"{steps[-1][0]}\n{line[2:]}", [])
        elif line.strip():
            steps[-1][1].append(line)
    return steps
