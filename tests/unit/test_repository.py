"""The repository builds what it holds, and holds what it promises."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("connectors", "processors", "producers", "projections", "schemas", "serving")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The tracked files as they are now, in a folder of their own: a wheel must not hold what an earlier build left behind."""
    folder = tmp_path_factory.mktemp("tree")
    for name in _tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file() and not (ROOT / name).is_symlink():
            target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(tree):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tree / "dist", tree],
        check=True,
        capture_output=True,
    )
    [built] = (tree / "dist").glob("*.whl")
    return {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_every_folder_and_nothing_else(wheel):
    files = {name for name in _tracked() if (ROOT / name).is_file() and not name.endswith((".md", ".gitignore"))}
    expected = {name for name in files if name.startswith("caudal/")}
    expected |= {f"caudal/{name}" for name in files if name.split("/")[0] in FOLDERS}
    assert wheel == expected


def test_every_package_is_listed():
    found = {"caudal"} | {
        str(init.parent.relative_to(ROOT)).replace("/", ".") for init in (ROOT / "caudal").rglob("__init__.py")
    }
    for folder in FOLDERS:
        found |= {
            "caudal." + str(init.parent.relative_to(ROOT)).replace("/", ".")
            for init in (ROOT / folder).rglob("__init__.py")
        }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found)


def test_mypy_sees_every_folder_under_its_installed_name():
    for folder in FOLDERS:
        assert (ROOT / ".ns/caudal" / folder).resolve() == ROOT / folder


def test_every_dependency_is_locked_with_hashes():
    lock = (ROOT / "requirements.lock").read_text()
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in asked}
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", lock, flags=re.MULTILINE))
    assert names - pinned == set(), "run: make lock"
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        assert "--hash=sha256:" in entry, entry.split("\n")[0]


def test_code_imports_the_installed_names_only():
    wrong = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", flags=re.MULTILINE)
    files = [path for folder in (*FOLDERS, "caudal", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in files if wrong.search(path.read_text())] == []


def test_every_ignored_lint_has_a_reason_beside_it():
    bare = re.compile(r"#\s*(noqa(?!: [A-Z]+\d+(, [A-Z]+\d+)* - \S)|type: ignore(?!\[[\w,-]+\]\s+# \S))")
    files = [path for folder in (*FOLDERS, "caudal") for path in (ROOT / folder).rglob("*.py")]
    lines = [(path.name, line.strip()) for path in files for line in path.read_text().splitlines() if bare.search(line)]
    assert lines == []


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)[0].split()
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, "help"], capture_output=True, text=True, check=True
    )
    assert [line.split()[1] for line in done.stdout.splitlines()] == targets


def _tracked() -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]
