"""`efficient-vits recommend`: which model to take under some bounds."""

from typing import Annotated, Any

import typer

from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson, print_json, print_text
from efficient_vits.cli._errors import mistakes
from efficient_vits.cli._own import read_own
from efficient_vits.cli._values import parse_positive
from efficient_vits.results import (
    Choice,
    Recommendation,
    recommend,
)


@app.command(
    "recommend",
    epilog="Example: efficient-vits recommend --accuracy '>=80' --memory '<1 GiB'",
)
def recommend_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Own measurements, of 'measure --json', to choose from instead of the benchmark's "
            "runs; accuracies are the benchmark's.",
        ),
    ] = None,
    accuracy: Annotated[
        str | None, typer.Option(metavar="BOUND", help="Top-1 on ImageNet-1k, such as '>=80'.")
    ] = None,
    throughput: Annotated[
        str | None, typer.Option(metavar="BOUND", help="Images per second, such as '>3000'.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="BOUND", help="Inference at batch 1, such as '<1 GiB'.")
    ] = None,
    params: Annotated[
        str | None, typer.Option(metavar="BOUND", help="Parameters, such as '<25M'.")
    ] = None,
    flops: Annotated[
        str | None, typer.Option(metavar="BOUND", help="Per image, such as '<5G'.")
    ] = None,
    training_time: Annotated[
        str | None, typer.Option(metavar="BOUND", help="GPU time of 50 epochs, such as '<24 h'.")
    ] = None,
    training_memory: Annotated[
        str | None, typer.Option(metavar="BOUND", help="At batch 2048, such as '<100 GiB'.")
    ] = None,
    prefer: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", help="What to rank by; again for what comes next."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Class of device of the figures; the benchmark's are on an A100."),
    ] = None,
    limit: Annotated[str, typer.Option(metavar="NUMBER", help="Most models.")] = "5",
    as_json: AsJson = False,
) -> int:
    """Recommend models that keep bounds, with reasons and with what each costs."""
    most = parse_positive(limit, option="--limit")
    runs = read_own(files) if files else None
    with mistakes(ValueError):
        answer = recommend(
            accuracy=accuracy,
            throughput=throughput,
            memory=memory,
            params=params,
            flops=flops,
            training_time=training_time,
            training_memory=training_memory,
            prefer=prefer or None,
            device=device,
            runs=runs,
            limit=most,
        )
    if as_json:
        print_json(_to_dict(answer))
    else:
        print_text(str(answer))
    return 0 if answer.choices else 1


def _to_dict(answer: Recommendation) -> dict[str, Any]:
    return {
        "choices": [_choice(choice) for choice in answer.choices],
        "eligible": answer.eligible,
        "considered": answer.considered,
        "constraints": [str(constraint) for constraint in answer.constraints],
        "prefer": list(answer.prefer),
        "unknown": list(answer.unknown),
        "nearest": list(answer.nearest),
    }


def _choice(choice: Choice) -> dict[str, Any]:
    run = choice.run
    return {
        "name": run.name,
        "img_size": run.img_size,
        "accuracy": run.top1,
        "throughput": run.throughput,
        "parameters": run.params,
        "flops": run.flops,
        "device": run.device,
        "source": run.source,
        "reasons": list(choice.reasons),
        "costs": list(choice.costs),
        "notes": list(choice.notes),
    }
