"""PBA: who copies whom, what is copied, and how magnitudes are explored."""

import numpy as np
import pytest
import torch

from lightning_meta.algorithms import PBA
from lightning_meta.algorithms.bilevel.pba import MAGNITUDES, winners
from lightning_meta.compat import tree_leaves, tree_map
from lightning_meta.core import Momentum
from lightning_meta.core.augment import LARGEST
from lightning_meta.core.sampling import episode_keys
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import held_out, network, trial_of
from tests.modules.test_episodic import trainer

NEEDS = {"PBA": dict(meta_batch_size=4)}
BILEVEL = {"pba": lambda **kw: PBA(network(), 4, **({"interval": 2} | kw))}


def test_the_worst_quarter_copies_the_best() -> None:
    losses = torch.tensor([0.5, 0.1, 0.9, 0.4, 0.3, 0.8, 0.2, 0.7])
    assert winners(losses).tolist() == [0, 1, 1, 3, 4, 6, 6, 7]
    assert winners(torch.tensor([3.0, 2.0, 1.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("interval", [1, 2])
def test_weights_states_and_magnitudes_are_copied(interval: int) -> None:
    """What the same steps lead to without an exploit, with the worst of four in the place of the best."""
    torch.manual_seed(0)
    data = held_out(meta_batch_size=4, truncation=2)
    modules = [PBA(network(), 4, interval=i, inner_optimizer=Momentum).double().train() for i in (interval, 100)]
    modules[1].load_state_dict(modules[0].state_dict())
    for segment in range(interval):
        trial = trial_of(data, [*data.train_ids(segment, 0, 4)])
        for module in modules:
            module.measure(trial)
            module.settle()
    copied, plain = (module.carried for module in modules)
    losses = modules[1].losses_T
    assert losses is not None
    source = winners(losses)
    (loser,) = (source != torch.arange(4)).nonzero()[:, 0].tolist()
    assert loser == losses.argmax() and source[loser] == losses.argmin()
    magnitudes, before = copied.params.pop(MAGNITUDES), plain.params.pop(MAGNITUDES)
    expected = tree_map(lambda leaf: leaf[source], plain)
    expected.state.pop(MAGNITUDES), copied.state.pop(MAGNITUDES)
    for found, wanted in zip(tree_leaves(copied), tree_leaves(expected), strict=True):
        assert torch.equal(found, wanted)
    kept = torch.arange(4) != loser
    assert torch.equal(magnitudes[kept], before[kept])
    assert not torch.equal(magnitudes[loser], before[source[loser]])


def test_exploring_moves_magnitudes_or_draws_them_anew() -> None:
    """Of 10,000: one in five is uniform, the others are within 0.3 of where they were, and all are in [0, 1]."""
    module = PBA(network(), 4, resample=0.2)
    before = torch.full((10_000, 8), 0.9)
    after = module.explored(before, episode_keys(0, 0, np.arange(10_000)))
    assert after.min() >= 0 and after.max() <= 1
    # Beyond 0.3 below are draws anew alone: a uniform number is there with chance 0.6.
    assert (after < 0.6).float().mean().item() == pytest.approx(0.2 * 0.6, abs=0.005)
    # At 1 are the moves that were cut: those by more than 0.1 of +-0.3.
    assert (after == 1).float().mean().item() == pytest.approx(0.8 / 3, abs=0.005)


def test_the_population_learns_and_is_judged() -> None:
    torch.manual_seed(0)
    module, data = PBA(network(), 4, interval=1), held_out(meta_batch_size=4, flip=0.0)
    run = trainer(max_steps=6, enable_checkpointing=False, log_every_n_steps=1)
    run.fit(module, datamodule=data)
    assert {f"train/magnitude_{name}" for name in LARGEST} <= run.logged_metrics.keys()
    (tested,) = run.test(module, datamodule=data, verbose=False)
    assert 0 <= tested["test/acc"] <= 1 and module.magnitudes.shape == (8,)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="meta_batch_size=2 must be at least 4"):
        trainer().fit(PBA(network(), 4), datamodule=held_out(meta_batch_size=2))
    with pytest.raises(ConfigError, match=r"resample=1.5 must be a probability"):
        PBA(network(), 4, resample=1.5)
