"""What became of each patch of an image: dropped, merged, or kept, block by block."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, LINE = 1.0, 0.1  # grey levels of dropped patches and of the lines between tokens


def paint_tokens(image: Tensor, source: Tensor) -> Tensor:
    """The image as the tokens have it.

    Patches that share a token have the mean of their colours and a line around them, those that
    were dropped are nearly blank, all others are as they were.

    Args:
        image: (3, H, W), 0 to 1.
        source: (patches,), the token of each patch in the order of the grid, row by row, -1 for a
            dropped one.

    Returns:
        (3, H, W), 0 to 1.

    Raises:
        ValueError: The patches do not form a grid on the image.
    """
    rows, columns = grid_of(len(source), image.shape[-2:])
    height, width = image.shape[-2] // rows, image.shape[-1] // columns
    token = source.reshape(rows, columns)
    area = token.repeat_interleave(height, 0).repeat_interleave(width, 1)  # (H, W)
    picture = image[:, : area.shape[0], : area.shape[1]].clone()
    values, patches = token.unique(return_counts=True)
    for value, count in zip(values.tolist(), patches.tolist(), strict=True):
        inside = area == value
        if value < 0:
            picture[:, inside] = PAPER - 0.12 * (PAPER - picture[:, inside])
        elif count > 1:
            picture[:, inside] = picture[:, inside].mean(dim=1, keepdim=True)
    shared = torch.isin(area, values[(patches > 1) & (values >= 0)])
    picture[:, borders(area) & shared] = LINE
    return picture


def borders(area: Tensor) -> Tensor:
    """Where the pixel on the left or above belongs to another token, (H, W) bool."""
    padded = F.pad(area[None, None].float(), (1, 0, 1, 0), mode="replicate")[0, 0]
    return (area != padded[1:, :-1]) | (area != padded[:-1, 1:])


def grid_of(patches: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of so many square patches on an image of this size."""
    rows = round(math.sqrt(patches * size[0] / size[1]))
    if rows < 1 or patches % rows or size[0] % rows or size[1] % (patches // rows):
        raise ValueError(
            f"{patches} patches form no grid on an image of {size[0]}x{size[1]} pixels"
        )
    return rows, patches // rows


@torch.no_grad()
def draw_tokens(model: nn.Module, image: Tensor) -> "Figure":
    """Draw an image, and what its patches became in each block that changes it.

    Args:
        model: One that has ``token_maps``, as every model with a token reduction does. It is run
            once in evaluation mode, and left as it was.
        image: (3, H, W), normalised as the model's ``pretrained_cfg`` says.

    Returns:
        A figure: the image first, then one picture for each block after which there are fewer
        tokens, with their number.

    Raises:
        TypeError: The model has no token maps.
        ImportError: matplotlib is missing.
    """
    token_maps: Any = getattr(model, "token_maps", None)
    if token_maps is None:
        raise TypeError(
            f"{type(model).__name__} has no token_maps: its patches stay what they are. Models "
            f"with a token reduction have"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'efficient-vits[plots]'"
        ) from error
    training = model.training
    try:
        model.eval()
        maps = token_maps(image.unsqueeze(0))
    finally:
        model.train(training)
    cfg: Any = getattr(model, "pretrained_cfg", {})
    mean, std = (torch.tensor(cfg.get(key, (0.5,) * 3)).reshape(3, 1, 1) for key in ("mean", "std"))
    shown = (image.detach().float().cpu() * std + mean).clamp(0, 1)
    panels, before = [("image", shown)], maps[0].shape[1]
    for block, source in enumerate(one[0].cpu() for one in maps):
        tokens = len(source[source >= 0].unique())
        if tokens < before:
            panels.append((f"block {block}: {tokens} tokens", paint_tokens(shown, source)))
        before = tokens
    columns = min(len(panels), 5)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, (title, picture) in zip(axes, panels, strict=False):
        axis.imshow(picture.permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=9)
    return figure
