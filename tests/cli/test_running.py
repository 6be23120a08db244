from collections.abc import Callable

import pytest

from efficient_vits.cli._errors import UserError
from efficient_vits.cli._running import build_options, parse_protocol
from efficient_vits.efficiency import Options

NOTHING = {
    "amp": None,
    "dtype": None,
    "tf32": None,
    "channels_last": False,
    "compile_mode": None,
    "fused_attention": None,
    "threads": None,
}


def test_what_was_asked_for() -> None:
    assert build_options(**NOTHING) == Options()
    asked = {"tf32": False, "channels_last": True, "compile_mode": "default", "threads": "2"}
    assert build_options(**{**NOTHING, **asked}) == Options(
        tf32=False, channels_last=True, compile="default", threads=2
    )
    assert parse_protocol("default", None, Options()) == {"protocol": "default", "iterations": None}
    assert parse_protocol("paper", "9", Options()) == {"protocol": "paper", "iterations": 9}


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("--amp", "half"), ("'half'", "'bfloat16'")),
        (("--dtype", "int8"), ("'int8'", "'float64'")),
        (("--compile", "fast"), ("'fast'", "'reduce-overhead'")),
        (("--threads", "0"), ("--threads '0'",)),
        (("--amp", "float16", "--dtype", "float16"), ("amp='float16'", "dtype='float16'")),
        (("--protocol", "mine"), ("--protocol 'mine'", "default, paper")),
        (("--iterations", "5"), ("--iterations 5", "--protocol paper")),
        (("--protocol", "paper", "--iterations", "1"), ("above 1, got 1",)),
        (("--protocol", "paper", "--no-tf32"), ("tf32=False", "tf32=True")),
    ],
)
def test_impossible_values_are_refused_in_one_line(
    refused: Callable[..., str], argv: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    line = refused("measure", "hydra_ti16", *argv)
    for part in parts:
        assert part in line


def test_the_errors_are_the_users() -> None:
    with pytest.raises(UserError, match="accepted are default, paper"):
        parse_protocol("", None, Options())
