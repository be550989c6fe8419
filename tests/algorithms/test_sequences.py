"""Language models that adapt to a document or a piece, against what can be known of them exactly."""

from math import log

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, DynamicEvaluation, TrainOnEverything
from lightning_meta.backbones import TokenLSTM, TokenTransformer
from lightning_meta.core import Batch
from lightning_meta.core.sentences import nats_per_token
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules import Chorales
from lightning_meta.datamodules.sequences.chorales import FIRST_PITCH
from lightning_meta.datamodules.sequences.music import transposed
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicNatsPerToken
from tests.conftest import blobs, meta_gradient, next_tokens, random_sequences, switched_ciphers, topics
from tests.modules.test_episodic import trainer

MUSIC = {"vocabulary": 64, "length": 16}


def chorales(**overrides: object) -> Chorales:
    settings: dict[str, object] = dict(pieces=[24, 4, 8], bars=4, k_shot=8, n_query=4, length=16)
    return Chorales(**(settings | dict(meta_batch_size=8, val_episodes=4, test_episodes=8) | overrides))


def test_without_inner_steps_maml_is_the_static_model() -> None:
    """Token by token, of the whole learner; and so are the gradients of a joint training."""
    tasks = random_sequences()
    module = TrainOnEverything(**next_tokens(), eval_inner_steps=0).double()
    out = module.play(tasks)
    for t, (x_QL, y_QL) in enumerate(zip(*tasks.query, strict=True)):
        nats = [
            -module.learner(x_QL[q : q + 1])[0, place].log_softmax(-1)[y_QL[q, place]]
            for q in range(len(x_QL))
            for place in range(x_QL.shape[1])
        ]
        torch.testing.assert_close(out.loss[t], torch.stack(nats).mean(), rtol=1e-12, atol=0)
    found = meta_gradient(module, tasks)
    loss = nats_per_token(module.learner(tasks.query.x.flatten(0, 1)), tasks.query.y.flatten(0, 1))
    names, params = zip(*module.named_parameters(), strict=True)
    torch.testing.assert_close(
        found, dict(zip(names, torch.autograd.grad(loss, params), strict=True)), rtol=1e-9, atol=1e-12
    )


def test_dynamic_evaluation_at_rate_zero_is_the_static_model() -> None:
    tasks = random_sequences()
    module = DynamicEvaluation(**next_tokens(), inner_lr=0.0, pull=0.3).double().eval()
    out = module.play(tasks)
    torch.testing.assert_close(out.preds.flatten(0, 1), module.learner(tasks.query.x.flatten(0, 1)))
    torch.testing.assert_close(out.logs["stream_loss"], out.logs["static_stream_loss"])
    module.inner_optimizer = type(module.inner_optimizer)(0.5)
    assert not torch.allclose(module.play(tasks).preds, out.preds, atol=1e-3)


def test_an_octave_higher_a_model_of_pitch_classes_loses_as_much() -> None:
    """Its vectors and its head do not tell octaves apart."""
    source = chorales().load_source("train")
    module = MAML(**next_tokens(TokenTransformer, vocabulary=80, length=16)).double()
    with torch.no_grad():
        for table in (module.backbone.tokens.weight, module.learner[1].weight, module.learner[1].bias):
            table[FIRST_PITCH + 12 :] = table[FIRST_PITCH + torch.arange(80 - FIRST_PITCH - 12) % 12]
    piece = Batch(source.inputs[:12], source.targets[:12])
    loss = module.loss({}, piece)
    for semitones, alike in ((12, True), (1, False), (7, False)):
        moved = module.loss({}, Batch(*(transposed(ids, semitones, FIRST_PITCH) for ids in piece)))
        assert torch.allclose(moved, loss, rtol=1e-12, atol=0) == alike


