"""SNAIL's blocks against their formulas, causality, and what the last element sees."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import SNAIL
from lightning_meta.algorithms.memory.snail import Attention, Dense
from lightning_meta.core import Episode
from tests.conftest import Make, conv4

CASES: dict[str, Make] = {"snail": lambda: SNAIL(conv4(), n_way=3, k_shot=2, embedding=8, filters=6)}
BLOCKS = {"attention": lambda: Attention(5, keys=4, values=3), "dense": lambda: Dense(5, dilation=2, filters=3)}


def small(k_shot: int = 2) -> SNAIL:
    return SNAIL(conv4("inductive"), n_way=3, k_shot=k_shot, embedding=8, filters=6).double()


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_later_elements_do_not_change_earlier_ones(block) -> None:
    layer, x = block().double(), torch.randn(7, 5).double()
    before = layer(x, 6)
    for t in range(7):
        after = layer(torch.cat([x[:t], torch.randn(7 - t, 5).double()]), 6)
        assert torch.equal(after[:t], before[:t])
        assert not torch.equal(after[t], before[t])


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("n_past", [1, 4])
def test_alternatives_for_the_next_element_are_as_if_alone(block, n_past: int) -> None:
    layer, x = block().double(), torch.randn(n_past + 3, 5).double()
    together = layer(x, n_past)
    for i in range(3):
        alone = layer(torch.cat([x[:n_past], x[n_past + i, None]]), n_past)
        torch.testing.assert_close(torch.cat([together[:n_past], together[n_past + i, None]]), alone)


def test_attention_equals_the_softmax_written_out() -> None:
    layer, x = Attention(5, keys=4, values=3).double(), torch.randn(6, 5).double()
    found = layer(x, 5)
    assert torch.equal(found[:, :5], x)
    for t in range(6):
        weights = [(layer.queries(x[t]) @ layer.keys(x[s]) / 2).exp() for s in range(t + 1)]
        read = sum(w * layer.values(x[s]) for s, w in enumerate(weights)) / sum(weights)
        torch.testing.assert_close(found[t, 5:], read)


@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_a_dense_block_is_a_gated_dilated_convolution(dilation: int) -> None:
    layer, x = Dense(5, dilation, filters=3).double(), torch.randn(6, 5).double()
    kernel = torch.stack([layer.before.weight, layer.now.weight], dim=-1)
    signal: Tensor = F.conv1d(F.pad(x.T, (dilation, 0)), kernel, layer.now.bias, dilation=dilation).T
    expected = torch.cat([x, torch.tanh(signal[:, :3]) * torch.sigmoid(signal[:, 3:])], dim=1)
    torch.testing.assert_close(layer(x, 5), expected)


@pytest.mark.parametrize("k_shot", [1, 2, 7])
def test_convolutions_reach_from_the_query_to_the_first_example(k_shot: int) -> None:
    """No further than needed: one layer less would not."""
    blocks = [block for block in small(k_shot).blocks if isinstance(block, Dense)]
    half = len(blocks) // 2
    assert [block.dilation for block in blocks] == 2 * [2**i for i in range(half)]
    reach = sum(block.dilation for block in blocks[:half])
    assert reach >= 3 * k_shot > reach - 2 ** (half - 1)


def test_channels_are_those_of_the_paper() -> None:
    module = SNAIL(conv4(), n_way=5, k_shot=1)
    assert [block.out_channels for block in module.blocks] == [101, 229, 357, 485, 613, 741, 869, 997, 1253]


def test_every_support_label_reaches_the_prediction_but_the_querys_own_does_not(episodes: Episode) -> None:
    module = small()
    support, query = (type(part)(*(leaf[0] for leaf in part)) for part in episodes)
    adapted = module.adapt(support)
    sequence = adapted.head.detach().requires_grad_()
    out = module.query_loss(adapted._replace(head=sequence), query)
    (gradient,) = torch.autograd.grad(out.preds[0, 0], sequence)
    assert (gradient[:, 8:].abs().amax(1) > 1e-12).all()
    relabelled = module.query_loss(adapted, query._replace(y=query.y.flip(0)))
    assert torch.equal(relabelled.preds, out.preds)
