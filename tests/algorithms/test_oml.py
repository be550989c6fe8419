"""OML learns a head in a stream of classes: what moves, what is forgotten, and that no class is told by its place."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import OML
from lightning_meta.backbones import Conv4
from lightning_meta.core import Batch, Episode
from tests.conftest import Make, blobs, conv4, meta_gradient
from tests.datamodules.test_episodes import ready

CASES: dict[str, Make] = {"oml": lambda: OML(conv4(), n_way=3, inner_lr=0.1)}
LR = 0.2


def oml(**overrides) -> OML:
    torch.manual_seed(0)
    return OML(conv4(None), **(dict(n_way=3, inner_lr=LR) | overrides)).double()


def first(tasks: Episode) -> tuple[Batch, Batch]:
    return Batch(tasks.support.x[0], tasks.support.y[0]), Batch(tasks.query.x[0], tasks.query.y[0])


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_plain_autograd(episodes: Episode, mode: str) -> None:
    module, (support, query) = oml(task_mode=mode), first(episodes)
    row, bias = module.head.weight, module.head.bias
    weight, shift = row.expand(3, -1), bias.expand(3)
    features = module.backbone(support.x)
    for x, y in zip(features, support.y, strict=True):
        loss = F.cross_entropy((weight @ x + shift)[None], y[None])
        slopes = torch.autograd.grad(loss, [weight, shift], create_graph=True)
        weight, shift = weight - LR * slopes[0], shift - LR * slopes[1]
    loss = F.cross_entropy(module.backbone(query.x) @ weight.T + shift, query.y)
    names, params = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(loss, params)
    found = meta_gradient(module, Episode(*(Batch(part.x[:1], part.y[:1]) for part in episodes)))
    for name, truth in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], truth, rtol=1e-8, atol=1e-12)


def test_the_head_alone_moves_and_its_rows_start_alike(episodes: Episode) -> None:
    module, (support, _) = oml(), first(episodes)
    assert set(module.adapt(support)) == {"1.weight", "1.bias"}
    weight = module.theta()["1.weight"]
    assert weight.shape == (3, module.backbone.out_features)
    assert torch.equal(weight[0], weight[2])


def test_no_class_is_told_by_its_label(episodes: Episode) -> None:
    """Other names for the labels, the same predictions under these names."""
    module, (support, query) = oml().eval(), first(episodes)
    names = torch.tensor([2, 0, 1])
    before = module.predict(module.adapt(support), query.x)
    after = module.predict(module.adapt(Batch(support.x, names[support.y])), query.x)
    torch.testing.assert_close(after[:, names], before)


def test_examples_with_orthogonal_features_do_not_disturb_each_other() -> None:
    """The step on the second changes what the first is told by the shift alone, which all share."""
    module, features = oml(n_way=3), torch.eye(2, 6, dtype=torch.float64)
    module.learner[1] = nn.Linear(6, 1).double()
    old, new = (Batch(features[i : i + 1], torch.tensor([i])) for i in range(2))

    def learned(batches: list[Batch]) -> dict[str, Tensor]:
        return module.stream([lambda phi, batch=batch: module.head_loss(phi, batch) for batch in batches])

    first, both = learned([old]), learned([old, new])
    change = module.scores(both, old.x) - module.scores(first, old.x)
    torch.testing.assert_close(change[0], both["1.bias"] - first["1.bias"])
    assert (module.scores(both, new.x) - module.scores(first, new.x) - change).abs().max() > 0.01


def test_accuracy_is_logged_by_age() -> None:
    module = oml(n_way=10)
    y = torch.arange(10).repeat_interleave(2)
    preds = F.one_hot(torch.where(y < 2, y, (y + 1) % 10), 10).double()
    preds[-1] = F.one_hot(y[-1], 10)
    assert {name: value.item() for name, value in module.by_age(preds, y).items()} == {
        "acc_oldest": 1.0, "acc_newest": 0.25,
    }  # fmt: skip


def test_episodes_come_class_after_class() -> None:
    data = ready(blobs(n_way=3))
    data.needs = OML.needs
    assert data.dataset("train")[0].support.y.tolist() == [0, 0, 1, 1, 2, 2]


def test_conv4_without_normalisation() -> None:
    network = Conv4(image_size=16, hidden=6, norm=None).double()
    x = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    expected = x
    for block in network.blocks:
        expected = F.max_pool2d(F.conv2d(expected, block[0].weight, block[0].bias, padding=1).relu(), 2)
    torch.testing.assert_close(network(x), expected.flatten(1))
    torch.testing.assert_close(network(x[:1]), network(x)[:1])
    assert functional_call(network, {}, (x,)).shape == (4, 6)
