"""Relation Networks (relation_net) written out: concatenated maps, one pair at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import RelationNet
from lightning_meta.backbones import MLP
from lightning_meta.core import Batch, Episode
from tests.conftest import SIZE, conv4, meta_gradient, random_episodes


def relation_net(norm: str = "transductive", **overrides: int) -> RelationNet:
    return RelationNet(conv4(norm, **({"halvings": 2} | overrides)), hidden=5, hidden_linear=4, norm=norm).double()


def relation_scores(module: RelationNet, maps_QDHW: Tensor, class_maps_NDHW: Tensor) -> Tensor:
    """`(Q, N)`: concatenation in depth, two blocks of convolution, normalisation, ReLU and pooling, two linear maps."""
    first, _, _, second, _, _, _, _, hidden, _, last = module.relation
    pairs = torch.stack([torch.cat([of_class, query]) for query in maps_QDHW for of_class in class_maps_NDHW])
    for weight, norm in ((module.compare.weight, first), (second.weight, module.relation[4])):
        pairs = F.conv2d(pairs, weight, padding=1)
        pairs = F.batch_norm(pairs, None, None, norm.weight, norm.bias, training=True)
        pairs = F.max_pool2d(pairs.relu(), 2)
    return last(hidden(pairs.flatten(1)).relu()).sigmoid().view(len(maps_QDHW), len(class_maps_NDHW))


@pytest.mark.parametrize("k_shot", [1, 3])
def test_scores_and_loss_equal_the_paper_s_with_a_pair_for_each_query_and_class(k_shot: int) -> None:
    """Batch statistics too are those of Q x N pairs, though class slots are as many as support examples."""
    module, tasks = relation_net(), random_episodes(k_shot=k_shot)
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
        errors = [(scores[q, c] - float(c == tasks.query.y[t, q])) ** 2 for q in range(len(query)) for c in range(3)]
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
    module = RelationNet(MLP(SIZE**2, [7]), hidden=5).double()
    assert module.map_shape == (7, 1, 1)
    assert module.play(episodes).preds.shape == (3, 6, 6)
