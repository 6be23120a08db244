from collections.abc import Callable
from typing import Any

import pytest

from efficient_vits.cli._errors import UserError
from efficient_vits.cli.fits import parse_bytes


def test_yes_and_no_and_the_largest_batch(run: Callable[..., tuple[int, str, str]]) -> None:
    arguments = ("fits", "vit_ti16", "--memory", "100MB", "--inference")
    status, out, err = run(*arguments, "--batch-size", 1)
    assert (status, err) == (0, "")
    assert out.startswith("yes: vit_ti16, inference at batch 1, autocast to float16, takes 0.0")
    largest = int(out.partition("largest batch: ")[2].split()[0])
    status, out, _ = run(*arguments, "--batch-size", largest + 1)
    assert status == 1
    assert out.startswith(f"no: vit_ti16, inference at batch {largest + 1}")


def test_json(run: Callable[..., tuple[int, str, str]], run_json: Callable[..., Any]) -> None:
    given = ("fits", "vit_ti16", "--memory", "1MiB", "--inference", "--amp", "off", "--json")
    assert run(*given)[0] == 1
    found = run_json("fits", "vit_ti16", "--memory", "50MiB", *given[4:-1])
    assert found["fits"] is True
    assert found["estimate"]["weights_bytes"] == pytest.approx(5717416 * 4, rel=0.01)
    assert found["largest_batch"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "24"), None),
        (("--memory", "much"), "--memory 'much' is no size"),
        (("--memory", "1GB", "--amp", "int8"), "--amp 'int8' is no dtype"),
        (("--memory", "1GB", "--device", "tpu"), "got 'tpu'"),
        (("--memory", "1GB", "--training", "--optimizer", "lamp"), "got 'lamp'"),
        (("--memory", "1GB", "--optimizer", "sgd"), "optimizer='sgd' needs training=True"),
        (("--memory", "1GB", "--checkpointing"), "grad_checkpointing=True needs training=True"),
    ],
)
def test_mistakes(
    run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], message: str | None
) -> None:
    status, out, err = run("fits", "vit_ti16", "--inference", *arguments)
    if message is None:  # 24 bytes are a size, and too few
        assert (status, err) == (1, "")
    else:
        assert (status, out) == (2, "")
        assert message in err


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24e9), ("24 GiB", 24 * 2**30), ("1.5KiB", 1536), ("7", 7)]
)
def test_bytes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


def test_no_bytes() -> None:
    with pytest.raises(UserError, match=r"'0GB' is no size; accepted .* GB, .* GiB"):
        parse_bytes("0GB")
