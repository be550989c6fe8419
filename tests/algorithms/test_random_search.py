"""Random search, and what searches that train every cell from its beginning have in common."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_meta.algorithms import RandomSearch
from lightning_meta.core import Momentum
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import cell, held_out, trainer, trial_of, whole_trainings
from tests.backbones.test_cell import plain

BILEVEL = {"random-search": lambda **kw: RandomSearch(cell(), 4, **kw)}


def test_a_reward_is_the_accuracy_of_the_network_of_a_cell_trained_by_torch() -> None:
    module = RandomSearch(cell(), 4, inner_optimizer=Momentum).double().train()
    trial = trial_of(whole_trainings(support_per_class=3, held_out_per_class=4, unroll_steps=3, truncation=3), [0, 1])
    start = module.begin(trial).params
    module.measure(trial)
    cells, rewards = module.judged_cells
    assert not torch.equal(cells[0], cells[1])
    for task, one in enumerate(cells):
        module.network.load_state_dict({name: value[task] for name, value in start.items()}, strict=False)
        network = nn.Sequential(plain(module.cell, module.cell.named(one).split("|")), module.network.head)
        optimizer = torch.optim.SGD(network.requires_grad_(True).parameters(), lr=0.1, momentum=0.9)
        for x, y in zip(trial.support.x[task], trial.support.y[task], strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
        logits = network(trial.query.x[task])
        assert rewards[task].item() == pytest.approx((logits.argmax(1) == trial.query.y[task]).double().mean().item())
        mixture = module.cell.one_hot(one)
        trained = {name: value[task] for name, value in module.carried.params.items()}
        torch.testing.assert_close(module.logits_of(mixture, trained, trial.query.x[task]), logits.detach())


def test_the_best_of_all_is_found() -> None:
    module = RandomSearch(cell(), 4).double().train()
    data, seen = whole_trainings(), []
    for update, rewards in enumerate(([0.2, 0.6], [0.5, 0.1], [0.6, 0.3])):  # of equal ones, the first
        module.measure(trial_of(data, [2 * update, 2 * update + 1]))
        module.judged_cells = module.judged_cells[0], torch.tensor(rewards)
        seen += module.judged_cells[0].tolist()
        module.settle()
    assert module.chosen().tolist() == seen[1] and module.best_reward == pytest.approx(0.6)
    assert module.born == 6 and len({*map(tuple, seen)}) > 3
    together = module.proposed(torch.arange(6)).tolist()
    assert together == seen, "of two at a time or six"


def test_trainings_that_go_on_are_refused() -> None:
    for data in (held_out(), whole_trainings(truncation=1), whole_trainings(evaluate="carried")):
        with pytest.raises(ConfigError, match=r"trains cells from their beginning .* data.evaluate to retrained"):
            trainer().fit(RandomSearch(cell(), 4), datamodule=data)


def test_a_search_is_logged_and_what_it_found_is_tested(tmp_path: Any) -> None:
    module = RandomSearch(cell(), 4)
    run = trainer(default_root_dir=tmp_path, log_every_n_steps=1, enable_checkpointing=False, max_steps=3)
    run.fit(module, datamodule=whole_trainings())
    assert {"train/acc", "train/loss", "train/parameters"} <= run.logged_metrics.keys()
    (tested,) = run.test(module, datamodule=whole_trainings(), verbose=False)
    assert 0 <= tested["test/acc"] <= 1 and len(module.path) == 3
