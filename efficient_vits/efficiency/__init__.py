"""Measures what any `torch.nn.Module` costs: parameters, FLOPs, memory, throughput.

Nothing here knows the models of this library; a name is only handed to `timm.create_model`.
"""

from efficient_vits.efficiency.distribution import FlopDistribution, Spread, flop_distribution
from efficient_vits.efficiency.environment import environment
from efficient_vits.efficiency.flops import FlopCount, count_flops
from efficient_vits.efficiency.measure import Measurement, measure
from efficient_vits.efficiency.memory import MemoryUse, measure_memory
from efficient_vits.efficiency.parameters import count_active_parameters, count_parameters
from efficient_vits.efficiency.throughput import Throughput, measure_throughput

__all__ = [
    "FlopCount",
    "FlopDistribution",
    "Measurement",
    "MemoryUse",
    "Spread",
    "Throughput",
    "count_active_parameters",
    "count_flops",
    "count_parameters",
    "environment",
    "flop_distribution",
    "measure",
    "measure_memory",
    "measure_throughput",
]
