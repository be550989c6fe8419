"""Random search for an architecture: what the others have to beat at equal cost.

Li and Talwalkar: "Random Search and Reproducibility for Neural Architecture Search" (2019), arXiv:1902.07638.

Deviation: cells are trained from their beginning, without the paper's shared weights.
"""

from torch import Tensor

from lightning_meta.core.architectures import at_random
from lightning_meta.modules.architecture_search import SelectionModule


class RandomSearch(SelectionModule):
    """The best of cells that are drawn at random, `data.meta_batch_size` in an outer update."""

    def operations(self) -> Tensor:
        return self.cell.one_hot(self.best_E)

    def proposed(self, numbers_N: Tensor) -> Tensor:
        return at_random(self.cell.cells_KE, self.dice(numbers_N, 1)[:, 0])
