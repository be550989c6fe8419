"""Callbacks of every run. What is drawn at the end of a test is in `lightning_meta.reports`."""

from typing import Any

from lightning_meta import reports
from lightning_meta.callbacks.checkpoint import EpisodicCheckpoint
from lightning_meta.callbacks.divergence import ReplayStep, StopOnDivergence
from lightning_meta.callbacks.episode_table import EpisodeTable
from lightning_meta.callbacks.progress import Parameters, Progress
from lightning_meta.callbacks.summary import RunSummary
from lightning_meta.callbacks.throughput import Throughput

__all__ = [
    "EpisodeTable",
    "EpisodicCheckpoint",
    "Parameters",
    "Progress",
    "ReplayStep",
    "RunSummary",
    "StopOnDivergence",
    "Throughput",
]


def __getattr__(name: str) -> Any:
    """Reports, by the place that they have in the configs of older runs."""
    if name == "Pictures":
        raise ImportError("lightning_meta.callbacks.Pictures is lightning_meta.reports.Report now; see its docstring.")
    if name not in reports.REPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return reports.REPORTS[name]
