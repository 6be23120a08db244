"""Weights: loading them from any known layout, strictly or as a warm start, and the Hub."""

from efficient_vits._state import WeightsError
from efficient_vits.weights._files import read_state_dict
from efficient_vits.weights._hub_pull import pull
from efficient_vits.weights._hub_push import Pushed, push
from efficient_vits.weights._hub_retry import HubError
from efficient_vits.weights._load import Loaded, load_weights
from efficient_vits.weights._warm_start import WarmStart, warm_start

__all__ = [
    "HubError",
    "Loaded",
    "Pushed",
    "WarmStart",
    "WeightsError",
    "load_weights",
    "pull",
    "push",
    "read_state_dict",
    "warm_start",
]
