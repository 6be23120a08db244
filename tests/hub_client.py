"""A process of its own in which the Hugging Face client knows the loopback Hub from its start.

The client reads its environment when it is imported, so tests hand their code to such a process.
"""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORKER = """
import io, json, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr
import timm, torch, efficient_vits
from efficient_vits.weights import HubError, WeightsError, pull, push
torch.set_num_threads(1)
tools = dict(globals())
for line in sys.stdin:
    names = dict(tools)
    try:
        exec(json.loads(line), names)
        answer = {"result": names.get("result")}
    except Exception as error:
        answer = {"kind": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
    answers.write(json.dumps(answer, default=str) + chr(10))
    answers.flush()
"""

# The client's own, about how it calls its HTTP library when it uploads.
_OWN_WARNING = "Use 'content=<...>' to upload raw bytes/text content.:DeprecationWarning"


@dataclass
class Raised:
    """An exception of the other process."""

    kind: str
    text: str
    trace: str


class Client:
    """Runs code in the process, which has timm, torch, efficient_vits, pull and push."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self.process = process
        self.log = log

    def run(self, code: str, **values: object) -> Any:
        """What the code leaves in `result`; `values` are names in it."""
        answer = self._ask(code, values)
        assert "result" in answer, answer["trace"]
        return answer["result"]

    def fails(self, code: str, **values: object) -> Raised:
        """The exception that the code ends in."""
        answer = self._ask(code, values)
        assert "kind" in answer, f"nothing was raised, result={answer.get('result')!r}"
        return Raised(**answer)

    def _ask(self, code: str, values: dict[str, object]) -> dict[str, Any]:
        named = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(named + textwrap.dedent(code)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        answer: dict[str, Any] = json.loads(line)
        return answer


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """What the client reads, and nothing that this machine's user has set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TORCH_"))}
    return {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "TORCH_HOME": str(home / "torch"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **more,
    }


@contextmanager
def started(endpoint: str, home: Path, **more: str) -> Iterator[Client]:
    """A client of the Hub at `endpoint`, with its cache and token below `home`."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-W", f"ignore:{_OWN_WARNING}", "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(endpoint, home, **more),
        )
        try:
            yield Client(process, log)
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait(timeout=30)
