import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import efficient_vits
from efficient_vits import cli
from efficient_vits.cli import main
from efficient_vits.cli._app import app

SCRIPT = "import sys; from efficient_vits.cli import main; sys.exit(main())"
COMMANDS = [module.name for module in pkgutil.iter_modules(cli.__path__) if module.name[0] != "_"]


def test_every_public_file_is_a_command() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert sorted(names) == sorted(COMMANDS)
    assert {"info", "list", "measure", "predict"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_an_example(command: str | None, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run(*filter(None, [command]), "--help")
    assert (status, err) == (0, "")
    assert f"Example: efficient-vits {command or ''}" in out


def test_version(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"efficient-vits {efficient_vits.__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["Missing command", "list"]),
        (["lisst"], ["'lisst'", "'list'", "measure", "predict"]),
        (["--nope"], ["--nope", "--version"]),
        (["list", "--nope"], ["--nope", "--max-params"]),
        (["list", "a", "b"], ["(b)", "PATTERN"]),
        (["list", "--year"], ["--year"]),
        (["info"], ["NAME"]),
        (["predict", "hydra_ti16", "a.png"], ["--weights"]),
    ],
)
def test_a_wrong_command_line(
    argv: list[str], parts: list[str], refused: Callable[..., str]
) -> None:
    line = refused(*argv)
    assert [part for part in parts if part not in line] == []


def test_ctrl_c(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("efficient_vits.cli.info"), "model_card", interrupt)
    assert run("info", "vit_ti16") == (130, "", "")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("efficient_vits.cli.info"), "model_card", bug)
    with pytest.raises(ZeroDivisionError):
        main(["info", "vit_ti16"])


@pytest.mark.parametrize("argv", [["info", "hydra_s16"], ["info", "hydra_s16", "--json"]])
def test_a_reader_who_leaves_early(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a buffer every write fails at once, and nothing is left for the end.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        process = subprocess.run(
            [sys.executable, "-c", SCRIPT, *argv], stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (process.returncode, process.stderr) == (1, b"")


def test_the_installed_script() -> None:
    script = Path(sys.executable).with_name("efficient-vits")
    process = subprocess.run([script, "nope"], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: No such command 'nope'")


def test_usage_errors_of_typer_are_known() -> None:
    from efficient_vits.cli._errors import USAGE_ERROR

    assert USAGE_ERROR.__name__ == "UsageError"
    assert issubclass(typer.BadParameter, USAGE_ERROR)
