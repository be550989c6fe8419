"""MetaASR against what its definition says: first-order gradients, joint training, speech of other speakers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, MetaASR
from lightning_meta.backbones import SpeechNet
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicCharErrorRate
from tests.conftest import Make, babble, blobs, meta_gradient, random_strings, slope_along
from tests.modules.test_episodic import trainer


def net(**overrides: Any) -> SpeechNet:
    return SpeechNet(**(dict(vocabulary=4, bands=6, width=16, blocks=2) | overrides))


def asr(**overrides: Any) -> MetaASR:
    return MetaASR(**(dict(backbone=net(), inner_lr=0.02, inner_steps=2) | overrides))


RECOGNISERS: dict[str, Make] = {"meta_asr": asr, "meta_asr_second_order": lambda: asr(first_order=False)}


def tasks_of(tasks: Episode) -> Iterator[tuple[Batch, Batch]]:
    for t in range(len(tasks.support.x)):
        yield tuple(Batch(part.x[t], part.y[t]) for part in tasks)


def loss_of(network: SpeechNet, batch: Batch) -> Tensor:
    """By torch's CTC, which divides by the lengths of the strings itself."""
    logp = network(batch.x).log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(logp, batch.y, torch.full((len(batch.y),), len(logp)), (batch.y > 0).sum(1), reduction="mean")


def test_the_meta_gradient_is_the_gradient_where_gradient_descent_of_torch_has_led() -> None:
    """Of the query strings, at the adapted weights of a copy that torch.optim.SGD moves."""
    module, tasks = asr().double(), random_strings()
    found = meta_gradient(module, tasks)
    total = {name: torch.zeros_like(value) for name, value in module.backbone.named_parameters()}
    for support, query in tasks_of(tasks):
        copy = net().double()
        copy.load_state_dict(module.backbone.state_dict())
        descent = torch.optim.SGD(copy.parameters(), lr=0.02)
        for _ in range(2):
            descent.zero_grad()
            loss_of(copy, support).backward()
            descent.step()
        copy.zero_grad()
        loss_of(copy, query).backward()
        for name, value in copy.named_parameters():
            total[name] += value.grad / len(tasks.support.x)
    for name, gradient in total.items():
        torch.testing.assert_close(found[f"backbone.{name}"], gradient, rtol=1e-7, atol=1e-10)


def test_without_inner_steps_it_is_joint_training() -> None:
    """The gradient is that of the mean over tasks, of one recogniser, and the support strings do not matter."""
    module, tasks = asr(inner_steps=0).double(), random_strings()
    found = meta_gradient(module, tasks)
    losses = [loss_of(module.backbone, query) for _, query in tasks_of(tasks)]
    names, values = zip(*module.backbone.named_parameters(), strict=True)
    truth = torch.autograd.grad(torch.stack(losses).mean(), values)
    for name, gradient in zip(names, truth, strict=True):
        torch.testing.assert_close(found[f"backbone.{name}"], gradient, rtol=1e-8, atol=1e-12)


def test_second_order_is_there_when_asked_for() -> None:
    """Against central differences of the query loss along a random direction."""
    module, tasks = asr(first_order=False).double(), random_strings()
    exact = meta_gradient(module, tasks)
    directions = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    slope = sum((exact[name] * direction).sum().item() for name, direction in directions.items())
    assert slope_along(module, tasks, directions, 1e-6) == pytest.approx(slope, rel=1e-4)
    module.first_order = True
    first = meta_gradient(module, tasks)
    assert sum((first[n] * d).sum().item() for n, d in directions.items()) != pytest.approx(slope, rel=1e-3)


@torch.no_grad()
def test_silence_after_a_sound_and_other_sounds_change_nothing() -> None:
    """But for the steps that see beyond its end, as they would see silence in it."""
    network, x = net().double(), random_strings().query.x[0]
    logits = network(x)
    longer = network(F.pad(x, (0, 0, 0, 40)))
    torch.testing.assert_close(longer[:, : logits.shape[1] - 3], logits[:, :-3], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(network(x[1:2]), logits[1:2], rtol=1e-10, atol=1e-12)
    assert network.steps(x.shape[1]) == logits.shape[1]
    assert network(x[:, :7]).shape[1] == network.steps(7) == 4


def test_the_error_rate_is_that_of_the_strings_together() -> None:
    """Counted by hand: a substitution; a deletion; two insertions; nothing."""
    truth = torch.tensor([[[1, 2, 3], [1, 2, 0], [3, 0, 0], [2, 2, 0]]])
    preds = torch.tensor([[[1, 3, 3, 0], [1, 0, 0, 0], [1, 3, 1, 0], [2, 2, 0, 0]]])
    both = torch.cat([preds, F.pad(truth, (0, 1))]), torch.cat([truth, truth])
    assert EpisodicCharErrorRate.per_episode(*both).tolist() == pytest.approx([(1 + 1 + 2) / 8, 0])
    assert EpisodicCharErrorRate.per_episode(torch.zeros_like(preds), truth).item() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: asr(inner_steps=-1), "inner_steps=-1 must be at least 0"),
        (lambda: SpeechNet(), "SpeechNet needs vocabulary.*None and None"),
        (lambda: net(stride=0), "stride=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make: Make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_other_data_and_sizes_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"MetaASR writes down sounds.*Blobs are \(1, 16, 16\).*take Babble"):
        trainer().fit(asr(), datamodule=blobs())
    with pytest.raises(ConfigError, match=r"bands=5 and vocabulary=4, but Babble has 6 and 4; take the data's"):
        trainer().fit(asr(backbone=net(bands=5)), datamodule=babble())
    with pytest.raises(ConfigError, match=r"39 frames are 4 steps of stride=12, but 3 equal symbols take 5"):
        trainer().fit(asr(backbone=net(stride=12)), datamodule=babble())
    with pytest.raises(ConfigError, match="speech for MetaASR"):
        trainer().fit(MAML(nn.Sequential(nn.Flatten(), nn.Linear(39 * 6, 4)), n_way=1), datamodule=babble())
