"""What is optimized lives on from one outer update to the next, as a part of the training's checkpoint."""

from typing import Any

import torch
from torch import Tensor

from lightning_meta.compat import tree_leaves, tree_structure, tree_unflatten
from lightning_meta.core import Progress
from lightning_meta.errors import ConfigError
from lightning_meta.modules.base import MetaModule
from lightning_meta.ranks import gather

CARRIED = "carried"  # in checkpoints: what the optimizations of all ranks have come to


class CarriedModule(MetaModule):
    """Base of modules whose tasks are optimizations that go on over many training steps. A subclass writes `begin`.

    What T optimizations of this rank have come to is `carried`, with a leading task axis, as constants. It is part of a
    checkpoint, so that training goes on exactly where it stopped, on any number of processes.

    Args:
        **kwargs: of `MetaModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.compile_training == "cuda_graph":
            raise ConfigError(
                f"{type(self).__name__} carries weights from segment to segment, which a recorded step would not read "
                "anew; set compile_training to true or false."
            )
        # What the T optimizations of this rank have come to; just after loading, the leaves of all ranks.
        self.carried: Progress | list[Tensor] | None = None

    def begin(self, tasks: Any) -> Progress:
        """Where T optimizations start, of tasks that have no steps behind them."""
        raise NotImplementedError

    def progress(self, tasks: Any) -> Progress:
        """Where a segment begins: at the start, or where the segment before ended.

        Args:
            tasks: their `start` `(T,)` says how many steps have been taken before.
        """
        if not tasks.start.any():
            return self.begin(tasks)
        if isinstance(self.carried, list):
            self.carried = self._share(self.carried, tasks)
        if self.carried is None:
            raise ConfigError(
                f"training starts at step {tasks.start[0]} of an optimization, but the steps before it are not "
                "known; resume from a checkpoint of this training, or start anew."
            )
        return self.carried

    def _share(self, leaves: list[Tensor], tasks: Any) -> Progress:
        """This rank's optimizations of those of all ranks, in the order of ranks."""
        share = len(tasks.start)
        if len(leaves[0]) != share * self.trainer.world_size:
            raise ConfigError(
                f"the checkpoint is in the middle of {len(leaves[0])} optimizations, but meta_batch_size="
                f"{share * self.trainer.world_size}; set data.meta_batch_size to {len(leaves[0])}."
            )
        first = self.trainer.global_rank * share
        mine = [leaf[first : first + share].to(tasks.start.device) for leaf in leaves]
        return tree_unflatten(mine, tree_structure(self.begin(tasks)))

    def of_all_ranks(self) -> list[Tensor]:
        """The leaves of what the optimizations of all ranks have come to, in the order of ranks."""
        parts = gather([leaf.cpu() for leaf in tree_leaves(self.carried)])
        unread = isinstance(self.carried, list)  # still those of all ranks
        return parts[0] if unread else [torch.cat(leaves) for leaves in zip(*parts, strict=True)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.carried is not None:
            checkpoint[CARRIED] = self.of_all_ranks()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.carried = checkpoint.get(CARRIED)
