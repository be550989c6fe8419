"""Meta-NMT against what its definition says: joint training, first-order gradients, and Adam of torch."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, MetaNMT
from lightning_meta.backbones import MLP, Translator
from lightning_meta.core import SGD, Batch, Episode
from lightning_meta.core.sentences import END
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicBLEU, EpisodicWordAccuracy
from tests.conftest import Make, blobs, ciphers, meta_gradient, random_sentences, slope_along
from tests.modules.test_episodic import trainer


def translator(**overrides: Any) -> Translator:
    return Translator(**(dict(vocabulary=11, length=9, width=8, heads=2) | overrides))


def nmt(**overrides: Any) -> MetaNMT:
    settings = dict(backbone=translator(), inner_lr=0.02, inner_steps=2, metric=EpisodicWordAccuracy())
    return MetaNMT(**(settings | overrides))


TRANSLATORS: dict[str, Make] = {"meta_nmt": nmt}
VARIANTS: dict[str, Make] = {}


def tasks_of(tasks: Episode) -> Iterator[tuple[Batch, Batch]]:
    for t in range(len(tasks.support.x)):
        yield tuple(Batch(part.x[t], part.y[t]) for part in tasks)


def loss_of(network: Translator, batch: Batch, params: dict[str, Tensor] | None = None) -> Tensor:
    """Word by word."""
    logits = functional_call(network, params or {}, (batch.x, batch.y))
    words = [
        F.cross_entropy(logits[q, place], batch.y[q, place])
        for q in range(len(batch.y))
        for place in range(batch.y.shape[1])
        if batch.y[q, place] != 0
    ]
    return torch.stack(words).mean()


def test_without_inner_steps_it_is_joint_training() -> None:
    """The gradient is that of the mean over languages, of one translator for all of them."""
    module, tasks = nmt(inner_steps=0).double(), random_sentences()
    found = meta_gradient(module, tasks)
    losses = [loss_of(module.backbone, query) for _, query in tasks_of(tasks)]
    names, values = zip(*module.backbone.named_parameters(), strict=True)
    truth = torch.autograd.grad(torch.stack(losses).mean(), values)
    assert {f"backbone.{name}" for name in names} == set(found)
    for name, gradient in zip(names, truth, strict=True):
        torch.testing.assert_close(found[f"backbone.{name}"], gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("moves", ["embeddings", "encoder", "all"])
def test_the_meta_gradient_is_the_gradient_where_adam_of_torch_has_led(moves: str) -> None:
    """Equation 4 of the paper and the remark below it, by a copy of the translator that torch.optim.Adam adapts."""
    module, tasks = nmt(moves=moves).double(), random_sentences()
    found = meta_gradient(module, tasks)
    moved = {
        "embeddings": lambda name: name == "source.weight",
        "encoder": lambda name: name == "source.weight" or name.startswith("encoder."),
        "all": lambda name: True,
    }[moves]
    total = {name: torch.zeros_like(value) for name, value in module.backbone.named_parameters()}
    for support, query in tasks_of(tasks):
        copy = translator().double()
        copy.load_state_dict(module.backbone.state_dict())
        adam = torch.optim.Adam([value for name, value in copy.named_parameters() if moved(name)], lr=0.02)
        for _ in range(2):
            adam.zero_grad()
            loss_of(copy, support).backward()
            adam.step()
        copy.zero_grad()
        loss_of(copy, query).backward()
        for name, value in copy.named_parameters():
            total[name] += value.grad / len(tasks.support.x)
    for name, gradient in total.items():
        torch.testing.assert_close(found[f"backbone.{name}"], gradient, rtol=1e-5, atol=1e-8)


def test_second_order_is_there_when_asked_for() -> None:
    """Against central differences of the query loss along a random direction."""
    module, tasks = nmt(first_order=False, inner_optimizer=SGD, inner_lr=0.5, moves="all").double(), random_sentences()
    exact = meta_gradient(module, tasks)
    directions = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    slope = sum((exact[name] * direction).sum().item() for name, direction in directions.items())
    assert slope_along(module, tasks, directions, 1e-5) == pytest.approx(slope, rel=1e-5)
    module.first_order = True
    first = meta_gradient(module, tasks)
    assert sum((first[n] * d).sum().item() for n, d in directions.items()) != pytest.approx(slope, rel=1e-3)


@torch.no_grad()
def test_translations_are_the_likeliest_next_words_given_those_before() -> None:
    """By the pass over whole sentences, word after word; padding follows the end."""
    network, x = translator().double(), random_sentences().query.x[0]
    for value in network.parameters():
        torch.nn.init.normal_(value)
    written = torch.zeros(len(x), 9, dtype=torch.long)
    for place in range(9):
        written[:, place] = network(x, written)[:, place].argmax(-1)
    found = network(x)
    for row, whole in zip(found.tolist(), written.tolist(), strict=True):
        end = whole.index(END) + 1 if END in whole else 9
        assert row == whole[:end] + [0] * (9 - end)
    assert len(set(map(tuple, found.tolist()))) > 1


@torch.no_grad()
def test_padding_and_words_to_come_change_nothing() -> None:
    network, (x, y) = translator(length=14).double(), random_sentences().query
    logits = network(x[0], y[0])
    longer = network(F.pad(x[0], (0, 5)), F.pad(y[0], (0, 5)))
    torch.testing.assert_close(longer[:, :9], logits, rtol=1e-10, atol=1e-12)
    other = y[0].clone()
    other[:, 4:] = 7
    torch.testing.assert_close(network(x[0], other)[:, :5], logits[:, :5], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(network(x[0], other)[:, 5:], logits[:, 5:])


def test_adaptation_moves_what_it_is_told_to() -> None:
    support = next(tasks_of(random_sentences()))[0]
    for moves, count in (("embeddings", 1), ("encoder", 15), ("all", None)):
        module = nmt(moves=moves)
        phi = module.adapt(support)
        assert len(phi) == (count or len(list(module.backbone.parameters())))
        assert not torch.equal(phi["source.weight"], module.backbone.source.weight)
        unseen = [word for word in range(11) if word not in support.x]
        assert torch.equal(phi["source.weight"][unseen], module.backbone.source.weight[unseen])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nmt(moves="decoder"), "moves=decoder must be one of embeddings, encoder, all"),
        (lambda: nmt(inner_steps=-1), "inner_steps=-1 must be at least 0"),
        (lambda: Translator(), "Translator needs vocabulary.*None and None"),
        (lambda: translator(heads=3), "width=8 must be a multiple of heads=3"),
    ],
)
def test_what_cannot_be_is_refused(make: Make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_other_data_and_sizes_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"MetaNMT translates sentences.*Blobs are \(1, 16, 16\).*take Ciphers"):
        trainer().fit(nmt(), datamodule=blobs())
    with pytest.raises(ConfigError, match=r"length=9 and vocabulary=11, but Ciphers has rows of 12 and 13 ids"):
        trainer().fit(nmt(), datamodule=ciphers(vocabulary=13, length=12))
    with pytest.raises(ConfigError, match="sentences for MetaNMT"):
        trainer().fit(MAML(MLP(9), n_way=2), datamodule=ciphers())


@pytest.mark.skipif(find_spec("sacrebleu") is not None, reason="sacrebleu is installed")
def test_without_sacrebleu_its_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"EpisodicBLEU needs sacrebleu>=.*lightning_meta\[language\]"):
        MetaNMT(translator())


def test_bleu_is_the_default_where_it_can_be_measured() -> None:
    pytest.importorskip("sacrebleu")
    assert isinstance(MetaNMT(translator()).metric, EpisodicBLEU)
