"""What runs in a worker stays within Python 3.8, the standard library and NumPy, and knows nothing of the daemon."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = ROOT / "edged" / "engines"
SHARED = [ROOT / "edged" / "__init__.py", *(ENGINES / f"{n}.py" for n in ("__init__", "wire", "wire_json", "layout"))]
WORKER = sorted((ENGINES / "worker").rglob("*.py"))
LAVA = ENGINES / "worker" / "lava"  # runs on 3.10, where Lava does; its files keep to the syntax of 3.8 all the same
TENSORRT = ENGINES / "worker" / "tensorrt"  # its package is imported by name, so that there are several
LAVA_IMPORTS = {"lava", "numpy", "onnx", "scipy"}
SDKS = {"onnxruntime.py": "onnxruntime"}
NUMPY = {"arrays.py", *SDKS}  # the core runs without
OURS = ("edged.engines.wire", "edged.engines.wire_json", "edged.engines.layout", "edged.engines.worker")
# Names of typing and builtins that Python 3.8 cannot subscript or does not have, outside annotations.
LATER = {"removeprefix", "removesuffix", "pairwise", "StrEnum", "TaskGroup", "ExceptionGroup", "to_thread"}
GENERICS = {"list", "dict", "tuple", "set", "frozenset", "type", "Callable", "Iterator", "Mapping", "Sequence"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path), feature_version=(3, 8))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SHARED, *WORKER], ids=relative)
def test_the_syntax_is_that_of_3_8(path: Path) -> None:
    module = tree(path)
    annotations = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in module.body)
    assert annotations or not any(isinstance(node, ast.AnnAssign | ast.FunctionDef) for node in ast.walk(module))
    for node in ast.walk(module):
        assert not isinstance(node, ast.Attribute | ast.Name) or _name(node) not in LATER, ast.unparse(node)
    for node in _evaluated(module):
        if isinstance(node, ast.Subscript):
            assert _name(node.value) not in GENERICS, f"3.8 cannot evaluate {ast.unparse(node)}"


@pytest.mark.parametrize("path", [*SHARED, *WORKER], ids=relative)
def test_the_imports_are_those_of_a_worker(path: Path) -> None:
    for name in _imports(tree(path)):
        top = name.partition(".")[0]
        if path.parent == LAVA:
            assert top in LAVA_IMPORTS | sys.stdlib_module_names or name.startswith((*OURS, "edged.bundle.graph")), name
        elif top == "edged":
            assert name.startswith(OURS), name
        elif top == "numpy":
            assert path.name in NUMPY or path.parent == TENSORRT
        elif top not in sys.stdlib_module_names:
            assert SDKS.get(path.name) == top, name


def test_the_check_itself_finds_what_it_looks_for() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("match 1:\n  case 1: pass", feature_version=(3, 8))
    bad = ast.parse("from __future__ import annotations\nAlias = dict[str, int]\nx: dict[str, int] = {}")
    assert [ast.unparse(node) for node in _evaluated(bad) if isinstance(node, ast.Subscript)] == ["dict[str, int]"]


def test_the_daemon_loads_no_sdk_with_its_engines() -> None:
    code = "import sys, edged.engines.engine; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"onnx", "onnxruntime", "PIL", "sqlite_utils"} & set(done.stdout.split())


def _evaluated(module: ast.Module) -> list[ast.AST]:
    """Every node outside annotations, which nobody evaluates."""
    annotations: set[ast.AST] = set()
    for node in ast.walk(module):
        some = [node.annotation] if isinstance(node, ast.AnnAssign | ast.arg) else []
        some += [node.returns] if isinstance(node, ast.FunctionDef) else []
        for annotation in filter(None, some):
            annotations |= set(ast.walk(annotation))
    return [node for node in ast.walk(module) if node not in annotations]


def _imports(module: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.append(node.module or "")
    return names


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
