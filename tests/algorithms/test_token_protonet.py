"""Prototypes of tags (token_protonet) against loops over words, and on languages that are solved by them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, ProtoNet, TokenProtoNet
from lightning_meta.backbones import Backbone, WordWindows
from lightning_meta.core import Batch
from lightning_meta.core.tags import NO_WORD, nats_per_tag
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicSpanF1
from tests.conftest import Make, blobs, conv4, made_up_entities, random_tagged
from tests.modules.test_episodic import trainer


def windows(**overrides: Any) -> WordWindows:
    return WordWindows(**(dict(vocabulary=100, embedding_dim=8, features=8) | overrides))


def tagger(**overrides: Any) -> TokenProtoNet:
    return TokenProtoNet(**(dict(backbone=windows(), n_way=9) | overrides))


def maml_tagger(**overrides: Any) -> MAML:
    settings: dict[str, Any] = dict(n_way=9, inner_lr=0.5, loss_fn=nats_per_tag, metric=EpisodicSpanF1())
    return MAML(windows(), **(settings | overrides))


TAGGERS: dict[str, Make] = {"token_protonet": tagger}


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mode", ["vmap", "loop"])
@torch.no_grad()
def test_logits_and_loss_equal_loops_over_words(distance: str, mode: str) -> None:
    module, tasks = tagger(distance=distance, task_mode=mode).double().eval(), random_tagged(k_shot=2)
    out = module.play(tasks)
    skipped = 0
    for t in range(3):
        features: dict[int, list[Tensor]] = {}
        for row_LD, tags_L in zip(module.backbone(tasks.support.x[t]), tasks.support.y[t], strict=True):
            for feature, tag in zip(row_LD, tags_L.tolist(), strict=True):
                if tag != NO_WORD:
                    features.setdefault(tag, []).append(feature)
        means = {tag: torch.stack(found).mean(0) for tag, found in features.items()}
        losses = []
        for q, row_LD in enumerate(module.backbone(tasks.query.x[t])):
            for place, tag in enumerate(tasks.query.y[t, q].tolist()):
                scores = torch.full((9,), -torch.inf).double()
                for c, mean in means.items():
                    cosine = F.cosine_similarity(row_LD[place], mean, dim=0)
                    scores[c] = 10 * cosine if distance == "cosine" else -(row_LD[place] - mean).square().sum()
                torch.testing.assert_close(out.preds[t, q, place], scores, rtol=1e-5, atol=1e-9)
                if tag in means:
                    losses.append(-scores.log_softmax(0)[tag])
                skipped += tag != NO_WORD and tag not in means
        torch.testing.assert_close(out.loss[t], torch.stack(losses).mean(), rtol=1e-6, atol=1e-9)
    assert skipped, "of some tag the support set has no word"


class Shapes(Backbone):
    """The feature of a word is which of 9 tags its first part names."""

    out_features = 9

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x[..., 0], 9).float()


@torch.no_grad()
def test_where_words_say_their_tags_all_spans_are_found_and_padding_is_in_no_mean() -> None:
    """The part of padding is 0, like that of words outside; were it in a mean, that of `O` would still be right, but
    none of its distance."""
    tags = torch.tensor([[0, 1, 2, 0, 7, 8], [0, 3, 4, NO_WORD, NO_WORD, NO_WORD], [5, 6, 6, 0, NO_WORD, NO_WORD]])
    x = torch.where(tags == NO_WORD, 3, tags)[..., None]  # padding looks like the first word of an organisation
    module = tagger(backbone=Shapes()).eval()
    adapted = module.adapt(Batch(x, tags))
    torch.testing.assert_close(adapted.head.means, torch.eye(9))
    out = module.query_loss(adapted, Batch(x, tags))
    assert module.metric.per_episode(out.preds[None], tags[None]).item() == 1
    assert torch.equal(out.preds.argmax(-1)[tags != NO_WORD], tags[tags != NO_WORD])
    assert torch.equal(module.predict(adapted, x), out.preds)


def test_maml_on_tags_is_the_textbook_double_loop() -> None:
    """Two inner steps over the words of a language, second order, by torch.autograd."""
    from torch.func import functional_call

    module, tasks = maml_tagger(inner_steps=2).double(), random_tagged()
    module.play(tasks).loss.mean().backward()
    found = {name: p.grad for name, p in module.learner.named_parameters()}
    theta, losses = dict(module.learner.named_parameters()), []

    def loss_of(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(module.learner, params, x)
        words = [-logits[i, j].log_softmax(0)[y[i, j]] for i, j in (y != NO_WORD).nonzero().tolist()]
        return torch.stack(words).mean()

    for t in range(3):
        phi = theta
        for _ in range(2):
            grads = torch.autograd.grad(
                loss_of(phi, tasks.support.x[t], tasks.support.y[t]), [*phi.values()], create_graph=True
            )
            phi = {name: p - 0.5 * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        losses.append(loss_of(phi, tasks.query.x[t], tasks.query.y[t]))
    for (name, _), truth in zip(theta.items(), torch.autograd.grad(sum(losses) / 3, [*theta.values()]), strict=True):
        torch.testing.assert_close(found[name], truth, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (
            lambda: tagger(backbone=conv4()),
            blobs,
            r"tags the words of sentences, but inputs of Blobs are \(1, 16, 16\)",
        ),
        (lambda: tagger(n_way=5), made_up_entities, "9-way, but TokenProtoNet has n_way=5 outputs"),
        (lambda: ProtoNet(windows()), made_up_entities, "names one class for each input, but the targets of MadeUp"),
        (
            lambda: tagger(backbone=windows(vocabulary=20)),
            made_up_entities,
            "vectors for vocabulary=20 ids, but MadeUpEntities has 100",
        ),
        (
            lambda: ProtoNet(windows()),
            blobs,
            "WordWindows is for sentences with a tag for each word, but Blobs has none",
        ),
    ],
)
def test_what_cannot_be_tagged_is_refused(module: Make, data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer().fit(module(), datamodule=data())
