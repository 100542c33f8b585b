"""The frame of the project: who may import whom, what is packaged, what stays light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nexus_vdb import registry
from nexus_vdb.errors import MissingExtra
from nexus_vdb.model.config import load_config
from nexus_vdb.settings import load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LINKED = ("configs", "connectors", "pipelines")

# A module may import its own family (the first name below nexus_vdb), and the floors below it. On
# the lowest two floors, which have no outside systems, it may import its neighbours as well. What
# is named on no floor (interfaces, filters, corpus …) stands on the second.
FLOORS = (
    {"types", "errors"},
    set[str](),
    {"configs", "connectors", "encoder", "model"},
    {"reader"},
    {"collection"},
    {"adapters", "aio", "pipelines", "testing"},
    {"cli"},
)
OPEN_FLOORS = 2

# Connectors that bring no outside system to a collection, but a collection to a framework.
ADAPTERS = {"haystack", "langchain"}

JOBS = {
    "cloze.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "questions.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "names.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "continue.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "distill.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "refit.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "export.toml": "nexus_vdb.pipelines.export:ExportSettings",
    "mine.toml": "nexus_vdb.pipelines.mine:MineSettings",
    "pairs.toml": "nexus_vdb.pipelines.pairs:PairsSettings",
    "ingest.toml": "nexus_vdb.pipelines.ingest:IngestSettings",
    "tokenizer.toml": "nexus_vdb.pipelines.tokenizer:TokenizerSettings",
    "train.toml": "nexus_vdb.pipelines.train:TrainSettings",
    "verify.toml": "nexus_vdb.pipelines.verify:VerifySettings",
}


@cache
def _modules() -> dict[str, Path]:
    """Every module of the package but itself, by its name below `nexus_vdb`."""
    found = {}
    for folder in (ROOT / "nexus_vdb", *(ROOT / "nexus_vdb" / name for name in LINKED)):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(ROOT / "nexus_vdb").with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    found.pop("__init__")
    return found


def _imports(path: Path) -> Iterator[str]:
    """Names below `nexus_vdb` that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("nexus_vdb."):
                below = name.removeprefix("nexus_vdb.")
                yield below if below in _modules() else below.rpartition(".")[0]


def _family(module: str) -> str:
    family = module.partition(".")[0]
    adapter = family == "connectors" and _system(module) in ADAPTERS
    return "adapters" if adapter else family


def _floor(module: str) -> int:
    family = _family(module)
    return next((number for number, floor in enumerate(FLOORS) if family in floor), 1)


def _system(connector: str) -> str:
    """The outside system a module of connectors belongs to: `_qdrant_points` → qdrant."""
    return connector.rpartition(".")[2].lstrip("_").partition("_")[0]


def _fault(importer: str, imported: str) -> str | None:
    family, other = _family(importer), _family(imported)
    if {family, other} <= {"adapters", "connectors"}:
        shared = imported.startswith("connectors._") and _system(importer) == _system(imported)
        return None if shared else "connectors do not import each other"
    if family == "connectors" and _floor(imported) >= OPEN_FLOORS:
        return "a connector sees the first two floors only"
    if family == other or _floor(imported) < _floor(importer):
        return None
    neighbours = _floor(imported) == _floor(importer) < OPEN_FLOORS
    return None if neighbours else "a floor is imported from above only"


def test_imports_go_downwards() -> None:
    faults = [
        f"{importer} imports {imported}: {fault}"
        for importer, path in sorted(_modules().items())
        for imported in _imports(path)
        if imported and (fault := _fault(importer, imported))
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("importer", "imported", "fine"),
    [
        ("filters", "types", True),
        ("interfaces", "filters", True),
        ("types", "filters", False),
        ("connectors.qdrant_edge", "connectors._qdrant_points", True),
        ("connectors.qdrant_edge", "connectors.qdrant", False),
        ("connectors.faiss", "connectors._qdrant_points", False),
        ("connectors.faiss", "encoder", False),
        ("connectors.faiss", "collection", False),
        ("connectors.langchain", "collection", True),
        ("connectors.langchain", "connectors.faiss", False),
        ("collection", "connectors.langchain", False),
        ("registry", "connectors.faiss", False),
        ("collection", "pipelines.ingest", False),
        ("pipelines.ingest", "collection", True),
        ("model.trainer", "model.network", True),
        ("encoder", "model.network", False),
    ],
)
def test_rule_of_imports(importer: str, imported: str, fine: bool) -> None:
    assert (_fault(importer, imported) is None) == fine


def test_modules_named_by_string_exist() -> None:
    targets = (*registry._STORES.values(), *registry._SOURCES.values(), *registry._JOBS.values())
    modules = {target.partition(":")[0].removeprefix("nexus_vdb.") for target in targets}
    assert modules <= _modules().keys()


def test_import_of_the_package_is_light() -> None:
    heavy = {"torch", "faiss", "onnxruntime", "qdrant_client", "qdrant_edge", "sentencepiece"}
    code = f"import sys, nexus_vdb; print(*sorted({heavy | {'pyarrow'}!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", sorted(_modules()))
def test_public_names_are_listed_and_there(name: str) -> None:
    tree = ast.parse(_modules()[name].read_text(encoding="utf-8"))
    listed = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    defined = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    if not listed:
        assert defined == []
        return
    try:
        module = importlib.import_module(f"nexus_vdb.{name}")
    except MissingExtra as error:
        pytest.skip(error.hint)  # not every library is there for every version of Python
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)


def test_packages_are_the_folders() -> None:
    setuptools: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "nexus_vdb").rglob("__init__.py")
    } | {f"nexus_vdb.{name}" for name in LINKED}
    assert sorted(setuptools["packages"]) == sorted(folders)
    assert setuptools["package-dir"] == {"nexus_vdb": "nexus_vdb"} | {
        f"nexus_vdb.{name}": name for name in LINKED
    }


@pytest.mark.parametrize("name", LINKED)
def test_linked_folders_are_flat(name: str) -> None:
    link = ROOT / "nexus_vdb" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert [path.name for path in link.iterdir() if path.is_dir()] in ([], ["__pycache__"])


def test_files_are_short() -> None:
    folders = ("nexus_vdb", *LINKED, "tests", "benchmarks")
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.[tj]*")), ids=lambda p: p.name)
def test_shipped_configs_load(path: Path) -> None:
    if path.suffix == ".json":
        assert load_config(path).embedding_dim == 768
        return
    module, _, settings = JOBS[path.name].partition(":")
    load_settings(getattr(importlib.import_module(module), settings), path, {})
