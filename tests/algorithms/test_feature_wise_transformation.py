"""Feature-wise transformation: what it does to features, to whom, and that it is off where it should be."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import FeatureWiseTransformation, ProtoNet
from lightning_meta.backbones import MLP, EpisodicBatchNorm2d
from lightning_meta.backbones.feature_wise import FeatureWiseBatchNorm2d
from lightning_meta.backbones.norm import MetaBatch, WithActivation, replace_layer
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, conv4, meta_gradient, random_episodes

CASES: dict[str, Make] = {
    "feature_wise_transformation": lambda: FeatureWiseTransformation(conv4(), gamma=0.1, beta=0.1),
}


def pair(norm: str, gamma: float, beta: float) -> tuple[FeatureWiseTransformation, ProtoNet]:
    """With the same weights."""
    torch.manual_seed(0)
    plain = ProtoNet(conv4(norm)).double()
    torch.manual_seed(0)
    return FeatureWiseTransformation(conv4(norm), gamma=gamma, beta=beta).double(), plain


@pytest.mark.parametrize("norm", ["running", "transductive", "inductive"])
def test_it_is_off_in_evaluation_and_nothing_at_deviation_0(norm: str, episodes: Episode) -> None:
    for settings, training in (((0.3, 0.5), False), ((0.0, 0.0), True)):
        module, plain = (m.train(training) for m in pair(norm, *settings))
        torch.testing.assert_close(module.play(episodes), plain.play(episodes), rtol=0, atol=0)
    module, plain = (m.train() for m in pair(norm, 0.0, 0.0))
    torch.testing.assert_close(meta_gradient(module, episodes), meta_gradient(plain, episodes), rtol=0, atol=0)


def test_it_is_on_in_training(episodes: Episode) -> None:
    module, plain = (m.train() for m in pair("transductive", 0.3, 0.5))
    assert not torch.allclose(module.play(episodes).loss, plain.play(episodes).loss, rtol=1e-3)
    assert not torch.allclose(module.play(episodes).loss, module.play(episodes).loss, rtol=1e-3), "new draws"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What the layer drew."""
    draws: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)

    def note(like: Tensor) -> Tensor:
        draws.append(torch.randn(like.shape, generator=generator).to(like))
        return draws[-1]

    monkeypatch.setattr("torch.randn_like", note)
    yield draws


def test_support_and_query_of_a_task_are_transformed_alike(drawn: list[Tensor]) -> None:
    """Row by row against the formula: two tasks with two support and three query images."""
    layer = FeatureWiseBatchNorm2d(4, 0.3, 0.5).double()
    plain = EpisodicBatchNorm2d(4).double()
    x = torch.rand(10, 4, 3, 3).double()
    layer.meta_batch = plain.meta_batch = MetaBatch(2, 4)
    out, expected = layer(x), plain(x)
    scale, shift = drawn
    assert scale.shape == shift.shape == (2, 4)
    for row, task in enumerate([0, 0, 1, 1, 0, 0, 0, 1, 1, 1]):
        for channel in range(4):
            transformed = (1 + 0.3 * scale[task, channel]) * expected[row, channel] + 0.5 * shift[task, channel]
            torch.testing.assert_close(out[row, channel], transformed)


def test_the_deviations_are_those_asked_for() -> None:
    """Of a constant input: its normalised value is the shift of the layer, 0 or what is set."""
    torch.manual_seed(0)
    layer = FeatureWiseBatchNorm2d(20_000, 0.3, 0.5)
    out = layer(torch.ones(2, 20_000, 1, 1))[0, :, 0, 0]
    assert out.std().item() == pytest.approx(0.5, rel=0.03)
    layer.bias.data.fill_(10.0)
    out = layer(torch.ones(2, 20_000, 1, 1))[0, :, 0, 0]
    assert out.std().item() == pytest.approx((3.0**2 + 0.5**2) ** 0.5, rel=0.03)
    assert out.mean().item() == pytest.approx(10, rel=0.01)


def test_each_task_of_a_meta_batch_has_its_own(drawn: list[Tensor]) -> None:
    module, _ = pair("transductive", 0.3, 0.5)
    module.train().play(random_episodes(n_tasks=3))
    assert {draw.shape[0] for draw in drawn} == {3} and len(drawn) == 2 * 4


def test_the_backbone_that_was_given_stays_as_it_was() -> None:
    backbone = conv4()
    for _ in range(2):
        module = FeatureWiseTransformation(backbone)
        assert type(module.backbone.blocks[0][1]) is FeatureWiseBatchNorm2d
        assert type(backbone.blocks[0][1]) is EpisodicBatchNorm2d


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match=r"gamma=-1 and beta=0\.5 must not be negative"):
        FeatureWiseTransformation(conv4(), gamma=-1)
    with pytest.raises(ConfigError, match="after batch normalisation, but MLP has none"):
        FeatureWiseTransformation(MLP(SIZE * SIZE, [8]))
    fused = WithActivation(6, "transductive", 1e-5, 0.1, nn.Identity(), nn.ReLU())
    replace_layer(backbone := conv4(), "blocks.0.1", fused)
    with pytest.raises(ConfigError, match=r"the layer blocks\.0\.1 of the backbone \(WithActivation\) does more"):
        FeatureWiseTransformation(backbone)
