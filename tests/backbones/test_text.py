"""Text encoders against their formulas, written out text by text, and their second derivatives."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import EmbeddingAverage, TextCNN
from lightning_meta.backbones.text import TextBackbone
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.backbones.test_backbones import LR, autograd_meta_gradient
from tests.conftest import meta_gradient

VOCABULARY, LENGTH, DIM = 30, 7, 5
MAKERS: dict[str, Callable[..., TextBackbone]] = {
    "average": partial(EmbeddingAverage, embedding_dim=DIM),
    "cnn": partial(TextCNN, embedding_dim=DIM, filters=4, widths=(1, 3, 9)),
}
make_each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def build(make: Callable[..., TextBackbone], length: int = LENGTH) -> TextBackbone:
    torch.manual_seed(0)
    return make(VOCABULARY, length).double()


def random_texts(*size: int) -> Tensor:
    """Ids `(*size, LENGTH)` of texts of 1 to LENGTH words."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (*size, LENGTH), generator=generator)
    words = torch.randint(1, LENGTH + 1, (*size, 1), generator=generator)
    return torch.where(torch.arange(LENGTH) < words, ids, 0)


def average(network: TextBackbone, words: list[int]) -> Tensor:
    return torch.stack([network.embedding.weight[word] for word in words]).mean(0)


def cnn(network: TextBackbone, words: list[int]) -> Tensor:
    """Each window that starts with a word, with zeros after the end; ReLU of a scalar product; the largest."""
    assert isinstance(network, TextCNN)
    features = []
    for convolution in network.convolutions:
        weight, bias = convolution.weight, convolution.bias  # (filters, D, width)
        rows = [network.embedding.weight[word] for word in words] + [torch.zeros(DIM).double()] * weight.shape[2]
        windows = [torch.stack(rows[start : start + weight.shape[2]], dim=1) for start in range(len(words))]
        features.append(torch.stack([((weight * window).sum((1, 2)) + bias).relu() for window in windows]).amax(0))
    return torch.cat(features)


@pytest.mark.parametrize(("name", "formula"), [("average", average), ("cnn", cnn)])
def test_features_follow_the_formula(name: str, formula: Callable[[TextBackbone, list[int]], Tensor]) -> None:
    network, ids = build(MAKERS[name]), random_texts(6)
    expected = torch.stack([formula(network, [i for i in row if i]) for row in ids.tolist()])
    features = network(ids)
    torch.testing.assert_close(features, expected)
    assert features.shape == (6, network.out_features) and network.in_shape == (LENGTH,)


@make_each
def test_padding_changes_nothing(make: Callable[..., TextBackbone]) -> None:
    network, longer, ids = build(make), build(make, LENGTH + 4), random_texts(5)
    longer.load_state_dict(network.state_dict())
    torch.testing.assert_close(longer(torch.cat([ids, torch.zeros(5, 4, dtype=ids.dtype)], 1)), network(ids))
    before = network(ids)
    with torch.no_grad():
        network.embedding.weight[0] += 100
    assert torch.equal(network(ids), before)


@make_each
def test_a_text_without_words_has_zero_features(make: Callable[..., TextBackbone]) -> None:
    network = build(make)
    features = network(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert torch.equal(features, torch.zeros_like(features))
    features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@make_each
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_second_order_meta_gradient_equals_plain_autograd(make: Callable[..., TextBackbone], mode: str) -> None:
    module = MAML(build(make), n_way=3, inner_lr=LR, task_mode=mode).double()
    labels = torch.arange(3).repeat(2, 4)
    tasks = Episode(Batch(random_texts(2, 6), labels[:, :6]), Batch(random_texts(2, 12), labels))
    expected = autograd_meta_gradient(module, tasks)
    assert all(grad.abs().max() > 0 for grad in expected.values())
    torch.testing.assert_close(meta_gradient(module, tasks), expected, rtol=1e-9, atol=1e-13)


@make_each
def test_sizes_that_the_data_decide_must_be_given(make: Callable[..., TextBackbone]) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary.*length.*None and 7"):
        make(length=7)
