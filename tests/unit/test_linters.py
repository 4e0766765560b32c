"""The house rules as tests: style, types, layers, portability of the worker, and what may stand in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.parts import program, require
from tests.support.tree import ROOT, relative, tracked

LINES_MAX = 400  # of a file
CODE_SUFFIXES = {".py", ".sh", ".js", ".css", ".html", ".cc", ".h", ".toml", ".service", ".rules"}

# What tells where a file was written instead of what it does. Written so that no pattern matches itself.
LEAKS = re.compile(
    r"(?<!\w)/(?:work|farm)/"
    r"|/roo[t]/"
    r"|/hom[e]/[a-z]"
    r"|\.pyen[v]"
    r"|/tm[p]/(?:lab|bash)"
    r"|--(?:extra-)?index-ur[l]"
    r"|https?://[^ /]*/(?:simple|packages)/"
    r"|files\.pythonhoste[d]|pypi\.or[g]|registry\.npmj[s]"
)

GRAPH = "edged/bundle/graph"
MODULES_NEWER_THAN_38 = {"graphlib", "tomllib", "zoneinfo", "annotationlib", "compression", "pathlib.types"}


def _passes(*command: str) -> None:
    """Run a linter in the repository's root; show what it said when it fails."""
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command[:6])}:\n{done.stdout}{done.stderr}"


def _python(*arguments: str) -> None:
    _passes(sys.executable, "-m", *arguments)


def _shell_scripts() -> list[Path]:
    texts = [path for path in tracked() if path.suffix in ("", ".sh")]
    shebang = re.compile(rb"#!\s*/(?:usr/)?bin/(?:env )?(?:ba|da)?sh\b")
    return [path for path in texts if path.suffix == ".sh" or shebang.match(path.read_bytes()[:40])]


def test_ruff_finds_nothing() -> None:
    _python("ruff", "check", "--quiet", ".")


def test_the_code_is_formatted() -> None:
    _python("ruff", "format", "--check", "--quiet", ".")


@pytest.mark.timeout(600)  # without its cache, mypy reads every stub once
def test_mypy_is_content() -> None:
    _python("mypy", "--no-error-summary")


def test_layers_are_kept() -> None:
    linter = program("lint-imports")
    assert linter is not None
    _passes(linter, "--no-logo")


def test_shell_scripts_are_clean() -> None:
    require("shellcheck")
    scripts = _shell_scripts()
    assert {"demo", "test", "lib.sh"} <= {path.name for path in scripts}
    _passes(str(program("shellcheck")), "--external-sources", "--source-path=SCRIPTDIR", *map(str, scripts))


def test_shell_scripts_stop_at_the_first_error() -> None:
    sourced = {"scripts/lib.sh"}
    lax = set()
    for path in _shell_scripts():
        interpreter, *lines = path.read_text().splitlines()
        strict = "set -e" if interpreter == "#!/bin/sh" else "set -euo pipefail"  # a package's scripts have no bash
        if strict not in lines:
            lax.add(relative(path))
    assert lax <= sourced


def test_the_spelling_is_right() -> None:
    _python("codespell_lib", *map(relative, tracked()))


@pytest.mark.parametrize("kind", ["# type: ignore", "# noqa"])
def test_every_silenced_warning_has_a_code_and_a_reason(kind: str) -> None:
    code = {"# type: ignore": r"\[[a-z, -]+\]", "# noqa": r": [A-Z]+[0-9]+(?:, ?[A-Z]+[0-9]+)*"}[kind]
    explained = re.compile(re.escape(kind) + code + r"[^\w]+\w[^#]{3,}")
    bare = []
    for path in tracked("*.py"):
        if path == Path(__file__):
            continue
        lines = path.read_text().splitlines()
        bare += [
            f"{relative(path)}:{i}: {line.strip()}"
            for i, line in enumerate(lines, 1)
            if kind in line and not explained.search(line)
        ]
    assert not bare, "\n".join(bare)