def test_no_model_is_better_than_the_entropy_of_the_source() -> None:
    """Not even one that has learned the documents that it is tested on; one that has not adapted is far from it."""
    data = topics(documents=[30, 1, 1], tokens=240, focus=1.0, k_shot=20, n_query=20)
    data.setup("fit")
    tasks = data.dataset("train").__getitems__(range(16))
    torch.manual_seed(0)
    module = MAML(**next_tokens(width=24), inner_lr=0.5, inner_steps=1, first_order=True)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
    floor = data.entropy("train")
    test = data.dataset("train").__getitems__(range(1000, 1060))
    with torch.no_grad():
        losses = module.eval().play(test).loss
    assert floor < losses.mean() < 1.6 * floor < F.cross_entropy(torch.zeros(1, 14), torch.tensor([3]))


def test_metric_counts_tokens_but_no_padding() -> None:
    preds, y = torch.randn(2, 3, 4, 5), torch.randint(1, 5, (2, 3, 4))
    y[0, 1, 2:] = PAD
    found = EpisodicNatsPerToken.per_episode(preds, y)
    for t in range(2):
        truth = F.cross_entropy(preds[t].flatten(0, 1).double(), y[t].flatten(), ignore_index=PAD)
        torch.testing.assert_close(found[t], truth)
    assert nats_per_token(preds[0], y[0]) == pytest.approx(found[0].item(), rel=1e-5)


def test_adaptation_wins_where_the_key_is_the_task() -> None:
    """On pieces that are transposed, after a joint training, against the same network without adaptation, paired."""
    data = chorales(transpose=True, test_episodes=100)
    data.setup("fit")
    torch.manual_seed(0)
    module = TrainOnEverything(**next_tokens(TokenTransformer, **(MUSIC | {"width": 32})), inner_lr=0.2)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for tasks in data.dataset("train").batches([range(16 * i, 16 * i + 16) for i in range(40)]):
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
    test, losses = data.dataset("test").__getitems__(range(100)), {}
    with torch.no_grad():
        for steps in (0, 3):
            module.eval().eval_inner_steps = steps
            losses[steps] = module.play(test).loss
    gained = losses[0] - losses[3]
    assert gained.mean() > 4 * gained.std() / 100**0.5 and gained.mean() > 0.02


def test_sentences_of_one_language_each_teach_those_that_switch() -> None:
    """Meta-transfer learning: the support set of another pair of languages is worth less, paired, on new pairs."""
    data = switched_ciphers(pairs=[500, 1, 60], k_shot=16, n_query=8)
    data.setup("fit")
    torch.manual_seed(0)
    module = MAML(**next_tokens(TokenTransformer, vocabulary=19, length=9, width=16, layers=1, heads=2), inner_lr=0.5)
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for tasks in data.dataset("train").batches([range(8 * i, 8 * i + 8) for i in range(60)]):
        optimizer.zero_grad()
        module.play(tasks).loss.mean().backward()
        optimizer.step()
    test = data.dataset("test").__getitems__(range(100))
    of_another = test._replace(support=Batch(*(leaf.roll(1, 0) for leaf in test.support)))
    with torch.no_grad():
        own, other = (module.eval().play(tasks).loss for tasks in (test, of_another))
    assert (other - own).mean() > 4 * (other - own).std() / 100**0.5
    assert data.entropy() < own.mean() < log(16)


def test_networks_and_data_that_do_not_match_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expects inputs of shape \(6,\), but Topics has \(5,\)"):
        trainer().fit(MAML(**next_tokens()), datamodule=topics(length=5))
    with pytest.raises(ConfigError, match="for vocabulary=12 token ids, but Topics has 14"):
        trainer().fit(MAML(**next_tokens(vocabulary=12)), datamodule=topics())
    with pytest.raises(ConfigError, match=r"expects inputs of shape \(6,\), but Blobs has"):
        trainer().fit(MAML(**(next_tokens() | {"n_way": 3})), datamodule=blobs())
    assert TokenLSTM(5, 4).outputs == 5
