"""Weights: loading them from any known layout, strictly."""

from efficient_vits._state import WeightsError
from efficient_vits.weights._files import read_state_dict
from efficient_vits.weights._load import Loaded, load_weights

__all__ = ["Loaded", "WeightsError", "load_weights", "read_state_dict"]
