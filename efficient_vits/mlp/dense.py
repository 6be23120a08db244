"""The plain MLP of a transformer: timm's `Mlp`, under the name ``mlp``."""

from timm.layers import Mlp

from efficient_vits.mlp._interface import register_mlp

# It is part of every ViT and brings no model of its own.
register_mlp("mlp", models={})(Mlp)
