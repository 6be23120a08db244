"""To the Hugging Face Hub: weights, configuration and model card of a model, in one commit."""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id
from torch import Tensor, nn

from efficient_vits._state import WeightsError
from efficient_vits.weights._hub_card import Recipe, card_text
from efficient_vits.weights._hub_config import check_config, is_plain
from efficient_vits.weights._hub_retry import hub_errors, with_retries

if TYPE_CHECKING:
    from efficient_vits.efficiency import Measurement

# How images are prepared; what else a ``pretrained_cfg`` has follows from the model.
DATA_CONFIG = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
# What stays of a ``pretrained_cfg``; the rest is about weights that the model once started from.
KEPT = (*DATA_CONFIG, "fixed_input_size", "min_input_size", "pool_size", "first_conv", "classifier")


@dataclass(frozen=True)
class Pushed:
    """What `push` did.

    Attributes:
        files: Names of the files.
        folder: Where they were written; None if they were sent.
        url: Page of the commit; None if nothing was sent.
        commit: Its hash, which pins a ``revision``; None likewise.
    """

    files: list[str]
    folder: Path | None = None
    url: str | None = None
    commit: str | None = None


def push(
    model: nn.Module,
    repo_id: str,
    *,
    measurement: "Measurement | None" = None,
    recipe: Recipe | None = None,
    licence: str | None = None,
    datasets: Sequence[str] = (),
    model_args: Mapping[str, Any] | None = None,
    data_config: Mapping[str, Any] | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    save_to: str | Path | None = None,
) -> Pushed:
    """Send a model to the Hub, from where ``timm.create_model("hf-hub:...")`` loads it.

    One commit holds ``model.safetensors``, a ``config.json`` as timm reads it, with the arguments
    that the model was created with, and a model card, ``README.md``; files of these names that are
    there are replaced. The repository is made if there is none. Before anything is sent, the files
    are loaded into a new model, whose parameters and outputs must be those of this one.

    Args:
        model: A model made by ``timm.create_model``; it keeps its device, mode and weights.
        repo_id: Repository, such as ``organisation/name``.
        measurement: What `efficient_vits.efficiency.measure` gave for this model.
        recipe: How it was trained, in words or as settings and values.
        licence: Licence of the weights, as the Hub calls it (``apache-2.0``); the card says that
            none is stated without.
        datasets: What it was trained on, as the Hub calls it (``imagenet-1k``).
        model_args: Arguments that the model was created with. Models of this package know theirs;
            needed for timm's, and where an argument has no form in JSON.
        data_config: How images were prepared, where that differs from ``model.pretrained_cfg``:
            some of mean, std, interpolation, crop_pct, crop_mode.
        private: Make a new repository private.
        revision: Branch that gets the commit, the main one by default; it must be there.
        token: Token that may write; by default that of ``hf auth login`` or ``HF_TOKEN``. It is
            written nowhere.
        commit_message: First line of the commit's message.
        save_to: Folder to write the files into, instead of sending them: nothing is sent then.

    Raises:
        ValueError: Not a model of timm's registry, arguments that have no form in JSON, or a
            measurement of another model.
        WeightsError: The files would not give back the model, because it was changed since it was
            created (other modules, folded layers).
        HubError: The Hub refuses, or cannot be reached.
    """
    validate_repo_id(repo_id)
    config = _config(model, model_args, data_config)
    count = sum(p.numel() for p in model.parameters())
    if measurement and not measurement.transform and measurement.parameters != count:
        raise ValueError(
            f"measurement is of a model with {measurement.parameters} parameters, this one has "
            f"{count}"
        )
    card = card_text(
        repo_id,
        config,
        measurement=measurement,
        recipe=recipe,
        licence=licence,
        datasets=datasets,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
        safetensors.torch.save_file(
            _separate(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"}
        )
        _check_round_trip(model, folder, config)
        files = sorted(path.name for path in folder.iterdir())
        if save_to is not None:
            target = Path(save_to)
            target.mkdir(parents=True, exist_ok=True)
            for name in files:
                (target / name).write_bytes((folder / name).read_bytes())
            return Pushed(files, folder=target)
        api = HfApi(token=token, library_name="efficient_vits")
        with hub_errors("the upload", repo_id, token):
            with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
            commit = with_retries(
                lambda: api.create_commit(
                    repo_id,
                    [CommitOperationAdd(name, str(folder / name)) for name in files],
                    commit_message=commit_message or f"Add {config['architecture']}",
                    revision=revision,
                )
            )
    return Pushed(files, url=commit.commit_url, commit=commit.oid)


def _config(
    model: nn.Module,
    model_args: Mapping[str, Any] | None,
    data_config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Content of ``config.json``."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    classes: Any = getattr(model, "num_classes", None)
    if not cfg or classes is None:
        raise ValueError(
            f"{type(model).__name__} is no classifier of timm's registry; accepted are models of "
            f"timm.create_model without features_only"
        )
    alien = sorted(set(data_config or {}) - set(DATA_CONFIG))
    if alien:
        raise ValueError(f"data_config has {alien}; accepted are {', '.join(DATA_CONFIG)}")
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model is on the meta device and has no weights to send")
    arguments = _arguments(model, model_args)
    kept = {key: cfg[key] for key in KEPT if key in cfg}
    channels = arguments.get("in_chans", cfg["input_size"][0])
    size = arguments.get("img_size", cfg["input_size"][1:])
    size = (size, size) if isinstance(size, int) else tuple(size)
    kept.update(input_size=(channels, *size), num_classes=classes, **(data_config or {}))
    if size != tuple(cfg["input_size"][1:]) and kept.get("pool_size"):
        kept["pool_size"] = None
    config = {
        "architecture": cfg["architecture"],
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": kept,
    }
    if isinstance(pool := getattr(model, "global_pool", None), str):
        config["global_pool"] = pool
    return config


def _arguments(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of creation, with what changed since then as it is now."""
    recorded: Any = getattr(model, "creation_arguments", None) if given is None else given
    if recorded is None:
        raise ValueError(
            f"{type(model).__name__} does not know what it was created with; pass model_args, {{}} "
            f"where there were none"
        )
    # Drop rates are settings of a training, not of the model.
    arguments = {k: v for k, v in recorded.items() if not k.endswith(("drop_rate", "path_rate"))}
    arguments["num_classes"] = model.num_classes
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None and (model.pretrained_cfg["fixed_input_size"] or "img_size" in arguments):  # type: ignore[index]
        arguments["img_size"] = size
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str) and pool != arguments.get("global_pool", "token"):
        arguments["global_pool"] = pool
    for name, value in arguments.items():
        if not is_plain(value):
            raise ValueError(
                f"argument {name}={value!r} has no form in JSON; create the model with a "
                f"registered name and its own arguments, or pass such ones as model_args"
            )
    return arguments


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, each with memory of its own: safetensors knows no shared ones."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}


def _check_round_trip(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> None:
    """Raise WeightsError unless the files give a model with the same parameters and outputs."""
    check_config(config, "this model")
    parameter = next(model.parameters())
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{config['architecture']} with arguments {config['model_args']} is not this model, "
            f"which was changed after it was created: {reason}"
        ) from error
    twin = twin.to(parameter.device, parameter.dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *config["pretrained_cfg"]["input_size"], generator=generator)
    images = images.to(parameter.device, parameter.dtype)
    with _evaluation(model), _evaluation(twin), torch.no_grad():
        ours, theirs = model(images).float(), twin(images).float()
    # On the same device both run the same kernels; the tolerance is for those without a fixed order
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise WeightsError(
            f"{config['architecture']} with arguments {config['model_args']} gives other outputs "
            f"than this model, which was changed after it was created"
        )


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode, and each module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
