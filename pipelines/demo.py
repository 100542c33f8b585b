"""The demo job: the documentation of the Python that runs it, made searchable.

A corpus that is everywhere, needs no network, and that anybody can judge the answers of.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nexus_vdb.errors import SourceError

__all__ = ["QUESTIONS", "docstrings", "write_corpus"]

QUESTIONS = (
    "how do I run a shell command and read its output",
    "find the longest common part of two strings",
    "make a temporary folder that cleans up after itself",
)

_LEAST = 80  # characters: shorter ones say little more than the name
_LIMIT = 3000  # documents: about a minute of embedding on a small machine
_SKIPPED = {"distutils", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo"}

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def write_corpus(path: Path, *, limit: int = _LIMIT) -> int:
    """Write documentation strings as JSON lines; returns how many.

    Raises:
        SourceError: this Python has no sources of its standard library.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in _limited(docstrings(), limit):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise SourceError(
            "this Python has no documentation strings", hint="ingest files of your own"
        )
    return count


def docstrings() -> Iterator[dict[str, Any]]:
    """`id`, `title`, `text`, `module`, `kind` and `line` of whatever is public and documented."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names - _SKIPPED):
        if name.startswith("_"):
            continue
        for path in _files(library, name):
            yield from _module(path, library)


def _limited(rows: Iterator[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, evenly from all of them."""
    found = list(rows)
    step = max(len(found) / limit, 1.0)
    return [found[int(step * row)] for row in range(min(limit, len(found)))]


def _files(library: Path, name: str) -> list[Path]:
    if (library / f"{name}.py").is_file():
        return [library / f"{name}.py"]
    return [
        path
        for path in sorted((library / name).rglob("*.py"))
        if not any(part.startswith(("_", "test")) for part in path.relative_to(library).parts[:-1])
        and (path.name == "__init__.py" or not path.name.startswith("_"))
    ]


def _module(path: Path, library: Path) -> Iterator[dict[str, Any]]:
    parts = path.relative_to(library).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for qualified, node in _documented(name, tree):
        text = ast.get_docstring(node) or ""
        if len(text) >= _LEAST:
            yield {
                "id": qualified,
                "title": qualified,
                "text": text,
                "module": name,
                "kind": type(node).__name__.replace("Def", "").lower(),
                "line": getattr(node, "lineno", 1),
            }


def _documented(name: str, node: _Documented) -> Iterator[tuple[str, _Documented]]:
    """The node and the public classes and functions in it, by qualified name, each name once."""
    yield name, node
    if not isinstance(node, ast.Module | ast.ClassDef):
        return
    seen = set()
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            public = not child.name.startswith("_") and child.name not in seen
            seen.add(child.name)
            if public:
                yield from _documented(f"{name}.{child.name}", child)
