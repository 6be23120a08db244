"""The notebooks in examples/ run from top to bottom, and those that train learn what they say."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Test accuracy; None for a notebook that trains nothing.
BOUNDS = {
    "measure_your_model.ipynb": None,
    "quickstart.ipynb": 0.85,
    "swap_attention.ipynb": 0.85,
}


def printed(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells wrote to stdout."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out["text"] for out in outputs if out.get("name") == "stdout")


def test_every_notebook_has_a_bound() -> None:
    assert {path.name for path in NOTEBOOKS} == BOUNDS.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_and_learns(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        allow_errors=False,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    found = re.findall(r"^test accuracy: (\d\.\d+)$", printed(notebook), re.MULTILINE)
    bound = BOUNDS[path.name]
    assert len(found) == (bound is not None)
    assert bound is None or float(found[0]) > bound
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
