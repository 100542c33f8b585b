"""The notebooks of `examples/` run from top to bottom, each in a folder of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the kernel that is pinned needs Python 3.11", allow_module_level=True)

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


def outputs(name: str, folder: Path) -> list[Any]:
    """What the last line of each cell gives, by type of display; None where it gives nothing."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [[one for one in cell.outputs if one.output_type != "stream"] for cell in cells]
    assert all(len(one) <= 1 for one in shown)
    return [one[0].data if one else None for one in shown]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_kept_clean_and_install_only_what_is_missing(name: str) -> None:
    text = (EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in cells)
    first, *others = ["".join(cell["source"]) for cell in cells]
    assert "find_spec" in first
    assert first.splitlines()[-1].startswith("    %pip install")
    assert not any("%pip" in other for other in others)


def test_quickstart(tmp_path: Path) -> None:
    shown = outputs("quickstart", tmp_path)
    assert "<caption>2 hits, exact" in shown[1]["text/html"]
    assert shown[1]["text/html"].index("statins") < shown[1]["text/html"].index("aspirin")
    assert "statins" in shown[2]["text/html"]
    assert "aspirin" not in shown[2]["text/html"]
    assert [shown[at]["text/plain"] for at in (3, 4, 5)] == ["300", "(300, 0)", "300"]
    assert "<caption>3 hits, exact" in shown[6]["text/html"]
    assert "faiss://./index" in shown[7]["text/html"]
    assert "<caption>1 hit, exact" in shown[8]["text/html"]
    assert "smtplib" in shown[8]["text/html"]
    assert list((tmp_path / "export").rglob("*.parquet"))


def test_train_your_own(tmp_path: Path) -> None:
    shown = outputs("train_your_own", tmp_path)
    assert shown[1]["text/plain"].endswith(", 1500)")
    assert shown[3]["text/plain"] == "'step-0000060.safetensors'"
    assert shown[4]["text/plain"].startswith("(True, {0: 0.")  # the loss fell
    assert "bundle" in shown[6]["text/html"]
    assert "<caption>5 hits, exact" in shown[7]["text/html"]
    assert "compress" in shown[7]["text/html"]
    assert (tmp_path / "bundle" / "model.onnx").exists()
