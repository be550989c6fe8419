"""Bilevel problems whose outer variable is a cell: which operation is on which edge of a small network.

What all searches have in common: the network of the inner trainings is a `Cell`, whose mixture of operations is given
by the search, and what is judged at the end is one cell, trained from its beginning.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import Cell
from lightning_meta.core import Batch, InnerOptimizer, Params, Progress, TaskOutput, descend
from lightning_meta.core.architectures import dice_of
from lightning_meta.core.inner_loop import LossFn
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.errors import ConfigError
from lightning_meta.modules.bilevel import BilevelModule
from lightning_meta.provenance import Provenance
from lightning_meta.ranks import gather

PATH = "architecture_path"  # in checkpoints: how likely each operation was after each outer update


class ArchitectureModule(BilevelModule):
    """A search for a cell. A subclass writes `operations` and `chosen`, and what it learns.

    Args:
        backbone: the cells to choose from; its `budget` says which.
        n_classes: of the data.
        **kwargs: of `BilevelModule`.
    """

    def __init__(self, backbone: Cell, n_classes: int = 10, **kwargs: Any) -> None:
        if not isinstance(backbone, Cell) or len(backbone.choices[0]) < 2:  # type: ignore[arg-type]
            raise ConfigError(
                f"{type(self).__name__} searches among the cells of a Cell with two operations or more, and not one "
                f"of {type(backbone).__name__}; take backbone: Cell and leave out its cell."
            )
        super().__init__(backbone, n_classes, **kwargs)
        self.path: list[Tensor] = []  # how likely each operation was after each outer update, `(E, O)`

    # ---- a search writes these ----------------------------------------------------------------------------------

    def operations(self) -> Tensor:
        """How likely the search finds each operation of each edge, `(E, O)`; rows sum to 1."""
        raise NotImplementedError

    def chosen(self) -> Tensor:
        """The cell that is found, `(E,)`."""
        raise NotImplementedError

    def mixture(self) -> Tensor:
        """Of the network in the hooks, `(E, O)`: the cell that is found, unless the search trains another."""
        return self.cell.one_hot(self.chosen())

    # ---- owned here ---------------------------------------------------------------------------------------------

    @property
    def cell(self) -> Cell:
        return self.network.get_submodule("backbone")  # type: ignore[return-value]

    def logits(self, weights: Params, x: Tensor) -> Tensor:
        return self.logits_of(self.mixture(), weights, x)

    def logits_of(self, mixture_EO: Tensor, weights: Params, x: Tensor) -> Tensor:
        """Scores `(B, C)` of the network with these weights, and with this mixture of operations."""
        return functional_call(self.network, {**weights, "backbone.mixture_EO": mixture_EO}, (x,))

    def inner_loss(self, weights: Params, batch: Batch) -> Tensor:
        return self.losses(weights, batch).mean()

    def watch(self, weights: Params, batch: Batch, right_B: Tensor) -> dict[str, Tensor]:
        return self.watched_of_the_search()

    def watched_of_the_search(self) -> dict[str, Tensor]:
        """How undecided it is (nats, mean over edges), and how many parameters the cell has that it would choose."""
        p_EO = self.operations()
        size = self.cell.sizes_K[(self.cell.cells_KE == self.chosen()).all(1)].sum().to(p_EO)
        return {"entropy": torch.special.entr(p_EO).sum(1).mean(), "parameters": size}

    def dice(self, numbers: Tensor, size: int) -> Tensor:
        """Random numbers `(N, size)` of the search: the same on every process, and in a training that was resumed."""
        seed = (self.provenance or Provenance.of_this_process()).seed or 0
        return dice_of(seed, numbers, size)

    @torch.no_grad()
    def settle(self) -> None:
        super().settle()
        self.remember()

    def remember(self) -> None:
        self.path.append(self.operations().detach().float().cpu())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.path:
            checkpoint[PATH] = torch.stack(self.path)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.path = [*checkpoint.get(PATH, ())]


class ChildrenModule(ArchitectureModule):
    """A search that trains cells from their beginning, T in an outer update, and learns from how good they came out.

    The reward of a cell is its accuracy on the held-out examples; the one with the highest reward is found. Every
    process proposes the same cells and trains its share of them.

    Args:
        backbone, n_classes: of `ArchitectureModule`.
        **kwargs: of `ArchitectureModule`.
    """

    def __init__(self, backbone: Cell, n_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.born: Tensor  # cells that have been trained
        self.best_E: Tensor  # of these
        self.best_reward: Tensor
        self.register_buffer("born", torch.zeros((), dtype=torch.long))
        self.register_buffer("best_E", self.cell.cells_KE[0].clone())
        self.register_buffer("best_reward", torch.tensor(-torch.inf))
        self.judged_cells: tuple[Tensor, Tensor] | None = None  # of the outer update at hand, and their rewards

    def proposed(self, numbers_N: Tensor) -> Tensor:
        """The cells `(N, E)` to train next, which have these numbers from the beginning of the search."""
        raise NotImplementedError

    def losses_of_search(self, cells_NE: Tensor, rewards_N: Tensor) -> Tensor:
        """Whose gradient the outer variables follow, `(N,)`."""
        raise NotImplementedError

    def learn(self, cells_NE: Tensor, rewards_N: Tensor) -> None:
        """What else there is to keep of cells that were judged."""

    def chosen(self) -> Tensor:
        return self.best_E

    def measure(self, tasks: Trial) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if not self.training:
            return self._judge(tasks)
        share, ranks = len(tasks.key), 1 if self._trainer is None else self.trainer.world_size
        cells_NE = self.proposed(self.born + torch.arange(share * ranks, device=self.device))
        mine = slice(share * self.global_rank, share * (self.global_rank + 1))
        mixtures_TEO = self.cell.one_hot(cells_NE[mine])
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            trained = self._map(self.train_child, tasks, mixtures_TEO, self.begin(tasks), tasks.support)
        with torch.no_grad():
            out = self._map(self.judge_child, tasks, mixtures_TEO, trained.params, tasks.query)
        self.carried = trained
        values = self._values(out, tasks.query)
        rewards_N = torch.cat([part.to(self.device) for part in gather(values[self.metric.name].cpu())])
        self.judged_cells = cells_NE, rewards_N
        loss_T = self.losses_of_search(cells_NE, rewards_N)[mine]
        watched = {name: value.expand(share) for name, value in self.watched_of_the_search().items()}
        return {**values, "loss": loss_T, "cross_entropy": values["loss"], **watched}, {"preds": out.preds}

    def train_child(self, mixture_EO: Tensor, progress: Progress, support: Batch) -> Progress:
        """A training of one cell."""
        optimizer: InnerOptimizer = self.inner_optimizer

        def of(x: Tensor, y: Tensor) -> LossFn:
            return lambda weights: F.cross_entropy(self.logits_of(mixture_EO, weights, x), y)

        return descend([of(x, y) for x, y in zip(*support, strict=True)], progress, optimizer, first_order=True)

    def judge_child(self, mixture_EO: Tensor, weights: Params, query: Batch) -> TaskOutput:
        logits_QC = self.logits_of(mixture_EO, weights, query.x)
        return TaskOutput(F.cross_entropy(logits_QC, query.y), logits_QC)

    @torch.no_grad()
    def settle(self) -> None:
        assert self.judged_cells is not None
        cells_NE, rewards_N = self.judged_cells
        reward, place = rewards_N.max(0)
        if reward > self.best_reward:
            self.best_reward.copy_(reward)
            self.best_E.copy_(cells_NE[place])
        self.learn(cells_NE, rewards_N)
        self.born += len(cells_NE)
        self.judged_cells = None
        self.remember()

    def check_trials(self, data: BilevelDataModule) -> None:
        super().check_trials(data)
        if data.unroll_steps != data.truncation or data.evaluate != "retrained":
            raise ConfigError(
                f"{type(self).__name__} trains cells from their beginning to their end in every outer update, but "
                f"truncation={data.truncation}, unroll_steps={data.unroll_steps} and evaluate={data.evaluate}; set "
                "data.truncation and data.unroll_steps to the same number and data.evaluate to retrained."
            )


class SelectionModule(ChildrenModule):
    """A search by selection alone. Its one outer variable stays 0: several processes train only what has a gradient.

    Args:
        backbone, n_classes: of `ChildrenModule`.
        **kwargs: of `ChildrenModule`.
    """

    def __init__(self, backbone: Cell, n_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(backbone, n_classes, **kwargs)
        self.still = nn.Parameter(torch.zeros(()))

    def losses_of_search(self, cells_NE: Tensor, rewards_N: Tensor) -> Tensor:
        return 0 * self.still.expand(len(rewards_N))
