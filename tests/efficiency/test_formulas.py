"""Four counts of known networks: ours, fvcore's own, torch's, and the formula on paper."""

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from efficient_vits.efficiency import count_flops
from efficient_vits.efficiency.tracing import zeros_on_cpu

PAGE = Path(__file__).parents[2] / "docs" / "flops.md"
CLASSES = 1000


def vit_macs(dim: int, depth: int, *, pixels: int = 224, patch: int = 16) -> int:
    """qkv, projection and MLP have 12 dim^2 weights; scores and values a product each."""
    patches = (pixels // patch) ** 2
    tokens = patches + 1
    block = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    return patches * 3 * patch**2 * dim + depth * block + dim * CLASSES


def swin_macs(dim: int, depths: tuple[int, ...], *, window: int, pixels: int = 224) -> int:
    """Blocks of a ViT in windows; between stages 4 patches of dim become one of 2 dim."""
    tokens = (pixels // 4) ** 2
    macs = tokens * 3 * 4**2 * dim
    for stage, depth in enumerate(depths):
        if stage:
            tokens, dim = tokens // 4, 2 * dim
            macs += tokens * (2 * dim) * dim
        macs += depth * (12 * tokens * dim**2 + 2 * tokens * window**2 * dim)
    return macs + dim * CLASSES


def xcit_macs(dim: int, depth: int, heads: int, *, class_depth: int = 2, pixels: int = 224) -> int:
    """Attention among the channels of a head, a local 3x3 pair, and a class token at the end."""
    tokens, side, width = (pixels // 16) ** 2, pixels // 2, dim // 8
    macs = side**2 * 9 * 3 * width
    while width < dim:
        side, width = side // 2, width * 2
        macs += side**2 * 9 * (width // 2) * width
    position = tokens * 64 * dim
    attention = 4 * tokens * dim**2 + 2 * tokens * dim * (dim // heads)
    block = attention + 2 * 9 * tokens * dim + 8 * tokens * dim**2
    # One query; its keys and values are of all tokens.
    class_block = 2 * dim**2 + 2 * (tokens + 1) * dim**2 + 2 * (tokens + 1) * dim + 8 * dim**2
    return macs + position + depth * block + class_depth * class_block + dim * CLASSES


def resnet_macs(depths: tuple[int, ...], *, pixels: int = 224) -> int:
    """Bottlenecks 1x1, 3x3 (which has the stride), 1x1; a 1x1 in the first shortcut of a stage."""
    side, channels = pixels // 2, 64
    macs = side**2 * 7**2 * 3 * channels
    side //= 2
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            macs += side**2 * channels * width
            if block == 0:
                side //= 2 if stage else 1
                macs += side**2 * channels * 4 * width
            macs += side**2 * (9 * width**2 + 4 * width**2)
            channels = 4 * width
    return macs + channels * CLASSES


MODELS: dict[str, Callable[[], int]] = {
    "vit_tiny_patch16_224": partial(vit_macs, 192, 12),
    "vit_base_patch16_224": partial(vit_macs, 768, 12),
    "swin_tiny_patch4_window7_224": partial(swin_macs, 96, (2, 2, 6, 2), window=7),
    "xcit_small_12_p16_224": partial(xcit_macs, 384, 12, 8),
    "resnet50": partial(resnet_macs, (3, 4, 6, 3)),
}


def build(name: str, *, fused: bool) -> nn.Module:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model


def fvcores_macs(model: nn.Module, images: torch.Tensor) -> int:
    """With the handles that fvcore comes with, which count a few norms and pools too."""
    analysis = FlopCountAnalysis(model, (images,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return int(analysis.total())


def torchs_macs(model: nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops() // 2


def row(name: str, *, fused: bool) -> list[str]:
    """One row of the page's table."""
    model = build(name, fused=fused)
    ours, twin = count_flops(model, strict=True).macs, zeros_on_cpu(model)
    images = torch.zeros(1, 3, 224, 224)
    figures = [ours, MODELS[name](), fvcores_macs(twin, images), torchs_macs(twin, images)]
    return [f"`{name}`", "fused" if fused else "plain", *(f"{figure:,}" for figure in figures)]


def rows_of_the_page() -> list[list[str]]:
    """The page's table of counters, whose rows have six cells."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in rows if len(cells) == 6 and cells[1] in ("fused", "plain")]


@pytest.mark.parametrize("name", MODELS)
def test_ours_is_the_formula_and_the_page_has_what_all_four_say(name: str) -> None:
    rows = [row(name, fused=fused) for fused in (True, False)]
    for _, _, ours, formula, *_ in rows:
        assert ours == formula
    assert [cells for cells in rows_of_the_page() if cells[0] == f"`{name}`"] == rows


def test_the_page_has_no_other_model() -> None:
    assert {cells[0].strip("`") for cells in rows_of_the_page()} == set(MODELS)


def test_the_shares_on_the_page() -> None:
    lines = re.findall(r"^\| `(\w+)` \|((?: [\d.]+ % \|){6})$", PAGE.read_text("utf-8"), re.M)
    assert [name for name, _ in lines] == ["vit_tiny_patch16_224", *list(MODELS)[2:]]
    for name, cells in lines:
        count = count_flops(build(name, fused=True))
        shares = [f"{n / count.total:.1%}".replace("%", " %") for n in count.by_kind.values()]
        assert [cell.strip() for cell in cells.strip("|").split("|")] == shares


def test_the_examples_of_the_page() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 6
    exec("\n".join(blocks), {"__name__": "page"})