def _worker_files() -> set[Path]:
    """The worker's files and everything of ours that they import, wherever they do; the graph has a rule of its own."""
    todo = [*tracked("edged/engines/worker/*.py"), ROOT / "edged/__init__.py", ROOT / "edged/engines/__init__.py"]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in found or path.is_relative_to(ROOT / GRAPH):
            continue
        found.add(path)
        tree = ast.parse(path.read_text())
        todo += [file for name in _imported(ast.walk(tree)) if name.startswith("edged") for file in _files_of(name)]
    return found


def _files_of(module: str) -> list[Path]:
    base = ROOT / module.replace(".", "/")
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]


def test_the_worker_parses_as_python_3_8() -> None:
    files = _worker_files()
    assert ROOT / "edged/engines/wire.py" in files
    for path in files:
        ast.parse(path.read_text(), str(path), feature_version=(3, 8))
    old = ["--isolated", "--quiet", "--preview", "--target-version", "py38", "--select", "FA102"]
    _python("ruff", "check", *old, *map(relative, files))


def test_the_worker_imports_nothing_newer_than_python_3_8_has() -> None:
    allowed = (set(sys.stdlib_module_names) - MODULES_NEWER_THAN_38) | {"numpy", "edged"}
    wrong = [
        f"{relative(path)}: {name}"
        for path in _worker_files()
        for name in _imported(_run_at_import(ast.parse(path.read_text())))
        if name.split(".")[0] not in allowed and path not in _sdk_files()
    ]
    assert not wrong, "\n".join(wrong)


def _sdk_files() -> list[Path]:
    """The files of each engine, which import that engine's SDK and run where the SDK does."""
    return tracked("edged/engines/worker/onnxruntime.py", "edged/engines/worker/lava/*.py")


def test_the_daemon_loads_no_sdk() -> None:
    sdks = {"onnx", "onnxruntime", "PIL", "cryptography", "sqlite_utils", "sklearn", "paho", "pyudev", "usb"}
    _passes(
        sys.executable, "-c", f"import edged.app, sys; loaded = {sdks} & set(sys.modules); assert not loaded, loaded"
    )


def test_the_graph_parses_as_python_3_10() -> None:
    for path in tracked(f"{GRAPH}/*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def _imported(nodes: Iterable[ast.AST]) -> list[str]:
    """Every module that import statements among ``nodes`` name; in doubt (from package import name) both readings."""
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when the file is imported: not those in functions, nor for the type checker only."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            todo += list(ast.iter_child_nodes(node))


def test_nothing_names_a_machine_or_a_registry() -> None:
    leaks = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        leaks += [
            f"{relative(path)}:{i}: {line.strip()[:160]}" for i, line in enumerate(lines, 1) if LEAKS.search(line)
        ]
    assert not leaks, "\n".join(leaks)


def test_files_stay_small() -> None:
    lengths = {
        relative(path): len(path.read_bytes().splitlines()) for path in tracked() if path.suffix in CODE_SUFFIXES
    }
    long = {name: lines for name, lines in lengths.items() if lines > LINES_MAX}
    assert long == {}


def test_the_readme_fits_on_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_dependencies_are_locked_by_hashes_alone() -> None:
    assert not tracked("uv.lock", "*/uv.lock")
    locks = tracked("requirements/*.txt")
    assert locks
    for lock in locks:
        pins = lock.read_text().replace("\\\n", "").splitlines()
        assert pins, lock
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins), lock


def test_the_locks_hold_every_dependency_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [item for group in project["dependency-groups"].values() for item in group if isinstance(item, str)]
    extras = project["project"]["optional-dependencies"]
    optional = [item for name, group in extras.items() if name != "systemd" for item in group]
    wanted = {_package(item) for item in [*project["project"]["dependencies"], *groups, *optional]} - {"edged"}
    assert wanted <= _pinned("test")
    assert _pinned("device") <= _pinned("demo") <= _pinned("test")


def _pinned(name: str) -> set[str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return {_package(pin) for pin in re.findall(r"^[A-Za-z0-9][^\s=]*(?===)", text, re.MULTILINE)}


def _package(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[._-]+", "-", name[0]).lower()
