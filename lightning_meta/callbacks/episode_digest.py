"""What tells the test episodes of a run from others, so that runs are compared only over the same ones."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from torch import Tensor

from lightning_meta.compat import tree_leaves, tree_map
from lightning_meta.core import Episode
from lightning_meta.datamodules.episodes import EpisodeDataset


def task_digests(tasks: Any) -> list[bytes]:
    """SHA-256 of what is in each task of a meta-batch.

    Of an episode it does not depend on the order of support and query set, for algorithms that read a stream get
    another order than others; nor on whether numbers are held in fp32 or float64.
    """
    if isinstance(tasks, list):
        return [digest for part in tasks for digest in task_digests(part)]
    arrays = tree_map(_array, tasks)
    count = len(tree_leaves(arrays)[0])
    return [_task_digest(tree_map(lambda array, t=t: array[t], arrays)) for t in range(count)]


def list_digest(digests: dict[int, bytes]) -> str:
    """SHA-256, in short, of a list of tasks: their digests by their ids."""
    return _digest(part for i in sorted(digests) for part in (b"%d" % i, digests[i])).hex()[:24]


def played_inputs(dataset: Any, ids: Sequence[int], tasks: Any) -> Any:
    """The tasks `ids` of a data set as they are in the data: `tasks`, unless those hold features of a backbone."""
    if not isinstance(dataset, EpisodeDataset) or (plain := dataset.source.unembedded()) is dataset.source:
        return tasks
    return type(dataset)(plain, dataset.shape, dataset.seed, dataset.split).__getitems__(ids)


def _array(leaf: Tensor) -> np.ndarray:
    return (leaf.detach().float() if leaf.is_floating_point() else leaf.long()).cpu().numpy()


def _task_digest(task: Any) -> bytes:
    if isinstance(task, Episode):
        parts = [[_digest(map(_content, example)) for example in zip(*part, strict=True)] for part in task]
        return _digest(_digest(sorted(part)) for part in parts)
    return _digest(map(_content, tree_leaves(task)))


def _content(array: np.ndarray) -> bytes:
    return str(array.shape).encode() + array.tobytes()


def _digest(parts: Iterable[bytes]) -> bytes:
    digest = sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
