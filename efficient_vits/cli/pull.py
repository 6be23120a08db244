"""`efficient-vits pull`: a model from the Hub into a folder, checked."""

from pathlib import Path
from typing import Annotated

import typer

from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson, print_json, print_text
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.weights import HubError, WeightsError, pull


@app.command("pull", epilog="Example: efficient-vits pull user/hydra_s16 -o hydra --revision v1.0")
def pull_command(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository, such as user/model.")],
    output: Annotated[
        Path | None,
        typer.Option(
            *("-o", "--output"),
            metavar="DIR",
            help="Folder to put the files into, empty or new; by default the client's cache.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; by default the main branch.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a model from the Hugging Face Hub, and check it; nothing of it is run.

    The token for a private repository is that of 'hf auth login', or HF_TOKEN.
    """
    try:
        with mistakes(ValueError):
            folder = pull(repo, revision=revision, directory=output)
    except (HubError, WeightsError, OSError) as error:
        raise UserError(str(error)) from error
    if as_json:
        print_json({"folder": str(folder), "files": sorted(p.name for p in folder.iterdir())})
        return
    print_text(str(folder), f'timm.create_model("local-dir:{folder}", pretrained=True) loads it')
