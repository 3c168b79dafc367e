"""What the repository and the wheel hold: package layout, file sizes and the house rules that grep can check."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"dmt_plugin": "dmt_plugin", "passes": "dmt_plugin.passes", "integrations": "dmt_plugin.integrations"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def sources() -> list[Path]:
    return sorted(
        file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if "__pycache__" not in file.parts
    )


def installed_path(file: Path) -> str:
    """Where a source file of the three folders lies in the wheel."""
    first, *rest = file.relative_to(ROOT).parts
    return str(PurePosixPath(*FOLDERS[first].split("."), *rest))


def repository_files() -> list[Path]:
    """Python files under version control; in an unpacked archive, those outside the usual build folders."""
    listing = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0 and listing.stdout:
        return [file for name in listing.stdout.split("\0") if name and (file := ROOT / name).exists()]
    tops = [ROOT / name for name in (*FOLDERS, "tests", "examples", "benchmarks")]
    return [file for top in tops for file in top.rglob("*.py")]


# ---- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    tmp = tmp_path_factory.mktemp("wheel")
    copy = tmp / "source"
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # Folders that must stay out of the wheel, although they stand beside the package.
    for folder in ("tests", "examples", "build"):
        (copy / folder).mkdir()
        (copy / folder / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp / "out", copy)
    (built,) = (tmp / "out").glob("*.whl")
    return built


def pip(*args: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    version = PYPROJECT["project"]["version"]
    others = {n for n in names if not n.startswith(("dmt_plugin/", f"dmt_plugin-{version}.dist-info/"))}
    assert not others
    assert "dmt_plugin/py.typed" in names
    missing = {installed_path(file) for file in sources()} - names
    assert not missing, "not in the wheel: is the package listed in pyproject.toml?"


def test_wheel_works_away_from_the_source(wheel, tmp_path):
    pip("install", "--no-deps", "--target", tmp_path / "site", wheel)
    # -S would lose torch; so the editable install's finder is outrun by PYTHONPATH, and that is checked.
    code = (
        "import dmt_plugin.passes, dmt_plugin.integrations, sys;"
        "print(*(m.__file__ for m in (dmt_plugin, dmt_plugin.passes, dmt_plugin.integrations)), sep='\\n');"
        "assert 'passes' not in sys.modules"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.split():
        assert line.startswith(str(tmp_path / "site")), line


# ---- the repository ------------------------------------------------------------------------------


def test_every_package_folder_is_listed():
    found = {
        installed_path(init).removesuffix("/__init__.py").replace("/", ".")
        for init in sources()
        if init.name == "__init__.py"
    }
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_source_folder_is_a_package():
    bare = {str(file.parent.relative_to(ROOT)) for file in sources() if not (file.parent / "__init__.py").exists()}
    assert not bare


def test_file_sizes():
    long = {
        str(file.relative_to(ROOT)): lines
        for file in repository_files()
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long


def test_every_source_file_says_what_it_is():
    assert not [str(file) for file in sources() if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))]


def reads_environment(tree: ast.AST) -> bool:
    names = {"environ", "getenv", "environb"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {n.name for n in node.names})
        for node in ast.walk(tree)
    )


def prints(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        for node in ast.walk(tree)
    )


def test_only_topology_reads_the_environment():
    readers = {
        str(file.relative_to(ROOT)) for file in sources() if reads_environment(ast.parse(file.read_text("utf-8")))
    }
    assert readers == {"dmt_plugin/topology/discovery.py"}


def test_only_what_speaks_to_people_prints():
    allowed = (ROOT / "dmt_plugin/cli", ROOT / "dmt_plugin/report")
    printers = {
        str(file.relative_to(ROOT))
        for file in sources()
        if not any(file.is_relative_to(folder) for folder in allowed) and prints(ast.parse(file.read_text("utf-8")))
    }
    assert not printers


@pytest.mark.parametrize(
    "check, text, expected",
    [
        (reads_environment, "import os\nx = os.environ['A']", True),
        (reads_environment, "from os import getenv as g", True),
        (reads_environment, '"""os.environ is not read"""', False),
        (prints, "print('a')", True),
        (prints, "console.print('a')", False),
    ],
)
def test_the_checks_see_what_they_should(check, text, expected):
    assert check(ast.parse(text)) is expected
