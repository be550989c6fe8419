"""MAML and its family take any inner optimizer, and where a gradient flows through inner steps one that learns."""

from functools import partial

import pytest
import torch

from lightning_meta.algorithms import (
    ANIL,
    BOIL,
    IMAML,
    MAML,
    MRMAML,
    MAMLPlusPlus,
    MetaSGD,
    MutualExclusivenessMAML,
    Reptile,
)
from lightning_meta.algorithms.optimizers.meta_lstm import GatedUpdate
from lightning_meta.core import Adam, Episode
from lightning_meta.core.inner_optimizer import module_key
from lightning_meta.errors import ConfigError
from lightning_meta.modules.learned_rates import LearnedRates
from tests.conftest import conv4, meta_gradient

FAMILY = [MAML, ANIL, BOIL, MRMAML, MAMLPlusPlus, partial(MutualExclusivenessMAML, ratio=0.1)]
LEARNED = partial(LearnedRates, optimizer=Adam, weight_decay=0.01)


def make(family: type[MAML], **settings) -> MAML:
    torch.manual_seed(0)
    return family(conv4(), n_way=3, inner_lr=0.05, inner_steps=2, **settings).double()


@pytest.mark.parametrize("family", FAMILY)
def test_what_is_adapted_has_rates_and_decays_that_learn(family: type[MAML], episodes: Episode) -> None:
    module = make(family, inner_optimizer=LEARNED)
    optimizer, gradient = module.inner_optimizer, meta_gradient(module, episodes)
    moved = set(module.theta()) - set(module.norm.at(0) if isinstance(module, MAMLPlusPlus) else ())
    for table in ("rates", "decays"):
        assert set(getattr(optimizer, table)) == {module_key(name) for name in moved}
        slopes = [gradient[f"inner_optimizer.{table}.{module_key(name)}"].abs() for name in moved]
        assert max(slopes) > 1e-4
    assert optimizer.optimizer == Adam(0.05)


@pytest.mark.parametrize("family", FAMILY)
def test_so_has_any_other_learned_optimizer(family: type[MAML], episodes: Episode) -> None:
    gradient = meta_gradient(make(family, inner_optimizer=GatedUpdate), episodes)
    assert gradient["inner_optimizer.gates.bias"].abs().min() > 1e-6


def test_a_rate_for_each_element_makes_maml_meta_sgd(episodes: Episode) -> None:
    maml, meta_sgd = make(MAML, inner_optimizer=partial(LearnedRates, per="element")), make(MetaSGD)
    assert set(maml.state_dict()) == set(meta_sgd.state_dict())
    torch.testing.assert_close(meta_gradient(maml, episodes), meta_gradient(meta_sgd, episodes), rtol=0, atol=0)


@pytest.mark.parametrize("family", [Reptile, IMAML])
def test_nothing_learns_where_no_gradient_flows_through_inner_steps(family: type[MAML]) -> None:
    assert make(family, inner_optimizer=Adam).inner_optimizer == Adam(0.05)
    with pytest.raises(ConfigError, match=f"{family.__name__} takes no gradient through its inner steps.*LearnedRates"):
        make(family, inner_optimizer=LEARNED)
