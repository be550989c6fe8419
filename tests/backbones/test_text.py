"""Text encoders against their formulas, written out text by text, and their second derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import MAML, ProtoNet
from lightning_meta.backbones import BagOfWords, EmbeddingAverage, TextCNN
from lightning_meta.backbones.text import EmbeddedTextBackbone
from lightning_meta.core import Batch, Episode
from lightning_meta.core.word_statistics import inverse_document_frequencies, occurrences, ppmi_vectors
from lightning_meta.errors import ConfigError
from tests.backbones.test_backbones import LR, autograd_meta_gradient
from tests.conftest import meta_gradient

VOCABULARY, LENGTH, DIM = 30, 7, 5
WORDS = torch.arange(VOCABULARY) >= 2
MAKERS: dict[str, Callable[..., EmbeddedTextBackbone]] = {
    "average": partial(EmbeddingAverage, embedding_dim=DIM),
    "cnn": partial(TextCNN, embedding_dim=DIM, filters=4, widths=(1, 3, 9)),
}
make_each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def build(make: Callable[..., EmbeddedTextBackbone], length: int = LENGTH) -> EmbeddedTextBackbone:
    """In float64, and fitted to texts that have all words but the last two."""
    torch.manual_seed(0)
    network = make(VOCABULARY, length).double()
    network.fit(seen_texts())
    return network


def seen_texts() -> Tensor:
    return random_texts(40, seed=2).clamp_max(VOCABULARY - 3)


def random_texts(*size: int, seed: int = 1) -> Tensor:
    """Ids `(*size, LENGTH)` of texts of 1 to LENGTH words."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (*size, LENGTH), generator=generator)
    words = torch.randint(1, LENGTH + 1, (*size, 1), generator=generator)
    return torch.where(torch.arange(LENGTH) < words, ids, 0)


def average(network: EmbeddedTextBackbone, words: list[int]) -> Tensor:
    """Id 1, which stands for all unknown words, weighs nothing."""
    idf = inverse_document_frequencies(occurrences(seen_texts(), WORDS)).double()
    weights = [float(idf[word]) if word > 1 else 0.0 for word in words]
    weighted = sum(weight * network.embedding.weight[word] for weight, word in zip(weights, words, strict=True))
    assert isinstance(weighted, Tensor)
    return weighted / (sum(weights) or 1)


def cnn(network: EmbeddedTextBackbone, words: list[int]) -> Tensor:
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
def test_features_follow_the_formula(name: str, formula: Callable[[EmbeddedTextBackbone, list[int]], Tensor]) -> None:
    network, ids = build(MAKERS[name]), random_texts(6)
    expected = torch.stack([formula(network, [i for i in row if i]) for row in ids.tolist()])
    features = network(ids)
    torch.testing.assert_close(features, expected)
    assert features.shape == (6, network.out_features) and network.in_shape == (LENGTH,)


@make_each
def test_padding_changes_nothing(make: Callable[..., EmbeddedTextBackbone]) -> None:
    network, longer, ids = build(make), build(make, LENGTH + 4), random_texts(5)
    longer.load_state_dict(network.state_dict())
    torch.testing.assert_close(longer(torch.cat([ids, torch.zeros(5, 4, dtype=ids.dtype)], 1)), network(ids))
    before = network(ids)
    with torch.no_grad():
        network.embedding.weight[0] += 100
    assert torch.equal(network(ids), before)


