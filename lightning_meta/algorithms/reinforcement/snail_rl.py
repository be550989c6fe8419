"""SNAIL for reinforcement learning: temporal convolutions and causal attention read the trial so far.

Mishra, Rohaninejad, Chen, Abbeel: "A Simple Neural Attentive Meta-Learner" (2018), arXiv:1707.03141, section 4.2.

Deviations: trained by the advantage actor-critic, the paper's by TRPO with generalised advantages. The blocks are those
of SNAIL for examples here, with its dilations. While it acts, the whole trial is read again in every step.

Shapes: `L` steps of a trial so far, `B` trajectories, `I` inputs.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.algorithms.memory.snail import Attention, stacked, temporal_convolutions
from lightning_meta.modules.rollout import Told
from lightning_meta.modules.stream_actor import StreamActorModule
from lightning_meta.worlds import Actions


class SNAILRL(StreamActorModule):
    """Act on the last element of a sequence of all that was seen, done and paid.

    Args:
        seen_size: numbers that the world shows.
        actions: of the world.
        length: steps of a trial that temporal convolutions reach back; trials may be longer.
        filters: of each temporal convolution.
        keys, values: of attention.
        **kwargs: of `StreamActorModule`.
    """

    def __init__(
        self,
        seen_size: int,
        actions: Actions,
        length: int = 10,
        filters: int = 16,
        keys: int = 16,
        values: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(seen_size, actions, **kwargs)
        convolutions, attention = temporal_convolutions(length, filters), partial(Attention, keys=keys, values=values)
        self.project = nn.Linear(self.told_size, filters)
        self.blocks, channels = stacked(filters, [*convolutions, attention, *convolutions, attention])
        self.outputs = self.head(channels)

    def blank(self, like: Tensor) -> Tensor:
        return like.new_zeros(0, len(like), self.told_size)

    def read(self, memory_LBI: Tensor, told: Told) -> Tensor:
        return torch.cat([memory_LBI, told.numbers()[None]])

    def features(self, memory_LBI: Tensor) -> Tensor:
        return self.sequences(memory_LBI)[-1]

    def read_round(self, memory_LBI: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        """All steps at once."""
        memory_LBI = torch.cat([memory_LBI, told.numbers()])
        return memory_LBI, self.sequences(memory_LBI)[-len(told.seen) :]

    def sequences(self, inputs_LBI: Tensor) -> Tensor:
        """The channels `(L, B, D)` of every step, which it has of itself and of those before."""

        def one(x_LC: Tensor) -> Tensor:
            for block in self.blocks:
                x_LC = block(x_LC, len(x_LC))
            return x_LC

        return torch.vmap(one, in_dims=1, out_dims=1)(self.project(inputs_LBI))
