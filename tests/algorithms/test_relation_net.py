"""Relation Networks (relation_net) written out: concatenated maps, one pair at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import RelationNet
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from tests.conftest import SIZE, Make, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {"relation_net": lambda: spread(RelationNet(conv4(halvings=2), hidden=6))}
VARIANTS: dict[str, Make] = {
    "relation_net-cross-entropy": lambda: spread(RelationNet(conv4(), hidden=6, loss="cross_entropy")),
}


def spread(module: RelationNet) -> RelationNet:
    """Scores start all but equal, as in the authors' code; with larger weights they differ."""
    for layer in module.relation:
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(30)
    return module


def relation_net(norm: str = "transductive", loss: str = "mse", **overrides: int) -> RelationNet:
    backbone = conv4(norm, **({"halvings": 2} | overrides))
    return RelationNet(backbone, hidden=5, hidden_linear=4, norm=norm, loss=loss).double()


def relation_scores(module: RelationNet, maps_QDHW: Tensor, class_maps_NDHW: Tensor) -> Tensor:
    """`(Q, N)`: concatenation in depth, two blocks of convolution, normalisation, ReLU and pooling, two linear maps."""
    first, _, _, second, _, _, _, _, hidden, _, last = module.relation
    pairs = torch.stack([torch.cat([of_class, query]) for query in maps_QDHW for of_class in class_maps_NDHW])
    for weight, norm in ((module.compare.weight, first), (second.weight, module.relation[4])):
        pairs = F.conv2d(pairs, weight, padding=1)
        pairs = F.batch_norm(pairs, None, None, norm.weight, norm.bias, training=True)
        pairs = F.max_pool2d(pairs.relu(), 2)
    return last(hidden(pairs.flatten(1)).relu()).sigmoid().view(len(maps_QDHW), len(class_maps_NDHW))


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("k_shot", [1, 3])
def test_scores_and_loss_equal_the_paper_s_with_a_pair_for_each_query_and_class(k_shot: int, loss: str) -> None:
    """Batch statistics too are those of Q x N pairs, though class slots are as many as support examples."""
    module, tasks = relation_net(loss=loss), random_episodes(k_shot=k_shot)
    for norm in (module.relation[0], module.relation[4]):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    out = module.play(tasks)
    for t in range(3):
        support, query = (module.backbone(b.x[t]).unflatten(1, (6, 4, 4)) for b in tasks)
        labels = tasks.support.y[t]
        class_maps = torch.stack([sum(m for m, y in zip(support, labels, strict=True) if y == c) for c in range(3)])
        scores = relation_scores(module, query, class_maps)
        torch.testing.assert_close(out.preds[t, :, :3].sigmoid(), scores, rtol=1e-9, atol=1e-12)
        assert (out.preds[t, :, 3:] == -torch.inf).all()
        if loss == "mse":
            errors = [(scores[q, c] - float(c == y)) ** 2 for q, y in enumerate(tasks.query.y[t]) for c in range(3)]
        else:  # the odds of a score are the exponential of what is before the sigmoid
            odds = scores / (1 - scores)
            errors = [-torch.log(odds[q, y] / odds[q].sum()) for q, y in enumerate(tasks.query.y[t])]
        torch.testing.assert_close(out.loss[t], sum(errors) / len(errors), rtol=1e-9, atol=1e-12)


def test_inductive_statistics_are_those_of_the_support_s_pairs(episodes: Episode) -> None:
    """So the prediction for one query does not depend on the others."""
    module = relation_net("inductive")
    alone = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    torch.testing.assert_close(module.play(alone).preds, module.play(episodes).preds[:, :1], rtol=1e-9, atol=1e-12)
    # Queries that are the support: the statistics found are those of a transductive pass over all its pairs.
    twice = Episode(episodes.support, episodes.support)
    inductive = module.play(twice).preds
    plain = relation_net()
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(inductive, plain.play(twice).preds, rtol=1e-9, atol=1e-12)


def test_running_statistics_predict_each_query_alone_in_evaluation(episodes: Episode) -> None:
    module = relation_net("running")
    module.task_mode = "loop"
    module.train().play(episodes)
    assert module.relation[4].running_mean.abs().max() > 0
    module.eval()
    alone = Episode(episodes.support, Batch(episodes.query.x[:, :1], episodes.query.y[:, :1]))
    torch.testing.assert_close(module.play(alone).preds, module.play(episodes).preds[:, :1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("halvings", [2, 4])
def test_plays_any_way_with_the_same_weights(halvings: int) -> None:
    """Maps of one pixel, which four halvings leave of 16, are not pooled."""
    module = relation_net(halvings=halvings)
    for n_way in (2, 7):
        tasks = random_episodes(n_way=n_way, k_shot=1)
        assert module.play(tasks).preds.shape == (3, 2 * n_way, n_way)
        assert all(gradient.isfinite().all() for gradient in meta_gradient(module, tasks).values())


def test_a_backbone_without_maps_gives_maps_of_one_pixel(episodes: Episode) -> None:
    """The relation module is then a perceptron on pairs of feature vectors, here one pair at a time."""
    module = RelationNet(MLP(SIZE**2, [7]), hidden=5).double()
    assert module.map_shape == (7, 1, 1)
    out = module.play(episodes)
    first, _, _, second, other, _, _, _, hidden, _, last = module.relation
    for t in range(3):
        support, query = (module.backbone(batch.x[t]) for batch in episodes)
        labels = episodes.support.y[t]
        sums = [sum(m for m, y in zip(support, labels, strict=True) if y == c) for c in range(3)]
        pairs = torch.stack([torch.cat([of_class, of_query]) for of_query in query for of_class in sums])
        for weight, norm in ((module.compare.weight, first), (second.weight, other)):
            pairs = F.batch_norm(pairs @ weight.flatten(1).T, None, None, norm.weight, norm.bias, training=True).relu()
        scores = last(hidden(pairs).relu()).view(6, 3)
        torch.testing.assert_close(out.preds[t, :, :3], scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("halvings", [2, 3, 4])
def test_every_place_of_a_kernel_is_of_use(halvings: int) -> None:
    """On maps of 4x4, 2x2 and 1x1 pixels, which a pooling turns into 2x2, 1x1 and 1x1."""
    module = relation_net(halvings=halvings)
    gradient = meta_gradient(module, random_episodes())
    for name in ("compare.weight", "relation.3.weight"):
        assert (gradient[name].abs().amax((0, 1)) > 0).all(), name


def test_the_relation_module_starts_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    module = RelationNet(conv4(hidden=64, halvings=2), hidden=64, hidden_linear=64)
    for convolution in (module.compare, module.relation[3]):
        assert convolution.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    for linear in (module.relation[8], module.relation[10]):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert (linear.bias == 1).all()
