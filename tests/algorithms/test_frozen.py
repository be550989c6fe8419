"""Frozen parameters (`requires_grad_(False)`) are moved neither by the outer update nor by the inner loop."""

import pytest
import torch

from lightning_meta.algorithms import ANIL, BOIL, MAML, MAMLPlusPlus
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.algorithms.cases import CASES
from tests.conftest import Make, autograd_meta_gradient, blobs, conv4, meta_gradient, smooth

FAMILY = ("maml", "fomaml", "anil", "boil", "meta-sgd", "meta-curvature", "kfo", "meta_lstm", "reptile", "imaml")
FAMILY += ("maml-learned-adam", "maml-inductive", "maml_plus_plus", "mutual_exclusiveness")


@pytest.mark.parametrize("make", [CASES[name] for name in FAMILY], ids=FAMILY)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_inner_loop_leaves_frozen_parameters_alone(make: Make, training: bool, episodes: Episode) -> None:
    module = make().double().train(training)
    frozen = dict(module.learner[0].blocks[0][0].named_parameters(prefix="0.blocks.0.0"))
    assert [*frozen] == ["0.blocks.0.0.weight"]
    frozen["0.blocks.0.0.weight"].requires_grad_(False)
    adapted = module.adapt_tasks(episodes.support)
    for phi in getattr(adapted, "phis", [getattr(adapted, "phi", adapted)]):
        for name, kernel in frozen.items():
            torch.testing.assert_close(phi.get(name, kernel), kernel.expand_as(phi.get(name, kernel)), rtol=0, atol=0)
    assert set(module.theta()) <= set(phi), "the others are adapted"
    if training:
        assert not set(meta_gradient(module, episodes)) & {f"learner.{name}" for name in frozen}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_frozen_backbone_leaves_the_head_to_the_inner_loop(mode: str, episodes: Episode) -> None:
    """The meta-gradient is that of plain autograd where only the head takes steps."""
    module = MAML(smooth(conv4()), n_way=3, inner_lr=0.1, inner_steps=3, task_mode=mode).double()
    expected = autograd_meta_gradient(module, episodes, 3, lambda name, step: 0.1, prefix="1.")
    module.learner[0].requires_grad_(False)
    found = meta_gradient(module, episodes)
    assert set(found) == {"learner.1.weight", "learner.1.bias"}
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=1e-9, atol=1e-13)


def test_frozen_normalisation_keeps_its_own_weights_under_maml_plus_plus(episodes: Episode) -> None:
    """Pre-trained ones, say: they are not replaced by per-step ones, which would be another network."""
    backbone = conv4()
    for layer in backbone.blocks:
        torch.nn.init.uniform_(layer[1].weight, 0.5, 2)
    plain = MAML(backbone, n_way=3, eval_inner_steps=0).double().eval()
    backbone.requires_grad_(False)
    module = MAMLPlusPlus(backbone, n_way=3, eval_inner_steps=0).double().eval()
    module.learner[1].load_state_dict(plain.learner[1].state_dict())
    torch.testing.assert_close(module.play(episodes).preds, plain.play(episodes).preds)
    assert set(module.theta()) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(("algorithm", "part"), [(MAML, slice(2)), (ANIL, 1), (BOIL, 0)])
def test_an_inner_loop_without_anything_to_move_is_refused(algorithm: type[MAML], part: int | slice) -> None:
    module = algorithm(conv4(), n_way=3)
    module.learner[part].requires_grad_(False)
    data = blobs()
    with pytest.raises(ConfigError, match=r"all parameters that the inner loop .* are frozen"):
        module.check_task(data.shapes["train"], "train")
