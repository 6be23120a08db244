"""Times as rows of the table that a `Measurement` prints."""

from efficient_vits.efficiency.energy import Energy
from efficient_vits.efficiency.latency import Latency
from efficient_vits.efficiency.options import Options
from efficient_vits.efficiency.throughput import DEFAULT, Throughput
from efficient_vits.efficiency.training_speed import TrainingSpeed

Rows = list[tuple[str, str]]


def speed_rows(speed: Throughput) -> Rows:
    """Throughput with its intervals, and how it was measured."""
    rows = [
        (
            "throughput",
            f"{speed.images_per_second:.1f} images/s at batch {speed.batch_size} on {speed.device}",
        ),
        (
            "latency",
            f"{speed.latency_seconds * 1e3:.2f} ms per batch, quartiles {speed.spread:.1%} apart",
        ),
    ]
    if speed.interval and speed.prediction:
        (low, high), (least, most) = speed.interval, speed.prediction
        rows.append(
            ("95 %", f"{low:.1f} to {high:.1f} images/s; a repeat {least:.1f} to {most:.1f}")
        )
    if speed.protocol != DEFAULT:
        rows.append(("protocol", speed.protocol))
    return [*rows, *_remarks(speed.options, speed.flags, speed.rerun)]


def latency_rows(latency: Latency) -> Rows:
    """Percentiles of single images."""
    p50, p90, p99 = (
        1e3 * s for s in (latency.p50_seconds, latency.p90_seconds, latency.p99_seconds)
    )
    text = f"p50 {p50:.2f}, p90 {p90:.2f}, p99 {p99:.2f} ms on {latency.device}"
    return [("one image", text), *_remarks(latency.options, latency.flags, latency.rerun)]


def training_rows(training: TrainingSpeed) -> Rows:
    """A training step and its parts."""
    forward, backward, update = (
        1e3 * s
        for s in (training.forward_seconds, training.backward_seconds, training.optimizer_seconds)
    )
    return [
        (
            "training",
            f"{training.images_per_second:.1f} images/s at batch {training.batch_size} on "
            f"{training.device}, {training.hours_per_epoch:.2f} h per epoch of ImageNet-1k",
        ),
        (
            "a step",
            f"forward {forward:.1f}, backward {backward:.1f}, {training.optimizer} {update:.1f} ms",
        ),
        *_remarks(training.options, training.flags, training.rerun),
    ]


def energy_rows(energy: Energy) -> Rows:
    """Energy per image, or why there is no figure."""
    if energy.joules_per_image is None:
        return [("energy", f"not available: {energy.unavailable}")]
    return [
        (
            "energy",
            f"{energy.joules_per_image:.4f} J per image at batch {energy.batch_size}, "
            f"{energy.watts:.0f} W",
        )
    ]


def _remarks(options: Options, flags: tuple[str, ...], rerun: bool) -> Rows:
    asked = []
    if options.amp:
        asked.append(f"AMP {options.amp}")
    if options.channels_last:
        asked.append("channels last")
    if options.compile:
        asked.append(f"compiled ({options.compile})")
    rows = [("options", ", ".join(asked))] if asked else []
    if flags:
        rows.append(("noisy", ", ".join(flags) + ", measured twice" * rerun))
    return rows
