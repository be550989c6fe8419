"""Exchange between processes."""

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """The value of every rank, in the order of ranks, on every rank. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean(value: Tensor) -> Tensor:
    """Of the tensors of all ranks, on every rank, without a gradient. Every rank must call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
