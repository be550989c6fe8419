"""Weights that are not learned: what they are, and a training without outer variables."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import FixedWeights
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import held_out, network
from tests.modules.test_episodic import trainer

BILEVEL = {"fixed-weights": lambda **kw: FixedWeights(network(), 4, **kw)}


def test_equal_weights_are_ordinary_training() -> None:
    """The same steps by torch.optim, from the same weights and on the same batches."""
    module, data = FixedWeights(network(), 4, inner_lr=0.5), held_out()
    trainer(max_steps=5).fit(module, datamodule=data)
    batches = [data.dataset("train").__getitems__([step]) for step in range(5)]
    plain = deepcopy(module.network).requires_grad_(True)
    plain.load_state_dict({name: value[0] for name, value in module.begin(batches[0]).params.items()})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(batch.support.x[0, 0]), batch.support.y[0, 0]).backward()
        optimizer.step()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(module.carried.params[name][0], value.detach(), rtol=1e-4, atol=1e-6)


def test_balanced_weights_make_classes_count_alike() -> None:
    module, data = FixedWeights(network(), 4, weights="balanced"), held_out(imbalance=5.0, flip=0.0)
    trainer(max_steps=1).fit(module, datamodule=data)
    assert module.counts_C.tolist() == [5, 3, 2, 1]
    weights = {name: value[0] for name, value in module.carried.params.items()}
    x, y = torch.rand(11, 256), data.given_labels
    losses = F.cross_entropy(module.logits(weights, x), y, reduction="none")
    expected = torch.stack([losses[y == c].mean() for c in range(4)]).mean()
    torch.testing.assert_close(module.inner_loss(weights, Batch(x, y)), expected)


def test_an_unknown_scheme_is_told() -> None:
    with pytest.raises(ConfigError, match="weights='even' must be equal, balanced or random"):
        FixedWeights(network(), 4, weights="even")  # type: ignore[arg-type]
