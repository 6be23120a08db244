"""Options of how models are run while they are timed, for subcommands that measure."""

from typing import Annotated

import typer

from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._values import parse_positive
from efficient_vits.efficiency import Options
from efficient_vits.efficiency.protocol import ITERATIONS, check_iterations, paper_options
from efficient_vits.efficiency.throughput import PROTOCOLS

Amp = Annotated[str | None, typer.Option(metavar="DTYPE", help="Autocast, bfloat16 or float16.")]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="Cast parameters to float32, bfloat16, float16 or float64."),
]
Tf32 = Annotated[
    bool | None, typer.Option("--tf32/--no-tf32", help="TF32 in float32 products, or not.")
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Images and convolutions in channels-last layout.")
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile", metavar="MODE", help="torch.compile with this mode, such as default."
    ),
]
FusedAttention = Annotated[
    bool | None,
    typer.Option("--fused-attention/--no-fused-attention", help="Fused attention, or plain code."),
]
Threads = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="Threads of torch; by default torch's choice.")
]
Protocol = Annotated[
    str, typer.Option(metavar="NAME", help="Of the throughput: default, or paper (benchmark's).")
]
Iterations = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="Of the paper's protocol; by default 1000.")
]


def build_options(
    *,
    amp: str | None,
    dtype: str | None,
    tf32: bool | None,
    channels_last: bool,
    compile_mode: str | None,
    fused_attention: bool | None,
    threads: str | None,
) -> Options:
    """What was asked for; impossible values are the user's mistake."""
    with mistakes(ValueError):
        return Options(
            amp=amp,
            dtype=dtype,
            tf32=tf32,
            channels_last=channels_last,
            compile=False if compile_mode is None else compile_mode,
            fused_attention=fused_attention,
            threads=None if threads is None else parse_positive(threads, option="--threads"),
        )


def parse_protocol(
    name: str, iterations: str | None, options: Options
) -> dict[str, str | int | None]:
    """The arguments `protocol` and `iterations` of measurements."""
    count = None if iterations is None else parse_positive(iterations, option="--iterations")
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name!r} is unknown; accepted are {', '.join(PROTOCOLS)}")
    if name != "paper" and count is not None:
        raise UserError(f"--iterations {count} is for --protocol paper only")
    if name == "paper":
        with mistakes(ValueError):
            paper_options(options)
            check_iterations(ITERATIONS if count is None else count)
    return {"protocol": name, "iterations": count}
