"""Measures what any `torch.nn.Module` costs: parameters, FLOPs, memory, time, energy.

Nothing here knows the models of this library; a name is only handed to `timm.create_model`.
"""

from efficient_vits.efficiency.compare import Comparison, compare
from efficient_vits.efficiency.counters import (
    CounterComparison,
    CounterRow,
    compare_counters,
)
from efficient_vits.efficiency.distribution import FlopDistribution, Spread, flop_distribution
from efficient_vits.efficiency.energy import Energy, measure_energy
from efficient_vits.efficiency.environment import environment
from efficient_vits.efficiency.estimate import estimate_memory
from efficient_vits.efficiency.flops import FlopCount, UncountedOperators, count_flops
from efficient_vits.efficiency.journal import JournalError, read_rows
from efficient_vits.efficiency.largest_batch import largest_batch
from efficient_vits.efficiency.latency import Latency, measure_latency
from efficient_vits.efficiency.launchers import Local
from efficient_vits.efficiency.measure import Measurement, measure
from efficient_vits.efficiency.memory import MemoryUse, measure_memory
from efficient_vits.efficiency.modules import ModuleFlops
from efficient_vits.efficiency.options import Options
from efficient_vits.efficiency.parameters import count_active_parameters, count_parameters
from efficient_vits.efficiency.slurm import Submitit
from efficient_vits.efficiency.sweep import SweepProgress, sweep
from efficient_vits.efficiency.throughput import Throughput, measure_throughput
from efficient_vits.efficiency.training_speed import TrainingSpeed, measure_training

__all__ = [
    "Comparison",
    "CounterComparison",
    "CounterRow",
    "Energy",
    "FlopCount",
    "FlopDistribution",
    "JournalError",
    "Latency",
    "Local",
    "Measurement",
    "MemoryUse",
    "ModuleFlops",
    "Options",
    "Spread",
    "Submitit",
    "SweepProgress",
    "Throughput",
    "TrainingSpeed",
    "UncountedOperators",
    "compare",
    "compare_counters",
    "count_active_parameters",
    "count_flops",
    "count_parameters",
    "environment",
    "estimate_memory",
    "flop_distribution",
    "largest_batch",
    "measure",
    "measure_energy",
    "measure_latency",
    "measure_memory",
    "measure_throughput",
    "measure_training",
    "read_rows",
    "sweep",
]
