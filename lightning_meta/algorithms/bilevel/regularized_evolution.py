"""Regularized evolution: the best of a sample of the population has a child that differs a little; the oldest dies.

Real, Aggarwal, Huang, Le: "Regularized Evolution for Image Classifier Architecture Search" (2019), arXiv:1802.01548.

With `mutation: motif` an operation changes wherever it stands, as when a motif of a hierarchical representation
changes. Liu, Simonyan, Vinyals, Fernando, Kavukcuoglu: "Hierarchical Representations for Efficient Architecture Search"
(2018), arXiv:1711.00436.

Deviations: there is one cell, whose inputs do not change, so a mutation is one of an operation; of several children in
an outer update none is the parent of another. Of hierarchical representations nothing but this mutation is here: there
is one level of motifs, and they are single operations.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_meta.backbones import Cell
from lightning_meta.core.architectures import MUTATIONS, Population, at_random, children, joined_by, parents
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule
from lightning_meta.errors import ConfigError, require_at_least
from lightning_meta.modules.architecture_search import SelectionModule


class RegularizedEvolution(SelectionModule):
    """A population of cells, the first of which are drawn at random.

    Args:
        backbone, n_classes: of `SelectionModule`.
        population: cells that are alive.
        sample: of these, drawn with replacement, the best is the parent.
        mutation: `edge`: another operation on one edge. `motif`: another operation in place of one, wherever it stands.
        **kwargs: of `SelectionModule`.
    """

    def __init__(
        self,
        backbone: Cell,
        n_classes: int = 10,
        population: int = 8,
        sample: int = 3,
        mutation: Literal["edge", "motif"] = "edge",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        require_at_least(1, sample=sample)
        if population < sample:
            raise ConfigError(
                f"population={population} is smaller than the sample={sample} of which the best is a parent; lower "
                "sample or raise population."
            )
        if mutation not in MUTATIONS:
            raise ConfigError(f"mutation={mutation!r} must be {' or '.join(MUTATIONS)}.")
        self.sample, self.mutation = sample, mutation
        self.cells_PE: Tensor
        self.rewards_P: Tensor
        self.register_buffer("cells_PE", self.cell.cells_KE[:1].repeat(population, 1))
        self.register_buffer("rewards_P", torch.zeros(population, dtype=torch.float64))

    @property
    def population(self) -> Population:
        return Population(self.cells_PE, self.rewards_P, self.born)

    def operations(self) -> Tensor:
        alive = max(1, min(int(self.born), len(self.cells_PE)))
        return self.cell.one_hot(self.cells_PE[:alive]).mean(0)

    def proposed(self, numbers_N: Tensor) -> Tensor:
        dice = self.dice(numbers_N, self.sample + 1)
        drawn_NE = at_random(self.cell.cells_KE, dice[:, 0])
        if self.born < len(self.cells_PE):
            return drawn_NE
        parents_NE = parents(self.population, dice[:, 1:])
        return children(parents_NE, dice[:, 0], self.mutation, self.cell.cells_KE, len(self.cell.operations))

    def learn(self, cells_NE: Tensor, rewards_N: Tensor) -> None:
        cells, rewards, _ = joined_by(self.population, cells_NE, rewards_N)
        self.cells_PE.copy_(cells)
        self.rewards_P.copy_(rewards)

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if len(self.cells_PE) % data.meta_batch_size:
            raise ConfigError(
                f"population={len(self.cells_PE)} is not filled by meta_batch_size={data.meta_batch_size} cells at a "
                "time; set model.population to a multiple of it."
            )
