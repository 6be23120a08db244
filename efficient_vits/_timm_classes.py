"""The benchmark's parameter names in the words of timm's classes.

A module of this package translates its own part (see `efficient_vits._state`). timm's classes
cannot be given that method, so what they would say stands here, one entry per class. Nothing in it
depends on a size, with one exception: a network that numbers its blocks throughout needs to be told
where stages end. Names that a translation does not know stay as they are, and strict loading
reports them.
"""

import re
from collections.abc import Callable, Mapping

from timm.models.efficientformer_v2 import EfficientFormerV2
from timm.models.efficientvit_mit import EfficientVit
from timm.models.fastvit import FastVit
from timm.models.focalnet import FocalNet
from timm.models.nextvit import NextViT
from timm.models.swiftformer import SwiftFormer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.xcit import Xcit
from torch import Tensor, nn

from efficient_vits._state import put

State = Mapping[str, Tensor]
Translation = Callable[[nn.Module, State], dict[str, Tensor]]
Rules = Mapping[str, str | Callable[[re.Match[str]], str]]

#: Integer tables and masks that follow from the architecture; timm's classes do not keep them.
DERIVED = re.compile(
    r"(^|\.)(attn_mask|relative_position_index|relative_coords_table|attention_bias_idxs)$"
)


def translated_name(name: str, rules: Rules) -> str:
    """`name` after all substitutions, in order."""
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def renaming(rules: Rules) -> Translation:
    """A translation that changes names only."""

    def translate(model: nn.Module, state: State) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, value in state.items():
            if not DERIVED.search(name):
                put(out, translated_name(name, rules), value)
        return out

    return translate


def _next_stage(match: re.Match[str]) -> str:
    """timm downsamples at the beginning of a stage, the authors at the end."""
    return f"layers.{int(match[1]) + 1}.downsample."


def _stage_or_downsampling(match: re.Match[str]) -> str:
    """Of a list in which stages and what lies between them take turns."""
    stage, between = divmod(int(match[1]), 2)
    return f"stages.{stage + 1}.downsample." if between else f"stages.{stage}.blocks."


SWIN: Rules = {r"^layers\.(\d+)\.downsample\.": _next_stage, r"^head\.": "head.fc."}

FASTVIT: Rules = {
    r"^patch_embed\.": "stem.",
    r"^conv_exp\.": "final_conv.",
    r"^head\.": "head.fc.",
    r"^network\.(\d+)\.": _stage_or_downsampling,
    r"\.rbr_conv\.": ".conv_kxk.",
    r"\.rbr_scale\.": ".conv_scale.",
    r"\.rbr_skip\.": ".identity.",
    r"\.lkb_origin\.": ".large_conv.",
    r"\.convffn\.": ".mlp.",
    r"\.se\.reduce\.": ".se.fc1.",
    r"\.se\.expand\.": ".se.fc2.",
    r"\.layer_scale$": ".layer_scale.gamma",
}

SWIFTFORMER: Rules = {
    r"^patch_embed\.": "stem.",
    r"^dist_head\.": "head_dist.",
    r"^network\.(\d+)\.": _stage_or_downsampling,
    r"\.attn\.Proj\.": ".attn.proj.",
    r"\.(layer_scale(_\d)?)$": r".\1.gamma",
}

EFFICIENTFORMER: Rules = {
    r"^patch_embed\.0\.": "stem.conv1.conv.",
    r"^patch_embed\.1\.": "stem.conv1.bn.",
    r"^patch_embed\.3\.": "stem.conv2.conv.",
    r"^patch_embed\.4\.": "stem.conv2.bn.",
    r"^network\.(\d+)\.": _stage_or_downsampling,
    r"\.downsample\.(proj|conv)\.": ".downsample.conv.conv.",
    r"\.downsample\.(norm|bn)\.": ".downsample.conv.bn.",
    r"\.mlp\.(fc1|fc2|mid)\.": r".mlp.\1.conv.",
    r"\.mlp\.norm([12])\.": r".mlp.fc\1.bn.",
    r"\.mlp\.mid_norm\.": ".mlp.mid.bn.",
    r"\.layer_scale_([12])$": r".ls\1.gamma",
    r"\.q\.local\.0\.": ".q.local.",
    # The output projection has its activation at 0.
    r"(\.token_mixer|\.attn)\.proj\.1\.": r"\1.proj.conv.",
    r"(\.token_mixer|\.attn)\.proj\.2\.": r"\1.proj.bn.",
    r"\.(q\.proj|q|k|v|v_local|stride_conv)\.0\.": r".\1.conv.",
    r"\.(q\.proj|q|k|v|v_local|stride_conv)\.1\.": r".\1.bn.",
}

