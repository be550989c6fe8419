"""CAVIA (cavia) against a network that has the context beside its input, written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import CAVIA
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMSE
from tests.conftest import Make, conv4, meta_gradient, random_functions

CASES: dict[str, Make] = {"cavia": lambda: CAVIA(conv4(), n_way=3, context=5, inner_lr=0.5, inner_steps=2)}
LR, STEPS, CONTEXT = 0.3, 2, 4


def on_functions(**overrides) -> CAVIA:
    torch.manual_seed(0)
    settings = dict(n_way=1, context=CONTEXT, layer="layers.0", effect="shift", inner_lr=LR, inner_steps=STEPS)
    backbone = MLP(hidden=[7, 6], activation="tanh")
    return CAVIA(backbone, metric=EpisodicMSE(), loss_fn=F.mse_loss, **(settings | overrides)).double()


VARIANTS: dict[str, Make] = {
    "cavia-shift": lambda: CAVIA(conv4(), n_way=3, context=5, layer="blocks.1.0", effect="shift", inner_steps=2),
}


def by_concatenation(module: CAVIA, tasks: Episode, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Predictions and mean loss of an MLP whose input is x and the context, side by side, by torch.autograd."""
    first, _, second, _ = module.backbone.layers
    weight = torch.cat([first.layer.weight, first.modulate.weight], dim=1)  # (7, 1 + CONTEXT)

    def predict(context: Tensor, x: Tensor) -> Tensor:
        hidden = F.linear(torch.cat([x, context.expand(len(x), -1)], dim=1), weight, first.layer.bias).tanh()
        return module.learner[1](second(hidden).tanh())

    preds = []
    for x, y, qx in zip(*tasks.support, tasks.query.x, strict=True):
        context = torch.zeros(CONTEXT, dtype=torch.float64, requires_grad=True)
        for _ in range(STEPS):
            loss = F.mse_loss(predict(context, x), y)
            context = context - LR * torch.autograd.grad(loss, context, create_graph=create_graph)[0]
        preds.append(predict(context, qx))
    return torch.stack(preds), F.mse_loss(torch.stack(preds), tasks.query.y)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
def test_a_shift_is_the_context_beside_the_input(mode: str, first_order: bool) -> None:
    module, tasks = on_functions(task_mode=mode, first_order=first_order), random_functions()
    gradient, preds = meta_gradient(module, tasks), module.play(tasks).preds
    expected, loss = by_concatenation(module, tasks, create_graph=not first_order)
    torch.testing.assert_close(preds, expected, rtol=1e-10, atol=1e-12)
    names, params = zip(*module.named_parameters(), strict=True)
    truth = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
    torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-12)
    assert truth["learner.0.layers.0.modulate.weight"].abs().max() > 1e-4


def test_only_the_context_moves(episodes: Episode) -> None:
    module = CAVIA(conv4(), n_way=3, context=5).double()
    phi = module.adapt(Batch(episodes.support.x[0], episodes.support.y[0]))
    assert {name: value.shape for name, value in phi.items()} == {"0.blocks.2.1.context": (5,)}
    assert phi["0.blocks.2.1.context"].abs().min() > 1e-6
    assert not module.theta()["0.blocks.2.1.context"].any()
    trained = {name for name, _ in module.named_parameters()}
    assert not any("context" in name for name in trained)
    assert {"learner.0.blocks.2.1.modulate.weight", "learner.0.blocks.2.1.layer.weight"} < trained


@torch.no_grad()
def test_film_scales_and_shifts_the_third_block_s_channels(episodes: Episode) -> None:
    module, x = CAVIA(conv4(), n_way=3, context=5).double(), episodes.support.x[0]
    context = torch.randn(5, dtype=torch.float64)
    found = torch.func.functional_call(module.learner, {module.place: context}, (x,))
    blocks, film = module.backbone.blocks, module.backbone.blocks[2][1]
    values = film.modulate.weight @ context + film.modulate.bias
    hidden = blocks[2][0](blocks[1](blocks[0](x)))
    hidden = F.batch_norm(hidden, None, None, training=True) * values[:6, None, None] + values[6:, None, None]
    hidden = F.max_pool2d(hidden.relu(), 2)
    torch.testing.assert_close(found, module.learner[1](blocks[3](hidden).flatten(1)), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layer", ["blocks.9.1", "blocks.2.2", ""])
def test_a_place_without_a_layer_is_refused(layer: str) -> None:
    with pytest.raises(ConfigError, match=rf"layer={layer} .*blocks\.2\.1"):
        CAVIA(conv4(), n_way=3, layer=layer)