@make_each
def test_a_text_without_words_has_zero_features(make: Callable[..., EmbeddedTextBackbone]) -> None:
    network = build(make)
    features = network(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert torch.equal(features, torch.zeros_like(features))
    features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@make_each
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_second_order_meta_gradient_equals_plain_autograd(make: Callable[..., EmbeddedTextBackbone], mode: str) -> None:
    module = MAML(build(make), n_way=3, inner_lr=LR, task_mode=mode).double()
    labels = torch.arange(3).repeat(2, 4)
    tasks = Episode(Batch(random_texts(2, 6), labels[:, :6]), Batch(random_texts(2, 12), labels))
    expected = autograd_meta_gradient(module, tasks)
    assert all(grad.abs().max() > 0 for grad in expected.values())
    torch.testing.assert_close(meta_gradient(module, tasks), expected, rtol=1e-9, atol=1e-13)


@make_each
def test_sizes_that_the_data_decide_must_be_given(make: Callable[..., EmbeddedTextBackbone]) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary.*length.*None and 7"):
        make(length=7)


# ---- what they take from the texts of meta-training ------------------------------------------------------------------


def test_a_bag_of_words_counts_and_weighs() -> None:
    """Four texts; words 2, 3, 4 are in 2, 3 and 1 of them, and word 5 in none."""
    network = BagOfWords(6, 4)
    network.fit(torch.tensor([[2, 3, 2, 2], [3, 4, 0, 0], [2, 3, 1, 0], [1, 1, 0, 0]]))
    features = network(torch.tensor([[2, 5, 2, 0], [4, 3, 1, 1], [0, 0, 0, 0]]))
    log = torch.tensor([1, 1, 5 / 3, 5 / 4, 5 / 2, 5]).log()
    expected = torch.tensor([[0, 0, 2, 0, 0, 1], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]) * log
    torch.testing.assert_close(features, expected)
    assert network.out_features == 6 and not list(network.parameters())


def test_unknown_words_change_no_average() -> None:
    """They share an id with each other, not a meaning."""
    network, ids = build(MAKERS["average"]), random_texts(5)
    ids[ids == 1] = 2
    with_unknown = torch.cat([torch.ones(5, 2, dtype=torch.int64), ids], dim=1)
    torch.testing.assert_close(network(with_unknown), network(ids))
    assert torch.equal(network(torch.ones(1, 3, dtype=torch.int64)), torch.zeros(1, DIM).double())


@make_each
def test_word_vectors_start_from_ppmi_and_words_that_were_not_seen_at_random(
    make: Callable[..., EmbeddedTextBackbone],
) -> None:
    torch.manual_seed(0)
    weight = make(VOCABULARY, LENGTH).embedding.weight.double()
    started, found = build(make).embedding.weight, ppmi_vectors(occurrences(seen_texts(), WORDS), DIM)
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[2 : VOCABULARY - 2] = True
    assert torch.equal(started[~seen], weight[~seen])
    scale = started[seen] / found[seen]
    torch.testing.assert_close(scale, scale[0, 0].expand_as(scale))
    assert started[seen].square().mean().sqrt().item() == pytest.approx(0.1), "as large as random ones"


@make_each
def test_random_word_vectors_stay_as_they_are(make: Callable[..., EmbeddedTextBackbone]) -> None:
    torch.manual_seed(0)
    before = make(VOCABULARY, LENGTH, word_vectors="random").embedding.weight.double()
    assert torch.equal(build(partial(make, word_vectors="random")).embedding.weight, before)


@make_each
def test_fitting_is_a_function_of_the_texts(make: Callable[..., EmbeddedTextBackbone]) -> None:
    """Not of their order, nor of the noise of training, of which it draws none."""
    network, again = build(make), build(make)
    torch.manual_seed(3)
    noise = torch.rand(2)
    torch.manual_seed(3)
    again.fit(seen_texts().flip(0))
    assert torch.equal(torch.rand(2), noise)
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_texts_without_company_leave_random_vectors() -> None:
    network = EmbeddingAverage(VOCABULARY, LENGTH, DIM)
    before = network.embedding.weight.clone()
    network.fit(torch.tensor([[2, 0], [3, 1], [1, 0]]))
    assert torch.equal(network.embedding.weight, before)


def test_word_dropout_leaves_words_out_in_training_only() -> None:
    network, ids = EmbeddingAverage(VOCABULARY, 2, DIM, word_dropout=0.5), torch.tensor([[2, 3]])
    of_two, of_one = network.eval()(ids)[0], network.embedding.weight[2:4]
    assert torch.equal(network(ids)[0], of_two)
    torch.testing.assert_close(of_two, of_one.mean(0))
    drawn = network.train()(ids.expand(400, 2))
    kinds = torch.stack([*of_one, of_two, torch.zeros(DIM)])
    kind = (drawn[:, None] - kinds).abs().sum(2).argmin(1)
    torch.testing.assert_close(drawn, kinds[kind])
    assert kind.bincount(minlength=4).min() > 60, "each of the four cases has probability 1/4"


@pytest.mark.parametrize("make_module", [lambda b: ProtoNet(b, distance="cosine"), ProtoNet], ids=["cosine", "euclid"])
@make_each
def test_vmap_equals_loop_in_value_and_gradient(
    make: Callable[..., EmbeddedTextBackbone], make_module: Callable[..., ProtoNet]
) -> None:
    module = make_module(build(make)).double()
    labels = torch.arange(3).repeat(2, 4)
    tasks = Episode(Batch(random_texts(2, 6), labels[:, :6]), Batch(random_texts(2, 12), labels))
    results = []
    for module.task_mode in ("loop", "vmap"):
        results.append((module.play(tasks), meta_gradient(module, tasks)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("settings", "fact"), [({"word_vectors": "glove"}, "'glove'"), ({"word_dropout": 1.0}, "word_dropout=1.0")]
)
def test_impossible_settings_are_refused(settings: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        EmbeddingAverage(VOCABULARY, LENGTH, **settings)
