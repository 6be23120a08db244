"""The README's code runs, and its commands are those of the documentation and of CI."""

import re
import subprocess
import sys
from pathlib import Path

import timm

from efficient_vits import list_models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def command(mark):
    (found,) = re.findall(rf"^<!-- {mark} -->\n```sh\n(.*)\n```$", README, re.MULTILINE)
    return found


def test_the_python_blocks_run(tmp_path):
    code = "\n".join(blocks("python"))
    save = "import safetensors.torch\nsafetensors.torch.save_file(model.state_dict(), '{}')\n"
    loading = 'efficient_vits.load_weights(model, "checkpoint.safetensors")'
    assert loading in code
    code = code.replace(loading, save.format("checkpoint.safetensors") + loading)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "hydra_s16" in done.stdout


def test_one_line_each_and_no_other_step():
    for mark in ("main", "test"):
        assert "\n" not in command(mark)
        assert "-c constraints.txt" in command(mark)
        assert command(mark) in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
        assert f"readme_command {mark}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_models_that_it_names_exist():
    names = set(re.findall(r"`([a-z]+\d*_s16\w*)`", README))
    assert len(names) >= 7
    assert names <= set(timm.list_models(module="efficient_vits"))


def test_every_family_is_in_its_table():
    families = {name.split("_")[0] for name in list_models(built_on="efficient_vits")}
    table = [line for line in README.splitlines() if line.startswith("|")]
    assert [f for f in families if not any(f"`{f}_" in row for row in table)] == []


def test_its_links_within_the_repository_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []
