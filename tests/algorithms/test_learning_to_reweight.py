"""Learning to reweight: the weights by hand, and by a second way."""

from typing import Any

import pytest
import torch

from lightning_meta.algorithms import LearningToReweight
from lightning_meta.algorithms.bilevel.learning_to_reweight import Rectified, gains
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Momentum
from lightning_meta.datamodules import Trial
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import held_out, network
from tests.modules.test_episodic import trainer

BILEVEL = {"learning-to-reweight": lambda **kw: LearningToReweight(network(), 4, batch_size=6, **kw)}


def test_a_flipped_label_gets_the_weight_zero() -> None:
    """Two examples with the same input 1 and both labels, a linear network with weights 0; the held-out one says 1.

    By hand: gradients are +-1/2 in two weights and two biases, so their products are +-1, and the step size is 0.1.
    """
    module = LearningToReweight(MLP(1, []), 2, batch_size=2, inner_lr=0.1).double()
    one = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    support, query = Batch(one, torch.tensor([[[1, 0]]])), Batch(one[:, :, :1, :][:, 0], torch.tensor([[1]]))
    trial = Trial(torch.zeros(1).long(), torch.zeros(1).long(), support, torch.ones(1, 1, 2).bool(), query,
                  torch.zeros(1, 1).long())  # fmt: skip
    start = module.begin(trial)
    module.carried = start._replace(params={name: torch.zeros_like(value) for name, value in start.params.items()})
    trial = trial._replace(start=torch.ones(1).long())  # goes on from there
    module.measure(trial)[0]["loss"].sum().backward()
    torch.testing.assert_close(module.weights_B.grad, torch.tensor([-0.1, 0.1]).double())
    Rectified([module.weights_B]).step()
    assert module.weights_B.tolist() == [1, 0]


@pytest.mark.parametrize("settings", [{}, {"inner_optimizer": Momentum, "inner_lr": 0.3}], ids=["sgd", "momentum"])
def test_the_virtual_step_and_the_forward_mode_product_agree(settings: dict[str, Any]) -> None:
    module, data = LearningToReweight(network(), 4, batch_size=6, **settings).double(), held_out()
    data.setup("fit")
    trial = data.dataset("train").__getitems__([0])
    trial = trial._replace(support=Batch(trial.support.x.double(), trial.support.y),
                           query=Batch(trial.query.x.double(), trial.query.y))  # fmt: skip
    module.measure(trial)[0]["loss"].sum().backward()
    weights = {name: value[0] for name, value in module.carried.params.items()}
    support, query = Batch(*(part[0, 0] for part in trial.support)), Batch(*(part[0] for part in trial.query))
    expected = gains(lambda w: module.losses(w, support), weights, lambda w: module.query_loss(w, query).loss)
    torch.testing.assert_close(module.weights_B.grad, -module.inner_optimizer.lr * expected, rtol=1e-9, atol=1e-14)


def test_where_nothing_helps_nothing_counts() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    weights.grad = torch.tensor([1.0, 0.0, 2.0])
    Rectified([weights]).step()
    assert weights.tolist() == [0, 0, 0]


def test_weights_belong_to_one_batch() -> None:
    for data, message in (
        (held_out(batch_size=7), r"batch_size=6 examples, but a batch of Blobs has 7; set model.batch_size to 7"),
        (held_out(truncation=2), r"truncation=2 steps in an update; set both to 1"),
        (held_out(meta_batch_size=2), r"meta_batch_size=2 trainings"),
        (held_out(unroll_steps=4, evaluate="retrained"), "set data.evaluate to carried"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer(max_steps=1).fit(LearningToReweight(network(), 4, batch_size=6), datamodule=data)
    with pytest.raises(ConfigError, match="outer update is LearningToReweight's own"):
        LearningToReweight(network(), 4, optimizer=torch.optim.Adam)
