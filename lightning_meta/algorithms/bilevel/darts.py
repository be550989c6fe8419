"""DARTS: all operations on every edge, mixed by a softmax whose logits are learned on held-out examples.

Liu, Simonyan, Yang: "DARTS: Differentiable Architecture Search" (2019), arXiv:1806.09055.

With `hypergradient: FiniteDifference` it is the paper's second order, with `FirstOrder` its first; `Unrolled` takes the
same step exactly.

Deviations: one small cell in place of a stack of two kinds; convolutions of one layer; the cell that is found is the
most likely one within the budget of parameters, where the paper keeps the two strongest operations into each node.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.backbones import Cell
from lightning_meta.core import FiniteDifference, Hypergradient
from lightning_meta.core.architectures import log_probabilities
from lightning_meta.modules.architecture_search import ArchitectureModule


class DARTS(ArchitectureModule):
    """A softmax over operations on every edge, learned beside the weights of all of them.

    Args:
        backbone, n_classes: of `ArchitectureModule`.
        hypergradient: of the inner steps. The paper's second order by default.
        **kwargs: of `ArchitectureModule`; `optimizer` is that of the logits.
    """

    def __init__(
        self,
        backbone: Cell,
        n_classes: int = 10,
        hypergradient: Hypergradient = FiniteDifference(),  # noqa: B008 - never mutated
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, hypergradient=hypergradient, **kwargs)
        self.alphas_EO = nn.Parameter(1e-3 * torch.randn_like(self.cell.mixture_EO))

    def operations(self) -> Tensor:
        return self.alphas_EO.softmax(1)

    def chosen(self) -> Tensor:
        cells_KE = self.cell.cells_KE
        return cells_KE[log_probabilities(self.alphas_EO.detach(), cells_KE).argmax()]

    def mixture(self) -> Tensor:
        return self.operations() if self.training else super().mixture()
