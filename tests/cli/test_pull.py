"""`push` and `pull` as commands, in processes that know the Hub on loopback from their start."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hub_client import environment
from hub_server import Hub


def test_there_and_back(hub: Hub, weights: Path, tmp_path: Path) -> None:
    def run(*arguments: object, token: str = hub.token) -> tuple[int, str, str]:
        code = "import sys; from efficient_vits.cli import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment(hub.endpoint, tmp_path / "home", HF_TOKEN=token),
        )
        return done.returncode, done.stdout, done.stderr

    options = ("--weights", weights, "--img-size", 64, "--private", "--message", "First one")
    status, out, _ = run("push", "hydra_ti16", "org/model", *options)
    commit = hub.repositories["org/model"].branches["main"]
    assert (status, out.splitlines()[0]) == (0, f"{hub.endpoint}/org/model/commit/{commit}")
    assert hub.repositories["org/model"].private

    target = tmp_path / "target"
    status, out, _ = run("pull", "org/model", "-o", target, "--json")
    files = ["README.md", "config.json", "model.safetensors"]
    assert (status, json.loads(out)) == (0, {"folder": str(target), "files": files})

    status, out, err = run("pull", "org/model", "-o", tmp_path / "other", token="hf_wrong")
    assert (status, out) == (2, "")
    assert err.startswith("error: there is no repository org/model, or it is private")
    assert (err.count("\n"), "hf_wrong" in err) == (1, False)
    assert not (tmp_path / "other").exists()


def test_mistakes(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Repo id must" in refused("pull", "../evil")
    assert "is no branch, tag or commit" in refused("pull", "org/model", "--revision", "../x")
    assert "not an empty folder" in refused("pull", "org/model", "-o", tmp_path)
