"""The notebooks in examples/ run from top to bottom, and reach what they say."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import timm
from hub_client import environment
from hub_server import Hub
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# A figure that the notebook prints, and what it exceeds; None where it checks itself by asserts.
BOUNDS = {
    # The ViT that the test puts on the Hub has learnt nothing.
    "finetune_from_hub.ipynb": ("test accuracy", 0.75),
    "measure_your_model.ipynb": None,
    "pareto.ipynb": ("share of the front that is sure", 0.3),
    "quickstart.ipynb": ("test accuracy", 0.85),
    "swap_attention.ipynb": ("test accuracy", 0.85),
}
PUSHED = {"finetune_from_hub.ipynb": ["user/digits"]}


def printed(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells wrote to stdout."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out["text"] for out in outputs if out.get("name") == "stdout")


@pytest.fixture
def variables(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which the Hub is the one on loopback, with a ViT of random weights to pull."""
    folder = tmp_path_factory.mktemp("start")
    vit = timm.create_model("vit_tiny_patch16_224", depth=4)
    timm.models.save_for_hf(vit, str(folder), model_args={"depth": 4}, safe_serialization=True)
    hub.add("org/vit", {path.name: path.read_bytes() for path in folder.iterdir()})
    home = tmp_path_factory.mktemp("home")
    start = {"HUB_START": "org/vit", "HUB_REPO": "user/digits", "HF_TOKEN": hub.token}
    return environment(hub.endpoint, home, **start)


def test_every_notebook_has_a_bound() -> None:
    assert {path.name for path in NOTEBOOKS} == BOUNDS.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_and_reaches_its_bound(
    path: Path, tmp_path: Path, hub: Hub, variables: dict[str, str]
) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        allow_errors=False,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=variables)
    if BOUNDS[path.name] is not None:
        name, bound = BOUNDS[path.name]
        found = re.findall(rf"^{name}: (\d\.\d+)$", printed(notebook), re.MULTILINE)
        assert len(found) == 1
        assert float(found[0]) > bound
    assert list(tmp_path.iterdir()) == []
    assert hub.repositories.keys() == {"org/vit", *PUSHED.get(path.name, ())}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
