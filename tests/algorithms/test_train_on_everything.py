"""Train on everything: no adaptation in training, that of MAML in evaluation."""

import torch
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, TrainOnEverything
from lightning_meta.core import Episode
from tests.conftest import Make, conv4, meta_gradient

CASES: dict[str, Make] = {"train_on_everything": lambda: TrainOnEverything(conv4(), n_way=3, inner_lr=0.1)}


def test_the_gradient_is_that_of_one_network_on_all_tasks(episodes: Episode) -> None:
    """Without normalisation, which would be over the queries of a task."""
    module = TrainOnEverything(conv4(None), n_way=3).double()
    found = meta_gradient(module, episodes)
    x, y = (leaf.flatten(0, 1) for leaf in episodes.query)
    names, params = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(F.cross_entropy(module.learner(x), y), params)
    torch.testing.assert_close(found, dict(zip(names, expected, strict=True)), rtol=1e-9, atol=1e-12)


def test_it_is_tested_as_maml(episodes: Episode) -> None:
    module = TrainOnEverything(conv4(), n_way=3, inner_lr=0.2, eval_inner_steps=2).double().eval()
    maml = MAML(conv4(), n_way=3, inner_lr=0.2, inner_steps=2).double().eval()
    maml.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.play(episodes).preds, maml.play(episodes).preds)
