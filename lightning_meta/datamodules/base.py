"""The datamodules every data set builds on: they turn a source of tasks into streams of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lightning_meta.core.episode import EpisodeShape, Need, Split
from lightning_meta.datamodules.arrivals import Arrivals, ArrivingSource
from lightning_meta.datamodules.episodes import EpisodeDataset, EpisodeLoader, TaskDataset, TaskSource
from lightning_meta.errors import ConfigError, UserError, require_at_least


class TaskDataModule(pl.LightningDataModule):
    """Streams of training, validation and test tasks, whatever a task is. A kind of task writes `dataset`.

    Task `i` of a split is a pure function of (seed, split, i). Training visits ids without end; validation and test
    visit a frozen list, the ids below `val_episodes` and `test_episodes`, shared out over ranks without padding or
    repetition.

    Args:
        meta_batch_size: tasks per outer update, GLOBAL over devices; with `trainer.accumulate_grad_batches` so many
            times as many.
        steps_per_epoch: outer updates in an epoch; validation follows each epoch.
        val_episodes, test_episodes: how many frozen tasks are evaluated.
        eval_meta_batch_size: tasks evaluated at once on one device; changes memory and speed, not the result.
        seed: of the tasks.
        num_workers: processes that draw tasks ahead; 0 draws them in the main process.
    """

    name: str  # in results

    def __init__(
        self,
        meta_batch_size: int = 4,
        steps_per_epoch: int = 500,
        val_episodes: int = 200,
        test_episodes: int = 1000,
        eval_meta_batch_size: int = 20,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__
        self.meta_batch_size, self.steps_per_epoch = meta_batch_size, steps_per_epoch
        self.val_episodes, self.test_episodes = val_episodes, test_episodes
        self.eval_meta_batch_size, self.seed, self.num_workers = eval_meta_batch_size, seed, num_workers
        names = ("meta_batch_size", "steps_per_epoch", "val_episodes", "test_episodes", "eval_meta_batch_size")
        require_at_least(1, **{name: getattr(self, name) for name in names})
        require_at_least(0, seed=seed, num_workers=num_workers)

    def dataset(self, split: Split) -> TaskDataset:
        """The split's tasks as an indexed collection (after `setup`)."""
        raise NotImplementedError

    def train_ids(self, batch: int, rank: int, share: int) -> Sequence[int]:
        """The ids that a rank plays in training batch `batch`, its `share` of the meta-batch."""
        start = batch * self.meta_batch_size + rank * share
        return range(start, start + share)

    def facts(self, split: Split) -> dict[str, Any]:
        """What decides how hard a split's tasks are: goes into `result.json`."""
        raise NotImplementedError

    def describe(self, split: Split) -> str:
        """The same in words."""
        raise NotImplementedError

    def work(self, split: Split) -> dict[str, int]:
        """What there is to do for a task of a split, by name, where that says more than their number."""
        return {}

    def varies(self, split: Split) -> bool:
        """Whether a split's tasks differ in their shapes, so that a meta-batch of them is a list."""
        return False

    def parts(self, split: Split, ids: Sequence[int]) -> Sequence[str]:
        """To which part of an evaluation each task belongs, by name: its mean is logged too. Empty: there are none."""
        return ()

    def trained_on(self) -> str:
        """What training tasks are drawn from: stated in the `result.json` of every later test."""
        return self.name

    def share_of(self, devices: int) -> int:
        """How many tasks of a meta-batch each of so many devices plays."""
        if self.meta_batch_size % devices:
            raise ConfigError(
                f"meta_batch_size={self.meta_batch_size} is global and must be a multiple of the {devices} devices; "
                f"take {self.meta_batch_size // devices * devices or devices}, say."
            )
        return self.meta_batch_size // devices

    def train_dataloader(self) -> EpisodeLoader:
        rank, world_size = self._rank_and_world_size()
        share = self.share_of(world_size)
        max_steps, steps = self.trainer.max_steps if self.trainer else -1, self.updates_per_epoch
        if max_steps > 0 and max_steps % steps:
            rank_zero_warn(
                f"the last {max_steps % steps} of max_steps={max_steps} steps are not validated, so the best "
                f"checkpoint cannot have them; take a number of steps that the {steps} of an epoch divide."
            )
        repeated = self._repeated_batches

        def ids_of_batch(batch: int) -> Sequence[int]:
            return self.train_ids(batch % repeated if repeated else batch, rank, share)

        return EpisodeLoader(
            self.dataset("train"), ids_of_batch, self._epoch, endless=True, num_workers=self.num_workers
        )

    @property
    def updates_per_epoch(self) -> int:
        """Outer updates in an epoch, which the Trainer may limit."""
        if self.trainer is None:
            return self.steps_per_epoch
        batches = _limited(self._epoch, self.trainer.limit_train_batches)
        return -(-batches // self.trainer.accumulate_grad_batches)

    @property
    def _epoch(self) -> int:
        """Meta-batches in an epoch, before the Trainer limits it.

        It is no longer than the training, so that even a short run is validated and has a best checkpoint.
        """
        if self.trainer is None:
            return self.steps_per_epoch
        max_steps = self.trainer.max_steps
        steps = min(self.steps_per_epoch, max_steps) if max_steps > 0 else self.steps_per_epoch
        return steps * self.trainer.accumulate_grad_batches

    @property
    def _repeated_batches(self) -> int:
        """How many meta-batches `Trainer(overfit_batches=...)` repeats; 0: none, every one is new."""
        overfit = self.trainer.overfit_batches if self.trainer else 0  # type: ignore[attr-defined]
        return _limited(self._epoch, overfit) if overfit else 0

    def val_dataloader(self) -> EpisodeLoader:
        return self.frozen_loader("val", self.val_episodes)

    def test_dataloader(self) -> EpisodeLoader:
        return self.frozen_loader("test", self.test_episodes)

    def predict_dataloader(self) -> EpisodeLoader:
        return self.test_dataloader()

    def frozen_loader(self, split: Split, episodes: int) -> EpisodeLoader:
        """Rank r of W takes the episodes r, r + W, r + 2W, ... below `episodes`: an exact partition."""
        rank, world_size = self._rank_and_world_size()
        mine = range(rank, episodes, world_size)
        size = self.eval_meta_batch_size

        def ids_of_batch(batch: int) -> Sequence[int]:
            return mine[batch * size : (batch + 1) * size]

        return EpisodeLoader(
            self.dataset(split), ids_of_batch, -(-len(mine) // size), endless=False, num_workers=self.num_workers
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _limited(batches: int, limit: int | float) -> int:
    """So many batches, or such a part of them, as the Trainer reads its limits."""
    return max(min(batches, limit) if isinstance(limit, int) else int(batches * limit), 1)


@dataclass
class ShapeOverride:
    """Way, shot and query of one split where they differ from the datamodule's; None keeps the datamodule's."""

    n_way: int | None = None
    k_shot: int | None = None
    n_query: int | None = None


class EpisodicDataModule(TaskDataModule):
    """Streams of training, validation and test episodes. A data set writes `load_source` (and `prepare_data`).

    Args:
        n_way: classes per episode.
        k_shot: support examples per class.
        n_query: query examples per class.
        train, val, test: way, shot and query of one split where they differ, e.g. `--data.train.n_way 60`.
        on_device: hold the data on the accelerator and gather episodes there (needs `num_workers=0`).
        arrivals: training tasks come one after another. None: all are there from the start.
        **kwargs: of `TaskDataModule`, whose tasks are episodes here.
    """

    def __init__(
        self,
        n_way: int = 5,
        k_shot: int = 1,
        n_query: int = 15,
        train: ShapeOverride = ShapeOverride(),  # noqa: B008 - never mutated
        val: ShapeOverride = ShapeOverride(),  # noqa: B008
        test: ShapeOverride = ShapeOverride(),  # noqa: B008
        on_device: bool = False,
        arrivals: Arrivals | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.arrivals = arrivals
        overrides: dict[Split, ShapeOverride] = {"train": train, "val": val, "test": test}
        self.shapes = {
            split: EpisodeShape(
                n_way=n_way if override.n_way is None else override.n_way,
                k_shot=k_shot if override.k_shot is None else override.k_shot,
                n_query=n_query if override.n_query is None else override.n_query,
            )
            for split, override in overrides.items()
        }
        # Which settings a split has to itself: they go before those of all splits.
        self.own_settings: dict[Split, list[str]] = {
            split: [f"data.{split}.{name}" for name, value in vars(override).items() if value is not None]
            for split, override in overrides.items()
        }
        self.n_way, self.on_device = n_way, on_device
        self.sources: dict[Split, TaskSource] = {}
        self.needs: frozenset[Need] = frozenset()  # of the algorithm; set by `setup` where a Trainer has one
        self.test_after_fit = True  # False: there need not be test data for training
        for split, shape in self.shapes.items():
            if min(shape) < 1:
                raise ConfigError(f"{split} episodes are {shape}: n_way, k_shot and n_query must be at least 1.")
        if on_device and self.num_workers:
            raise ConfigError(
                f"on_device=true gathers in the main process, but num_workers={self.num_workers}; set it to 0."
            )

    def load_source(self, split: Split) -> TaskSource:
        """The task distribution of a split. Called once per split and process; raises `DataError`."""
        raise NotImplementedError

    def load_split(self, split: Split) -> TaskSource:
        """What a split's episodes are drawn from: its own task distribution, unless a kind of data has it otherwise."""
        return self.load_source(split)

    def setup(self, stage: str) -> None:
        """Load the splits of a stage. For training all of them, so that what cannot be tested is known before it."""
        if self.trainer:
            self.needs = getattr(self.trainer.lightning_module, "needs", frozenset())
        training: tuple[Split, ...] = ("train", "val", "test") if self.test_after_fit else ("train", "val")
        splits: dict[str, tuple[Split, ...]] = {"fit": training, "validate": ("val",)}
        for split in splits.get(stage, ("test",)):
            if split not in self.sources:
                self.sources[split] = self.load_split(split)
                if self.on_device and self.trainer:
                    self.sources[split] = self.sources[split].to(self.trainer.strategy.root_device)
            try:
                self.check_episodes(split)
            except UserError as error:
                own = ", ".join(self.own_settings[split])
                hint = f" (These episodes have settings of their own: {own}.)" if own else ""
                raise type(error)(f"{split} episodes cannot be drawn: {error}{hint}") from error

    def check_episodes(self, split: Split) -> None:
        """Raise `DataError` or `ConfigError` when a split's episodes cannot be drawn (it is loaded)."""
        if self.arrives(split):
            self.dataset(split)  # which checks its source
        else:
            self.sources[split].check(self.shapes[split])

    def extremes(self, split: Split) -> tuple[EpisodeShape, ...]:
        """The smallest and the largest shape of a split's episodes (after `setup`); one, where all have the same."""
        return (self.shapes[split],)

    def balanced(self, split: Split) -> bool:
        """Whether all classes of an episode have equally many support examples."""
        return True

    def source(self, split: Split) -> TaskSource:
        """What a split's episodes are drawn from (after `setup`)."""
        return self.sources[split]

    def training_inputs(self) -> Tensor:
        """All inputs of meta-training `(E, ...)`, in any stage and without their labels, for a `FittedBackbone`."""
        raise ConfigError(
            f"the backbone takes statistics of all training inputs, but {self.name} draws them anew for each episode; "
            "choose another backbone."
        )

    def dataset(self, split: Split) -> EpisodeDataset:
        """The split's episodes as an indexed collection (after `setup`)."""
        return self.dataset_of(EpisodeDataset, self.source(split), split)

    def dataset_of(self, kind: type[EpisodeDataset], source: TaskSource, split: Split) -> EpisodeDataset:
        """Of a source that is made for a split."""
        if self.arrives(split):
            assert self.arrivals is not None
            source = ArrivingSource(source, self.arrivals, self.meta_batch_size)
        return kind(source, self.shapes[split], self.seed, split, "stream" in self.needs)

    def arrives(self, split: Split) -> bool:
        """Whether the tasks of a split come one after another."""
        if split != "train" or self.arrivals is None:
            return False
        if self.varies(split):
            raise ConfigError("tasks that arrive are of one shape; leave data.arrivals out, or data.variable.")
        return True

    def trained_on(self) -> str:
        return self.name + self.in_turn

    @property
    def in_turn(self) -> str:
        """How training tasks come, in words, where they come one after another."""
        return f", task after task ({self.arrivals!r})" if self.arrivals else ""

    def facts(self, split: Split) -> dict[str, Any]:
        return self.shapes[split]._asdict()

    def describe(self, split: Split) -> str:
        return str(self.shapes[split])
