"""Jobs of a sweep: which model, how it is built, how it is measured, and the key that names it."""

import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm

from efficient_vits.efficiency.measure import measure

ImgSize = int | Sequence[int]

# Arguments of `measure` that a job says in its own way, or that no line of JSON can hold.
_NOT_OPTIONS = {
    "model": "names",
    "input_size": "img_sizes",
    "batch_size": "batch_sizes",
    "transform": "transform='module:function'",
    "images": None,
    "on_step": "on_progress",
}


@dataclass(frozen=True)
class Job:
    """One measurement of a sweep.

    Attributes:
        name: what timm builds.
        img_size: height and width in pixels; None for the model's own.
        model_arguments: further arguments of `timm.create_model`.
        options: arguments of `measure` that are not its defaults.
        transform: ``"module:function"`` that the model goes through first.
        seed: of torch's random numbers, before the model is built.
        imports: modules that are imported first, because they register models.
    """

    name: str
    img_size: tuple[int, int] | None = None
    model_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    transform: str | None = None
    seed: int = 0
    imports: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The same for jobs that measure the same; where a model comes from is not part of it."""
        identity = self.to_dict()
        del identity["imports"]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Job":
        size = fields["img_size"]
        return cls(
            **{
                **fields,
                "img_size": None if size is None else (size[0], size[1]),
                "imports": tuple(fields["imports"]),
            }
        )


def make_jobs(
    names: Sequence[str],
    *,
    img_sizes: Sequence[ImgSize | None],
    batch_sizes: Sequence[int | None],
    model_arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    transform: str | None,
    seed: int,
    imports: Sequence[str],
) -> list[Job]:
    """The product of names, image sizes and batch sizes, each job once.

    Raises:
        TypeError: an argument has the wrong type or cannot be written as JSON.
        ValueError: timm knows no model of a name or pattern; `measure` has no such option.
    """
    for argument, value in (("names", names), ("imports", imports)):
        if isinstance(value, str):
            raise TypeError(f"{argument} must be a list of strings, got the string {value!r}")
    if transform is not None and not (
        isinstance(transform, str) and all(transform.partition(":")[::2])
    ):
        raise TypeError(
            f"transform must be the name of a function, 'module:function', got {transform!r}"
        )
    checked = _options(options)
    arguments = _as_json("model_arguments", dict(model_arguments))
    sizes = [_img_size(size) for size in img_sizes] or [None]
    jobs: dict[str, Job] = {}
    for name, size, images in itertools.product(_expand(names), sizes, batch_sizes or [None]):
        batch = {} if images is None else {"batch_size": _positive("batch_sizes", images)}
        job = Job(name, size, arguments, {**checked, **batch}, transform, seed, tuple(imports))
        jobs.setdefault(job.key, job)
    return list(jobs.values())


def _expand(names: Sequence[str]) -> list[str]:
    """Names as they are, patterns as timm's models of these names."""
    expanded = []
    for name in names:
        if any(sign in name for sign in "*?["):
            found = timm.list_models(name)
            if not found:
                raise ValueError(f"timm knows no model like {name!r}")
            expanded += found
            continue
        # A name with a scheme ("hf-hub:...", "local-dir:...") is not in timm's registry.
        if ":" not in name and not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise ValueError(f"timm knows no model {name!r}{hint}")
        expanded.append(name)
    if not expanded:
        raise ValueError("names is empty; accepted are models' names and patterns such as 'vit_*'")
    return expanded


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `measure`, without those that are its defaults."""
    parameters = inspect.signature(measure).parameters
    accepted = [name for name in parameters if name not in _NOT_OPTIONS]
    for name in options:
        if name not in accepted:
            instead = _NOT_OPTIONS.get(name)
            hint = f"; a sweep has {instead} for it" if instead else ""
            raise ValueError(f"no option {name!r}{hint}; accepted are {', '.join(accepted)}")
    as_json = {name: _as_json(f"option {name}", value) for name, value in options.items()}
    return {name: value for name, value in as_json.items() if value != parameters[name].default}


def _as_json(what: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} cannot be written as JSON: {value!r}") from error


def _img_size(size: ImgSize | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else _pair(size)
    return _positive("img_sizes", height), _positive("img_sizes", width)


def _pair(size: object) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise TypeError(f"img_sizes are pixels, 224 or (height, width), and not {size!r}")
    return size[0], size[1]


def _positive(what: str, number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{what} are positive integers, got {number!r}")
    return number
