"""`efficient-vits measure`: what models cost on this machine."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from efficient_vits import fuse
from efficient_vits.cli._app import app
from efficient_vits.cli._console import (
    ABSENT,
    AsJson,
    giga,
    millions,
    print_json,
    print_text,
    table,
)
from efficient_vits.cli._errors import UserError, one_line
from efficient_vits.cli._models import check_name, check_size, create
from efficient_vits.cli._running import (
    Amp,
    ChannelsLast,
    Compile,
    Dtype,
    FusedAttention,
    Iterations,
    Protocol,
    Tf32,
    Threads,
    build_options,
    parse_protocol,
)
from efficient_vits.cli._values import ImgSize, Size, parse_positive, parse_size
from efficient_vits.efficiency import (
    Energy,
    Latency,
    Measurement,
    MemoryUse,
    Throughput,
    TrainingSpeed,
    environment,
    measure,
)


@dataclass(frozen=True)
class Failure:
    """A model that could not be measured, and why."""

    name: str
    error: str


@app.command(
    "measure", epilog="Example: efficient-vits measure vit_s16 hydra_s16 --img-size 384 --json"
)
def measure_command(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models, timm's too.")],
    img_size: ImgSize = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="Images in a batch; by default 1 for memory, and the fastest."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:0; by default cuda where there is one.")
    ] = None,
    no_throughput: Annotated[
        bool, typer.Option("--no-throughput", help="Leave out images per second.")
    ] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Leave out peak memory.")] = False,
    fused: Annotated[
        bool,
        typer.Option("--fuse", help="Fold norms and branches first, as one does for inference."),
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Percentiles of the time of a single image, too.")
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="Images per second of training, too.")
    ] = False,
    energy: Annotated[
        bool, typer.Option("--energy", help="Energy per image, too, where a GPU counts it.")
    ] = False,
    amp: Amp = None,
    dtype: Dtype = None,
    tf32: Tf32 = None,
    channels_last: ChannelsLast = False,
    compile_mode: Compile = None,
    fused_attention: FusedAttention = None,
    threads: Threads = None,
    protocol: Protocol = "default",
    iterations: Iterations = None,
    as_json: AsJson = False,
) -> int:
    """Measure parameters, FLOPs, peak memory, throughput, and on request more."""
    size = None if img_size is None else parse_size(img_size)
    images = None if batch_size is None else parse_positive(batch_size, option="--batch-size")
    device = parse_device(device)
    for name in names:
        check_name(name)
        check_size(name, size)
    running = build_options(
        amp=amp,
        dtype=dtype,
        tf32=tf32,
        channels_last=channels_last,
        compile_mode=compile_mode,
        fused_attention=fused_attention,
        threads=threads,
    )
    options = {
        "input_size": None if size is None else (3, *size),
        "batch_size": images,
        "device": device,
        "throughput": not no_throughput,
        "memory": not no_memory,
        "latency": latency,
        "training": training,
        "energy": energy,
        "options": running,
        **parse_protocol(protocol, iterations, running),
        "transform": fuse if fused else None,
    }
    # Or the profiler behind the memory figure reports each start and stop on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    results = _measure_all(names, size, options)
    if as_json:
        print_json([_to_dict(result) for result in results])
    else:
        wanted = {
            "memory": not no_memory,
            "throughput": not no_throughput,
            "latency": latency,
            "training": training,
            "energy": energy,
        }
        _print_table(results, device, [name for name, on in wanted.items() if on])
    return int(any(isinstance(result, Failure) for result in results))


def parse_device(text: str | None) -> str:
    """A device that is there."""
    count = torch.cuda.device_count()
    accepted = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if text is None:
        return "cuda" if count else "cpu"
    if text not in accepted:
        raise UserError(f"--device {text!r} is not available; accepted here: {', '.join(accepted)}")
    return text


def _measure_all(
    names: list[str], size: Size | None, options: dict[str, Any]
) -> list[Measurement | Failure]:
    results: list[Measurement | Failure] = []
    # Drawn only between the steps: a thread that redraws would share the processor with the model.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=len(names))
        for done, name in enumerate(names):

            def show(step: str, name: str = name, left: int = len(names) - done - 1) -> None:
                text = f"{name}: {step}, {left} more to go"
                progress.update(task, description=text, refresh=True)

            show("building")
            try:
                result = measure(create(name, size), on_step=show, **options)
            except Exception as error:  # whatever it is, the others' rows are worth having
                results.append(Failure(name, one_line(f"{type(error).__name__}: {error}")))
            else:
                results.append(dataclasses.replace(result, name=name))
            progress.advance(task)
    return results


def _to_dict(result: Measurement | Failure) -> dict[str, Any]:
    return dataclasses.asdict(result) if isinstance(result, Failure) else result.to_dict()


def _print_table(results: list[Measurement | Failure], device: str, wanted: Sequence[str]) -> None:
    headers = ["name", "parameters", "GFLOPs", "GMACs"]
    headers += [header for name in wanted for header in _COLUMNS[name][0]]
    figures = [_figures(result, wanted) for result in results]
    rows = [[*known, *[ABSENT] * (len(headers) - len(known))] for known in figures]
    notes = [_note(result) for result in results]
    if any(notes):
        headers.append("note")
        rows = [[*row, note] for row, note in zip(rows, notes, strict=True)]
    print_text(table(headers, rows, left=("name", "note")))
    facts = environment()
    name = str(facts["cpu"]) if device == "cpu" else torch.cuda.get_device_name(device)
    threads = f" ({facts['threads']} threads)" if device == "cpu" else ""
    packages = ("efficient_vits", "torch", "timm", "python")
    versions = ", ".join(f"{package} {facts[package]}" for package in packages)
    print_text(f"{device}: {name}{threads}; {versions}")


def _figures(result: Measurement | Failure, wanted: Sequence[str]) -> list[str]:
    if isinstance(result, Failure):
        return [result.name]
    figures = [
        f"{result.name} (fused)" if result.transform else result.name,
        millions(result.parameters),
        giga(result.flops.total),
        giga(result.flops.macs),
    ]
    for name in wanted:
        figures += _COLUMNS[name][1](getattr(result, name))
    return figures


def _memory(memory: MemoryUse) -> list[str]:
    return [f"{memory.peak_bytes / 2**20:.1f} MiB"]


def _throughput(speed: Throughput) -> list[str]:
    repeat = ABSENT
    if speed.prediction:
        least, most = speed.prediction
        repeat = f"{least:.1f} to {most:.1f}"
    images = f"{speed.images_per_second:.1f} (batch {speed.batch_size})"
    return [images, f"{speed.spread:.1%}", repeat]


def _latency(latency: Latency) -> list[str]:
    percentiles = (latency.p50_seconds, latency.p90_seconds, latency.p99_seconds)
    return [f"{1e3 * seconds:.2f} ms" for seconds in percentiles]


def _training(training: TrainingSpeed) -> list[str]:
    images = f"{training.images_per_second:.1f} (batch {training.batch_size})"
    return [images, f"{training.hours_per_epoch:.2f}"]


def _energy(energy: Energy) -> list[str]:
    return [ABSENT if energy.joules_per_image is None else f"{energy.joules_per_image:.4f}"]


# What is measured on request: the headers of its columns, and what stands in them.
_COLUMNS: dict[str, tuple[list[str], Callable[[Any], list[str]]]] = {
    "memory": (["peak memory"], _memory),
    "throughput": (["images/s", "spread", "a repeat"], _throughput),
    "latency": (["p50", "p90", "p99"], _latency),
    "training": (["training images/s", "h/epoch"], _training),
    "energy": (["J/image"], _energy),
}


def _note(result: Measurement | Failure) -> str:
    if isinstance(result, Failure):
        return result.error
    notes = []
    if uncounted := ", ".join(sorted(result.flops.uncounted)):
        notes.append(f"FLOPs lack {uncounted}")
    timed = [getattr(result, name) for name in ("throughput", "latency", "training")]
    if flags := dict.fromkeys(flag for row in timed if row for flag in row.flags):
        notes.append(f"noisy: {', '.join(flags)}")
    if result.energy and result.energy.unavailable:
        notes.append(f"no energy: {result.energy.unavailable}")
    return "; ".join(notes)
