"""Pictures. They need matplotlib: ``pip install 'efficient-vits[plots]'``."""

from efficient_vits.plots.tokens import draw_tokens, paint_tokens

__all__ = ["draw_tokens", "paint_tokens"]
