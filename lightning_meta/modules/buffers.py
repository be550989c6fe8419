"""A pytree as buffers."""

from typing import Any

from torch import Tensor, nn

from lightning_meta.compat import tree_flatten, tree_leaves, tree_unflatten
from lightning_meta.errors import ConfigError


class Buffers(nn.Module):
    """Keeps a pytree of tensors, such as the state of an inner optimizer, where a checkpoint holds it.

    Args:
        tree: its structure and first values.
    """

    def __init__(self, tree: Any) -> None:
        super().__init__()
        leaves, self.structure = tree_flatten(tree)
        for number, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                raise ConfigError(f"{leaf!r} is no tensor and cannot be carried from task to task; make it one.")
            self.register_buffer(str(number), leaf.clone())  # two that are one tensor would count as one buffer

    @property
    def tree(self) -> Any:
        return tree_unflatten(list(self.buffers()), self.structure)

    def named(self, tree: Any) -> dict[str, Tensor]:
        """The leaves of another tree of this structure, by the names of the buffers."""
        return dict(zip(dict(self.named_buffers()), tree_leaves(tree), strict=True))
