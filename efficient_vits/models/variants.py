"""Every mechanism at every size: the table of ViT variants.

A mechanism brings patterns of model names; each becomes one model per size in timm's registry and
one card in the catalog, also for mechanisms that other packages register later.
"""

from typing import Any

from efficient_vits import catalog
from efficient_vits._registry import Entry, Registry
from efficient_vits.models import efficient_vits
from efficient_vits.models.create import REGISTRIES, VIT_PARAMETERS, as_list, create_vit

# Dim x depth x heads, table 1 of "An Image is Worth 16x16 Words" and of "DeiT" (Ti, S).
SIZES: dict[str, dict[str, int]] = {
    "ti": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "s": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "b": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "l": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
PATCH_SIZE = 16

# The benchmark's ViT: no slot for the class token in the position embedding, LayerScale.
HOST: dict[str, Any] = {"patch_size": PATCH_SIZE, "no_embed_class": True, "init_values": 1e-4}

# timm's ViT of each size, from which a variant can start.
WARM_STARTS = {
    size: f"vit_{name}_patch16_224.augreg_in21k_ft_in1k"
    for size, name in {"ti": "tiny", "s": "small", "b": "base", "l": "large"}.items()
}

CFG = {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}


def register_variants(registry: Registry, entry: Entry) -> None:
    """Register the models that a mechanism brings, all of them or none.

    Raises:
        ValueError: A model name is taken, or an own argument has the name of one of the ViT's.
    """
    shadowed = sorted(VIT_PARAMETERS & set(registry.own_parameters(entry.cls)))
    if shadowed:
        raise ValueError(
            f"{registry.axis} {entry.name!r} has arguments {shadowed} of its own that the ViT has "
            f"too; rename them"
        )
    sizes = SIZES if entry.sizes is None else entry.sizes
    models = {
        pattern.format(size=f"{size}{PATCH_SIZE}"): (size, own)
        for pattern, own in entry.models.items()
        for size in sizes
    }
    efficient_vits.check_free(list(models))
    for name, (size, own) in models.items():
        host = {**HOST, **sizes[size], **entry.vit}
        # What a plain ViT's weights are right for, and what they are only a beginning of.
        plain = getattr(getattr(entry.cls, "traits", None), "plain_weights", False)
        same_variant = [sibling for sibling in models if models[sibling][1] is own]
        catalog.derive(
            name,
            axis=registry.axis,
            relatives=[*same_variant, *models],
            paper=entry.paper,
            stands_in_for=f"vit_{size}{PATCH_SIZE}" if plain else "",
            warm_start="" if entry.sizes else WARM_STARTS[size],
        )
        _register(registry, entry, name, size, host, dict(own))


def _register(
    registry: Registry,
    entry: Entry,
    name: str,
    size: str,
    host: dict[str, Any],
    own: dict[str, Any],
) -> None:
    def merge(arguments: dict[str, Any]) -> dict[str, Any]:
        asked = as_list(arguments.get(registry.axis, entry.name))
        given = [one for one in map(registry.resolve, asked) if one.cls is entry.cls]
        if not given:
            return {**host, **arguments}  # another mechanism has no use for this one's arguments
        unbound = {key: value for key, value in own.items() if key not in given[0].bound}
        return {**host, registry.axis: entry.name, **unbound, **arguments}

    def check_trained(arguments: dict[str, Any]) -> None:
        """Published weights are those of this model's own attention and MLP."""
        for axis, default in (("attention", "softmax"), ("mlp", "mlp")):
            own_name = entry.name if registry.axis == axis else default
            other = arguments.get(axis)
            if other is not None and REGISTRIES[axis].resolve(other).name != own_name:
                raise ValueError(
                    f"the weights of {name} were trained with {axis}={own_name!r}, not {other!r}; "
                    f"build the model with pretrained=False and start it with "
                    f"efficient_vits.warm_start(model, timm.create_model({name!r}, "
                    f"pretrained=True))"
                )

    doc = (
        f"ViT-{size.capitalize()}/{PATCH_SIZE} with {registry.axis}={entry.name!r}"
        f"{''.join(f', {key}={value!r}' for key, value in own.items())}.\n\n"
        f"Takes all arguments of `efficient_vits.models.create_vit`."
    )
    efficient_vits.add_entry_point(
        name,
        create_vit,
        doc=doc,
        cfg=CFG,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        merge=merge,
        check_trained=check_trained,
    )


for _registry in REGISTRIES.values():
    _registry.subscribe(register_variants)
