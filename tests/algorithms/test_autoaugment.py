"""AutoAugment: the chances of its policies, and REINFORCE against the enumerated expectation."""

from itertools import product

import pytest
import torch

from lightning_meta.algorithms import AutoAugment
from lightning_meta.algorithms.bilevel.autoaugment import POLICY, advantage
from lightning_meta.core import Progress
from lightning_meta.core.augment import LARGEST
from lightning_meta.datamodules import Trial
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import first_trials, held_out, network, trial_of
from tests.modules.test_episodic import trainer

NEEDS = {"AutoAugment": dict(truncation=2, unroll_steps=2, evaluate="retrained")}
BILEVEL = {"autoaugment": lambda **kw: AutoAugment(network(), 4, **kw)}


def test_policies_are_drawn_with_their_probabilities() -> None:
    """Frequencies of 2,000 trainings, within four standard deviations; a training always draws the same."""
    torch.manual_seed(0)
    module = AutoAugment(network(), 4, levels=3).double()
    with torch.no_grad():
        module.scores_KL.normal_()
    trial = trial_of(held_out(batch_size=1), [i * 2**40 for i in range(2000)])
    policy = module.begin(trial).params[POLICY]
    assert torch.equal(policy.sum(2), torch.ones(2000, 8).double()) and {*policy.unique().tolist()} == {0.0, 1.0}
    p = module.scores_KL.detach().softmax(1)
    assert ((policy.mean(0) - p).abs() < 4 * (p * (1 - p) / 2000).sqrt()).all()
    assert torch.equal(module.begin(trial).params[POLICY], policy)


def test_reinforce_summed_over_policies_is_the_gradient_of_the_expected_reward() -> None:
    """All pairs of policies of two operations with two levels; the baseline is what the other one got."""
    scores = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    policies = [torch.eye(2).double()[list(levels)] for levels in product(range(2), repeat=2)]
    rewards = [0.3, -1.0, 2.0, 0.7]

    def chance(policy: torch.Tensor) -> torch.Tensor:
        return (policy * scores.log_softmax(1)).sum().exp()

    expected = torch.autograd.grad(sum(chance(p) * r for p, r in zip(policies, rewards, strict=True)), scores)[0]
    found = torch.zeros(2, 2).double()
    for (p, r), (q, s) in product(zip(policies, rewards, strict=True), repeat=2):
        reward_T = torch.tensor([r, s], dtype=torch.float64)
        log_p_T = torch.stack([(policy * scores.log_softmax(1)).sum() for policy in (p, q)])
        (gradient,) = torch.autograd.grad((advantage(reward_T, reward_T) * log_p_T).mean(), scores)
        found += (chance(p) * chance(q)).detach() * gradient
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_baseline_is_over_the_trainings_of_all_processes() -> None:
    rewards = torch.tensor([0.2, 0.9, 0.4, 0.1])
    whole = advantage(rewards, rewards)
    assert whole[1].item() == pytest.approx(0.9 - (0.2 + 0.4 + 0.1) / 3)
    torch.testing.assert_close(torch.cat([advantage(part, rewards) for part in rewards.split(2)]), whole)


def test_the_outer_gradient_is_that_of_accuracies_and_policies() -> None:
    """From what each training was, by hand."""
    torch.manual_seed(0)
    module = BILEVEL["autoaugment"]().double().train()
    trial = first_trials(held_out(meta_batch_size=4, **NEEDS["AutoAugment"]))
    with torch.no_grad():
        module.scores_KL.normal_()
    values, _ = module.measure(trial)
    values["loss"].mean().backward()
    assert isinstance(module.carried, Progress)
    accuracy, policy = values["acc"], module.carried.params[POLICY]
    gains = torch.stack([accuracy[t] - accuracy[[s for s in range(4) if s != t]].mean() for t in range(4)])
    slope = policy - module.scores_KL.detach().softmax(1)  # of the logarithm of a chance
    torch.testing.assert_close(module.scores_KL.grad, -(gains[:, None, None] * slope).mean(0))


def test_it_prefers_what_scores_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the accuracy is how strong shift_x is and how weak rotate is, these come to their ends."""
    module = AutoAugment(network(), 4, levels=3, optimizer=lambda p: torch.optim.Adam(p, lr=0.1))

    def score(self: AutoAugment, tasks: Trial) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        self.trials, self.carried = tasks, self.begin(tasks)
        strengths = self.carried.params[POLICY] @ torch.tensor([0.0, 0.5, 1.0])
        places = dict(zip(LARGEST, strengths.unbind(1), strict=True))
        return {"loss": torch.zeros(len(tasks.key)), "acc": places["shift_x"] - places["rotate"]}, {}

    monkeypatch.setattr("lightning_meta.modules.bilevel.BilevelModule.measure", score)
    data = held_out(meta_batch_size=8, **NEEDS["AutoAugment"])
    trainer(max_steps=60, enable_checkpointing=False, limit_val_batches=0).fit(module, datamodule=data)
    found = {name: m / LARGEST[name] for name, m in zip(LARGEST, module.magnitudes.tolist(), strict=True)}
    assert found["shift_x"] == max(found.values()) > 0.8 and found["rotate"] == min(found.values()) < 0.2


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="meta_batch_size=1, truncation=2"):
        trainer().fit(BILEVEL["autoaugment"](), datamodule=held_out(meta_batch_size=1, **NEEDS["AutoAugment"]))
    with pytest.raises(ConfigError, match="levels=1 of strength must be at least 2"):
        AutoAugment(network(), 4, levels=1)
