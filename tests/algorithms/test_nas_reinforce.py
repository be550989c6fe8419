"""Search by REINFORCE: the gradient by hand, and that it finds what is rewarded."""

import pytest
import torch

from lightning_meta.algorithms import NASReinforce
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import cell, trainer, trial_of, whole_trainings

BILEVEL = {"nas-reinforce": lambda **kw: NASReinforce(cell(), 4, **kw)}


def test_the_gradient_is_that_of_rewards_less_those_of_the_others() -> None:
    torch.manual_seed(0)
    module = NASReinforce(cell(), 4).double().train()
    with torch.no_grad():
        module.logits_EO.normal_()
    module.measure(trial_of(whole_trainings(support_per_class=3, held_out_per_class=4), [0, 1, 2]))[0][
        "loss"
    ].mean().backward()
    cells, rewards = module.judged_cells
    assert len({*rewards.tolist()}) > 1
    theta = module.logits_EO.detach().clone().requires_grad_()
    all_of = torch.stack([theta.log_softmax(1)[range(3), one].sum() for one in module.cell.cells_KE]).logsumexp(0)
    total = torch.zeros(()).double()
    for place, one in enumerate(cells):
        others = torch.cat([rewards[:place], rewards[place + 1 :]]).mean()
        total = total - (rewards[place] - others) * (theta.log_softmax(1)[range(3), one].sum() - all_of) / 3
    (expected,) = torch.autograd.grad(total, theta)
    torch.testing.assert_close(module.logits_EO.grad, expected, rtol=1e-9, atol=1e-12)


def test_what_is_rewarded_becomes_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell counts as good as it has pools; the policy comes to them, and the share of operations says so."""
    module = NASReinforce(cell(), 4, optimizer=lambda params: torch.optim.Adam(params, lr=0.2))
    pool = module.cell.operations.index("pool")
    monkeypatch.setattr(NASReinforce, "train_child", lambda self, mixture, progress, support: progress)
    monkeypatch.setattr(
        "lightning_meta.modules.architecture_search.gather",
        lambda rewards: [(module.proposed(module.born + torch.arange(len(rewards))) == pool).double().mean(1)],
    )
    before = module.operations()[:, pool].mean().item()
    run = trainer(max_steps=30, enable_checkpointing=False, limit_val_batches=0)
    run.fit(module, datamodule=whole_trainings(meta_batch_size=8))
    assert before < 0.3 and module.operations()[:, pool].min() > 0.8
    torch.testing.assert_close(module.operations().sum(1), torch.ones(3))
    assert module.cell.named(module.chosen()) == "pool|pool|pool" and module.born == 240


def test_a_cell_alone_has_no_baseline() -> None:
    with pytest.raises(ConfigError, match=r"set data.meta_batch_size to 2 or more"):
        trainer().fit(NASReinforce(cell(), 4), datamodule=whole_trainings(meta_batch_size=1))
