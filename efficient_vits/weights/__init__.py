"""Weights: loading them from any known layout, strictly, or as a warm start."""

from efficient_vits._state import WeightsError
from efficient_vits.weights._files import read_state_dict
from efficient_vits.weights._load import Loaded, load_weights
from efficient_vits.weights._warm_start import WarmStart, warm_start

__all__ = [
    "Loaded",
    "WarmStart",
    "WeightsError",
    "load_weights",
    "read_state_dict",
    "warm_start",
]
