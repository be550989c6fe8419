"""Algorithms that read a support set as a stream."""

from typing import TypeVar

import torch

from lightning_meta.core import Batch
from lightning_meta.core.sampling import choose, episode_keys
from lightning_meta.modules.episodic import EpisodicModule

Adapted = TypeVar("Adapted")


class StreamModule(EpisodicModule[Adapted]):
    """Base of algorithms whose `adapt` reads one example after another, so that the order of the support set matters.

    Its order is drawn with each episode. Otherwise the examples of a class stand side by side, in the order of their
    labels, and the place of an example would tell its label. Whoever calls `adapt` with a support set of their own puts
    it into a random order first.
    """

    needs = frozenset({"stream"})

    @staticmethod
    def ordered(support: Batch) -> Batch:
        """A support set of a user's own in a random order, the same every time."""
        size = len(support.y)
        order_S = torch.from_numpy(choose(episode_keys(0, 0, [0]), size, size)[0]).to(support.y.device)
        return Batch(support.x[order_S], support.y[order_S])


def class_after_class(support: Batch) -> Batch:
    """The examples of a stream, those of a class together; classes in the order in which they are seen last in it."""
    places_S = torch.arange(len(support.y), device=support.y.device)
    last_S = ((support.y[:, None] == support.y) * places_S).amax(1)
    order_S = last_S.argsort(stable=True)
    return Batch(support.x[order_S], support.y[order_S])
