"""The imports of a package, read from its source: which file imports which, and from where in the file.

1. Files are found where Python finds the package, so that ``passes/`` and ``integrations/`` are what they are once
   installed: ``dmt_plugin.passes`` and ``dmt_plugin.integrations``.
2. Every import statement counts, also inside functions and under ``TYPE_CHECKING``. Inside a package, ``from package
   import name`` means the file ``name`` where there is one.
3. Where a file uses ``importlib``, a string that is the name of a file of the package counts as an import of it:
   absolute, or relative to the file's own package.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import networkx as nx


@dataclass(frozen=True)
class Import:
    """``source`` imports ``target``; ``late`` if not when it is itself imported."""

    source: str
    target: str
    line: int
    late: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} -> {self.target}" + (" (late)" if self.late else "")


def files_of(package: str, *inside: str) -> dict[str, Path]:
    """Module name -> file, of an importable package and of packages inside it that may lie elsewhere."""
    found: dict[str, Path] = {}
    for name in (package, *inside):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        found.update(files_in(Path(spec.origin).parent, name))
    return found


def files_in(folder: Path, package: str) -> dict[str, Path]:
    """Module name -> file, of a folder that is the package ``package``."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join([package, *parts])] = file
    return found


def imports_of(files: Mapping[str, Path]) -> list[Import]:
    """Every import of one of ``files`` by another."""
    return [found for name, file in files.items() for found in _imports_in(name, file, files)]


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other."""
    graph = nx.DiGraph([(a, b) for a, targets in edges.items() for b in targets if a != b])
    return [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]


def _imports_in(name: str, file: Path, files: Mapping[str, Path]) -> Iterator[Import]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    nodes, by_name = _nodes_of(file)
    for node, late in nodes:
        for target in _targets(node, package, files, by_name):
            if target != name:
                yield Import(name, target, getattr(node, "lineno", 0), late)


@cache
def _nodes_of(file: Path) -> tuple[list[tuple[ast.AST, bool]], bool]:
    """What may import, each with whether it does so late; and whether the file uses ``importlib``."""
    tree = ast.parse(file.read_text())
    kinds = (ast.Import, ast.ImportFrom, ast.Constant)
    nodes = [(node, late) for node, late in _walk(tree, False) if isinstance(node, kinds)]
    return nodes, any(isinstance(n, ast.Name) and n.id == "importlib" for n in ast.walk(tree))


def _walk(node: ast.AST, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    late = late or guarded or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in ast.iter_child_nodes(node):
        yield child, late
        yield from _walk(child, late)


def _targets(node: ast.AST, package: str, files: Mapping[str, Path], by_name: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in files)
    elif isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = (
            ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            if node.level
            else (node.module or "")
        )
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            if inner in files or base in files:
                yield inner if inner in files else base
    elif by_name and isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from {node.value, f"{package}.{node.value}"} & files.keys()
