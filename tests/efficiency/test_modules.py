import pytest
import timm
import torch
from torch import nn

from efficient_vits.efficiency import UncountedOperators, count_flops
from efficient_vits.efficiency.modules import KINDS, module_kinds


def on_meta(name: str, **arguments: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def test_the_tree_adds_up_and_finds_names() -> None:
    count = count_flops(on_meta("vit_tiny_patch16_224", depth=2, img_size=64), (3, 64, 64))
    for node in count.by_module.walk():
        assert node.total == node.own + sum(child.total for child in node.children)
    attention = count.by_module["blocks.1.attn"]
    assert attention.class_name == "Attention"
    assert [child.name for child in attention.children][:2] == [
        "blocks.1.attn.qkv",
        "blocks.1.attn.q_norm",
    ]
    assert attention["blocks.1.attn.qkv"].total == 17 * 192 * 3 * 192
    # The residual connections of a block are its own: two sums.
    assert count.by_module["blocks.0"].own == 2 * 17 * 192
    with pytest.raises(KeyError, match=r"no module 'blocks.7' below '', which has 'patch_embed'"):
        count.by_module["blocks.7"]


def test_a_shared_module_is_under_its_first_name() -> None:
    layer = nn.Linear(4, 4)
    count = count_flops(nn.Sequential(layer, nn.Sequential(layer, nn.Linear(4, 2))), (4,))
    assert count.by_module["0"].total == 2 * 16
    assert [node.name for node in count.by_module["1"].children] == ["1.1"]
    assert count.total == 2 * 16 + 8


def test_a_rounded_count_still_adds_up() -> None:
    class Once(nn.Module):
        """Work on weights, which the images of a batch share."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.weight.exp() * 2 + 1

    count = count_flops(nn.Sequential(Once(), Once()), (5,), batch_size=3)
    parts = (count.by_operator, count.by_kind)
    assert {sum(part.values()) for part in parts} == {count.total, count.by_module.total}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (
            "vit_tiny_patch16_224",
            {
                "": "other",
                "patch_embed.proj": "embedding",
                "blocks.0.attn.proj": "token mixing",
                "blocks.0.norm1": "other",
                "blocks.0.mlp.act": "mlp",
                "fc_norm": "head",
                "head": "head",
            },
        ),
        (
            "swin_tiny_patch4_window7_224",
            {
                "patch_embed.norm": "embedding",
                "layers.1.downsample.reduction": "reduction",
                "layers.1.blocks.0.attn.softmax": "token mixing",
                "layers.1.blocks.0.mlp.fc1": "mlp",
                "layers.1.blocks.0.norm2": "other",
                "head.fc": "head",
            },
        ),
        (
            "resnet50",
            {
                "conv1": "embedding",
                "bn1": "other",
                "layer1.0.conv1": "mlp",
                "layer1.0.conv2": "token mixing",
                "layer2.0.downsample.0": "reduction",
                "global_pool": "head",
                "fc": "head",
            },
        ),
        ("mixer_s16_224", {"blocks.0.mlp_tokens": "token mixing", "blocks.0.mlp_channels": "mlp"}),
        ("cait_xxs24_224", {"blocks_token_only.0.attn.q": "token mixing", "blocks.0": "other"}),
    ],
)
def test_kinds_by_the_conventions(name: str, kinds: dict[str, str]) -> None:
    found = module_kinds(on_meta(name))
    assert {module: found[module] for module in kinds} == kinds


def test_parts_of_a_vit_by_kind() -> None:
    count = count_flops(on_meta("vit_tiny_patch16_224", depth=2, img_size=64), (3, 64, 64))
    tokens, dim = 17, 192
    attention = 4 * tokens * dim**2 + 2 * tokens**2 * dim
    # 5 for each score's softmax, 1 for each query's scale.
    attention += 5 * 3 * tokens**2 + tokens * dim
    assert count.by_kind == {
        "embedding": 16 * 3 * 16**2 * dim,
        "token mixing": 2 * attention,
        "mlp": 2 * (8 * tokens * dim**2 + 8 * tokens * 4 * dim),
        "reduction": 0,
        "head": dim * 1000,
        "other": 2 * 2 * 6 * tokens * dim + 5 * tokens * dim + tokens * dim,
    }


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_fusion_changes_no_kind(name: str) -> None:
    depth = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 1}
    model, counts = on_meta(name, **depth), []
    for fused in (True, False):
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        counts.append(count_flops(model).by_kind)
    assert counts[0] == counts[1]


class Announces(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.flop_kind = kind
        self.attn = nn.Linear(4, 4)
        self.inner = nn.Linear(4, 4)
        self.inner.flop_kind = "head"  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(self.attn(x)) + x
        return y


def test_what_a_module_announces_comes_first() -> None:
    count = count_flops(nn.Sequential(Announces("reduction")), (4,))
    assert count.by_kind == dict.fromkeys(KINDS, 0) | {"reduction": 16 + 4, "head": 16}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Announces '0' announces flop_kind='mixing'; accepted"):
        count_flops(nn.Sequential(Announces("mixing")), (4,))


def test_reductions_here_announce_themselves() -> None:
    count = count_flops(on_meta("tome_ti16_r8", depth=2, img_size=64), (3, 64, 64))
    reductions = [count.by_module[f"blocks.{i}.between.tome"] for i in range(2)]
    assert {node.kind for node in reductions} == {"reduction"}
    assert count.by_kind["reduction"] == sum(node.total for node in reductions)
    assert min(node.total for node in reductions) > 0


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(torch.special.bessel_j0(x)) + torch.linalg.norm(
            x, ord="nuc", dim=(-2, -1), keepdim=True
        )


def test_strict_says_which_operators_are_unknown_and_where() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Unknown()), Unknown())
    places = {"1.0": 1, "2": 1}
    with pytest.raises(UncountedOperators, match=r"bessel_j0 in 1\.0 \(2 times\), 2") as caught:
        count_flops(model, (3, 4), strict=True)
    assert caught.value.operators == {
        "aten::linalg_norm": places,
        "aten::special_bessel_j0": dict.fromkeys(places, 2),
    }
    assert count_flops(model, (3, 4)).uncounted == {
        "aten::linalg_norm": 2,
        "aten::special_bessel_j0": 4,
    }
    with pytest.raises(UncountedOperators, match="in the model itself"):
        count_flops(Unknown(), (3, 4), strict=True)
    assert count_flops(nn.Sequential(nn.GELU()), (3, 4), strict=True).uncounted == {}
