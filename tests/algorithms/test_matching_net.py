"""Matching Networks (matching_net) against loops over the formulas of the paper, and against torch's LSTM cell."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import FullContextMatchingNet, MatchingNet
from lightning_meta.algorithms.compare.matching_net import sum_by_class
from lightning_meta.backbones.recurrent import LSTMCell
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, blobs, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {
    "matching_net": lambda: MatchingNet(conv4()),
    "matching_net-full-context": lambda: FullContextMatchingNet(conv4(), processing_steps=2),
}


def class_probabilities(query_QD: Tensor, support_SD: Tensor, labels_S: Tensor, scale: float) -> Tensor:
    """Equation 1 of the paper with cosine attention, one query and one support example at a time."""
    probabilities = torch.zeros(len(query_QD), 3, dtype=torch.float64)
    for q, query in enumerate(query_QD):
        similarities = [(scale * F.cosine_similarity(query, example, dim=0)).exp() for example in support_SD]
        for similarity, label in zip(similarities, labels_S, strict=True):
            probabilities[q, label] += similarity / sum(similarities)
    return probabilities


def assert_equals_the_formula(
    module: MatchingNet, tasks: Episode, t: int, query_QD: Tensor, support_SD: Tensor
) -> None:
    out = module.play(tasks)
    expected = class_probabilities(query_QD, support_SD, tasks.support.y[t], module.scale)
    torch.testing.assert_close(out.preds[t, :, :3].exp(), expected, rtol=1e-10, atol=1e-12)
    assert (out.preds[t, :, 3:] == -torch.inf).all()
    right = expected[range(len(expected)), tasks.query.y[t]]
    torch.testing.assert_close(out.loss[t], -right.log().mean(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_class_probabilities_are_summed_cosine_attention(scale: float, episodes: Episode) -> None:
    module = MatchingNet(conv4(), scale).double()
    for t in range(3):
        query, support = module.backbone(episodes.query.x[t]), module.backbone(episodes.support.x[t])
        assert_equals_the_formula(module, episodes, t, query, support)


def fused(cell: LSTMCell) -> nn.LSTMCell:
    copy = nn.LSTMCell(cell.weight_ih.shape[1], cell.hidden).double()
    copy.load_state_dict(cell.state_dict())
    return copy


def test_full_context_embeddings_are_those_of_appendix_a(episodes: Episode) -> None:
    module = FullContextMatchingNet(conv4(), processing_steps=3).double()
    forwards, backwards, attention = fused(module.forwards), fused(module.backwards), fused(module.attention)
    size = 6
    zeros = torch.zeros(1, size, dtype=torch.float64)
    for t in range(3):
        first = module.backbone(episodes.support.x[t])
        ahead, state = [], (zeros, zeros)
        for i in range(len(first)):
            state = forwards(first[i : i + 1], state)
            ahead.append(state[0])
        back, state = [], (zeros, zeros)
        for i in reversed(range(len(first))):
            state = backwards(first[i : i + 1], state)
            back.insert(0, state[0])
        support = torch.cat(ahead) + torch.cat(back) + first

        queries = []
        for query in module.backbone(episodes.query.x[t]):
            h, c = zeros, zeros
            for _ in range(3):
                weights = torch.stack([h[0] @ example for example in support]).softmax(0)
                read = sum(weight * example for weight, example in zip(weights, support, strict=True))
                h, c = attention(torch.cat([query, read])[None], (h, c))
                h = h + query
            queries.append(h[0])
        assert_equals_the_formula(module, episodes, t, torch.stack(queries), support)


def test_what_is_read_enters_as_if_it_were_a_part_of_the_recurrent_state() -> None:
    """The paper concatenates it with the state, and the state's weights act on both."""
    x, h, read, c = torch.randn(4, 2, 5, dtype=torch.float64)
    cell = LSTMCell(10, 5).double()
    weights_of_state = torch.cat([cell.weight_hh, cell.weight_ih[:, 5:]], dim=1)
    gates = x @ cell.weight_ih[:, :5].T + torch.cat([h, read], dim=1) @ weights_of_state.T + cell.bias_ih + cell.bias_hh
    i, f, g, o = gates.split(5, dim=1)
    expected_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    found = cell(torch.cat([x, read], dim=1), (h, c))
    torch.testing.assert_close(found, (o.sigmoid() * expected_c.tanh(), expected_c), rtol=1e-12, atol=1e-12)


def test_only_full_context_embeddings_see_the_order_of_the_support(episodes: Episode) -> None:
    flipped = episodes._replace(support=type(episodes.support)(*(leaf.flip(1) for leaf in episodes.support)))
    for make, sees in ((MatchingNet, False), (FullContextMatchingNet, True)):
        module = make(conv4()).double()
        change = (module.play(flipped).loss - module.play(episodes).loss).abs().max()
        assert (change > 1e-6) == sees


def test_full_context_embeddings_need_a_stream() -> None:
    for make, stream in ((MatchingNet, False), (FullContextMatchingNet, True)):
        data = blobs()
        trainer = pl.Trainer(
            accelerator="cpu", inference_mode=False, logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        trainer.validate(make(conv4()), datamodule=data, verbose=False)
        assert ("stream" in data.needs) == stream


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_vanishing_attention_keeps_a_finite_loss_and_gradient() -> None:
    log_weights = torch.tensor([[0.0, -2000.0, -3000.0]], requires_grad=True)
    sums = sum_by_class(log_weights, torch.tensor([0, 2, 2]))
    torch.testing.assert_close(sums, torch.tensor([[0.0, -torch.inf, -2000.0]]))
    with torch.autograd.detect_anomaly(check_nan=True):
        F.nll_loss(sums, torch.tensor([2])).backward()
    torch.testing.assert_close(log_weights.grad, torch.tensor([[0.0, -1.0, 0.0]]))


@pytest.mark.parametrize("make", [MatchingNet, FullContextMatchingNet])
def test_plays_any_way_with_the_same_weights(make: type[MatchingNet]) -> None:
    module = make(conv4()).double()
    for n_way in (2, 7):
        tasks = random_episodes(n_way=n_way, k_shot=1)
        assert module.play(tasks).preds.shape == (3, 2 * n_way, n_way)
        assert all(gradient.isfinite().all() for gradient in meta_gradient(module, tasks).values())


def test_no_processing_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"processing_steps=0"):
        FullContextMatchingNet(conv4(), processing_steps=0)