EFFICIENTVIT: Rules = {
    r"^backbone\.input_stem\.0\.": "stem.in_conv.",
    r"^backbone\.input_stem\.(\d+)\.": lambda match: f"stem.res{int(match[1]) - 1}.",
    r"^backbone\.stages\.(\d+)\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"^head\.0\.": "head.in_conv.",
    r"^head\.2\.linear\.": "head.classifier.0.",
    r"^head\.2\.norm\.": "head.classifier.1.",
    r"^head\.3\.linear\.": "head.classifier.4.",
}

FOCALNET: Rules = {r"^patch_embed\.": "stem.", **SWIN}


def efficientformer(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Also LayerScale (C, 1, 1), which timm keeps as (C,)."""
    out = renaming(EFFICIENTFORMER)(model, state)
    scales = {name for name in out if name.endswith((".ls1.gamma", ".ls2.gamma"))}
    return {name: value.flatten() if name in scales else value for name, value in out.items()}


def focalnet(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Also linear layers (out, in), which are 1 x 1 convolutions at timm."""
    out = renaming(FOCALNET)(model, state)
    for name, value in out.items():
        if re.search(r"\.(modulation\.(f|proj)|mlp\.fc[12])\.weight$", name) and value.ndim == 2:
            out[name] = value[:, :, None, None]
    return out


def nextvit(model: nn.Module, state: State) -> dict[str, Tensor]:
    """One list of blocks, which is cut into stages as the model's are."""
    stages: list[nn.Module] = list(model.get_submodule("stages"))  # type: ignore[call-overload]
    places = [
        f"stages.{number}.blocks.{block}."
        for number, stage in enumerate(stages)
        for block, _ in enumerate(stage.get_submodule("blocks").children())
    ]

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        return places[number] if number < len(places) else match[0]

    rules: Rules = {
        r"^features\.(\d+)\.": place,
        r"\.mlp\.conv([12])\.": r".mlp.fc\1.",
        r"^head\.": "head.fc.",
    }
    return renaming(rules)(model, state)


def xcit(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Queries, keys and values of class attention, which are three layers at timm."""
    out: dict[str, Tensor] = {}
    for name, value in renaming({r"^pos_embeder\.": "pos_embed."})(model, state).items():
        match = re.fullmatch(r"(cls_attn_blocks\.\d+\.attn\.)qkv(\.\w+)", name)
        if match is None or value.ndim == 0:
            put(out, name, value)
            continue
        for part, own in zip("qkv", value.chunk(3), strict=False):
            put(out, f"{match[1]}{part}{match[2]}", own)
    return out


TRANSLATIONS: Mapping[type[nn.Module], Translation] = {
    EfficientFormerV2: efficientformer,
    EfficientVit: renaming(EFFICIENTVIT),
    FastVit: renaming(FASTVIT),
    FocalNet: focalnet,
    NextViT: nextvit,
    SwiftFormer: renaming(SWIFTFORMER),
    SwinTransformer: renaming(SWIN),
    SwinTransformerV2: renaming(SWIN),
    Xcit: xcit,
}


def translation_of(module: nn.Module) -> Translation | None:
    """What is known about the names of a timm class, or of the one that a module derives from."""
    return next((TRANSLATIONS[cls] for cls in type(module).__mro__ if cls in TRANSLATIONS), None)
