"""Regularized evolution: a search played by hand, and its settings."""

from itertools import pairwise

import pytest
import torch

from lightning_meta.algorithms import RegularizedEvolution
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import cell, trainer, trial_of, whole_trainings

BILEVEL = {
    "regularized-evolution": lambda **kw: RegularizedEvolution(cell(), 4, population=4, sample=2, **kw),
    "regularized-evolution-motif": lambda **kw: RegularizedEvolution(
        cell(), 4, population=4, sample=2, mutation="motif", **kw
    ),
}


def test_the_oldest_dies_though_it_is_the_best_and_stays_what_was_found() -> None:
    """Of a population of two that are drawn, the first is the best of all; it dies when the third is born."""
    module = RegularizedEvolution(cell(), 4, population=2, sample=2).double().train()
    data, cells = whole_trainings(meta_batch_size=1), []
    for update, reward in enumerate((0.9, 0.1, 0.2, 0.3, 0.15)):
        module.measure(trial_of(data, [update]))
        cells.append(module.judged_cells[0][0].tolist())
        if update >= 2:
            differences = [sum(a != b for a, b in zip(cells[-1], one, strict=True)) for one in cells[-3:-1]]
            assert 1 in differences, "a child of one of the two before it"
        module.judged_cells = module.judged_cells[0], torch.tensor([reward])
        module.settle()
        alive = min(update + 1, 2)
        assert sorted(module.cells_PE[:alive].tolist()) == sorted(cells[-2:])
        assert module.operations().sum(1).tolist() == pytest.approx([1, 1, 1])
    assert module.chosen().tolist() == cells[0]
    assert sorted(module.rewards_P.tolist()) == pytest.approx([0.15, 0.3])


def test_with_a_sample_of_the_whole_population_the_best_is_the_parent() -> None:
    """Dice with replacement: of 60 draws from two, the better one is missed with a chance of 2^-60."""
    module = RegularizedEvolution(cell(), 4, population=60, sample=60).train()
    module.rewards_P.copy_(torch.linspace(0, 1, 60))
    best = torch.tensor([1, 2, 0])
    module.cells_PE[30:] = best
    module.born.fill_(60)
    children = module.proposed(60 + torch.arange(20))
    assert ((children != best).sum(1) == 1).all() and len(children.unique(dim=0)) > 5


def test_a_search_climbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cell is as good as it has pools, the population has more of them than cells that are drawn."""
    module = RegularizedEvolution(cell(), 4, population=16, sample=8)
    pool = module.cell.operations.index("pool")
    monkeypatch.setattr(RegularizedEvolution, "train_child", lambda self, mixture, progress, support: progress)
    monkeypatch.setattr(
        "lightning_meta.modules.architecture_search.gather",
        lambda rewards: [(module.proposed(module.born + torch.arange(len(rewards))) == pool).double().mean(1)],
    )
    trainer(max_steps=120, enable_checkpointing=False, limit_val_batches=0).fit(
        module, datamodule=whole_trainings(meta_batch_size=1)
    )
    shares = torch.stack(module.path)[:, :, pool].mean(1)
    drawn = module.cell.one_hot(module.cell.cells_KE)[..., pool].mean()
    assert drawn < 0.25 and shares[40:].mean() > 2 * drawn  # two in three changes are for the worse
    assert module.cell.named(module.chosen()) == "pool|pool|pool"
    assert all((after - before).abs().max() <= 1 / 16 for before, after in pairwise(module.path[16:]))


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"population=3 is smaller than the sample=4 .* raise population"):
        RegularizedEvolution(cell(), 4, population=3, sample=4)
    with pytest.raises(ConfigError, match="mutation='swap' must be edge or motif"):
        RegularizedEvolution(cell(), 4, mutation="swap")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="population=5 is not filled by meta_batch_size=2"):
        trainer().fit(RegularizedEvolution(cell(), 4, population=5, sample=2), datamodule=whole_trainings())
