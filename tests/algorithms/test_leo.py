"""LEO against its authors' equations in loops, and the parts of its objective against their definitions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import LEO
from lightning_meta.algorithms.initialize.leo import correlation_penalty
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, blobs, conv4, meta_gradient

CASES: dict[str, Make] = {"leo": lambda: LEO(conv4(), n_way=3, latent_dim=4, inner_steps=2, finetune_steps=1)}
WAY, LATENT, FEATURES = 3, 4, 6
KL, STOP_GRADIENT, ORTHOGONALITY = 0.3, 0.7, 0.2


def leo(**overrides: Any) -> LEO:
    torch.manual_seed(0)
    settings = dict(
        n_way=WAY, latent_dim=LATENT, inner_steps=1, inner_lr=0.25, finetune_steps=1, finetune_lr=0.1,
        kl_weight=KL, stop_gradient_weight=STOP_GRADIENT, orthogonality_weight=ORTHOGONALITY,
    )  # fmt: skip
    return LEO(conv4(), **(settings | overrides)).double()


def fake_noise(x: Tensor) -> Tensor:
    """Stands in for standard normal noise, in the algorithm and in the direct implementation."""
    return torch.cos(10 * x).detach()


def directly(module: LEO, tasks: Episode, t: int, noise: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Training loss and plain query loss of task `t` after one latent and one fine-tuning step.

    Takes nothing but weights from the module. Loops over pairs, classes and examples; inner gradients by autograd. As
    in the authors' code, features have length 1, a class has a copy of its code for each of its K examples, its score
    is the mean over the copies' weights, and the gradient is that of the sum over examples.
    """
    encoder, decoder = module.encoder.weight, module.decoder.weight
    first, second, third = (module.relation[i].weight for i in (0, 2, 4))
    latent_rates, weight_rates = module.latent_optimizer.rates["z"], module.finetune_optimizer.rates["w"]
    x, query_x = (
        torch.stack([v / (v @ v).sqrt() for v in module.backbone(part.x[t])]) for part in (tasks.support, tasks.query)
    )
    labels, query_labels = tasks.support.y[t].tolist(), tasks.query.y[t].tolist()
    shot = len(labels) // WAY

    def draw(mean: Tensor, std: Tensor) -> Tensor:
        return mean + std * noise(mean)

    def decoded(codes: list[Tensor]) -> list[Tensor]:
        weights = []
        for z in codes:
            both = decoder @ z
            glorot_std = (2 / (FEATURES + WAY)) ** 0.5
            weights.append(draw(both[:FEATURES], glorot_std * torch.exp(both[FEATURES:])))
        return weights

    def loss(weights: list[Tensor], x: Tensor, labels: list[int]) -> Tensor:
        terms = []
        for features, label in zip(x, labels, strict=True):
            scores = [w @ features for w in weights]
            logits = torch.stack([sum(scores[n * shot : (n + 1) * shot]) / shot for n in range(WAY)])
            terms.append(logits.exp().sum().log() - logits[label])
        return sum(terms)

    means, stds = [], []
    for n in range(WAY):
        total, pairs = torch.zeros(2 * LATENT, dtype=torch.float64), 0
        for own, label in zip(x, labels, strict=True):
            for other in x if label == n else []:
                pair = torch.cat([encoder @ own, encoder @ other])
                total, pairs = total + third @ torch.relu(second @ torch.relu(first @ pair)), pairs + 1
        assert pairs == shot * len(labels)
        means.append(total[:LATENT] / pairs)
        stds.append(torch.exp(total[LATENT:] / pairs))
    start = [draw(mean, std) for mean, std in zip(means, stds, strict=True) for _ in range(shot)]
    grads = torch.autograd.grad(loss(decoded(start), x, labels), start, create_graph=True)
    codes = [z - latent_rates * g for z, g in zip(start, grads, strict=True)]
    weights = decoded(codes)
    grads = torch.autograd.grad(loss(weights, x, labels), weights, create_graph=True)
    weights = [w - weight_rates * g for w, g in zip(weights, grads, strict=True)]
    plain = loss(weights, query_x, query_labels) / len(query_labels)

    kl = sum((m**2 + s**2 - 1).sum() / 2 - s.log().sum() for m, s in zip(means, stds, strict=True)) / (WAY * LATENT)
    moved = sum(((z.detach() - z0) ** 2).mean() for z, z0 in zip(codes, start, strict=True)) / len(codes)
    correlation = torch.zeros((), dtype=torch.float64)
    for i in range(LATENT):
        for j in range(LATENT):
            cosine = F.cosine_similarity(decoder[:, i], decoder[:, j], dim=0)
            correlation = correlation + (cosine - float(i == j)) ** 2 / LATENT**2
    return plain + KL * kl + STOP_GRADIENT * moved + ORTHOGONALITY * correlation, plain


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_one_step_equals_the_authors_equations(mode: str, episodes: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.randn_like", fake_noise)
    module = leo(task_mode=mode)
    gradient = meta_gradient(module, episodes)
    assert set(gradient) == {name for name, _ in module.named_parameters()}
    losses = torch.stack([directly(module, episodes, t, fake_noise)[0] for t in range(len(episodes.support.x))])
    torch.testing.assert_close(module.play(episodes).loss, losses, rtol=1e-10, atol=1e-12)
    module.zero_grad()
    losses.mean().backward()
    expected = {name: p.grad for name, p in module.named_parameters()}
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)
    for name, value in expected.items():
        assert value.abs().max() > 1e-6, name  # the learned rates among them


def test_evaluation_takes_means_and_reports_the_plain_loss(episodes: Episode) -> None:
    """No noise, no penalties, no dropout."""
    module = leo(dropout=0.5).eval()
    plain = torch.stack([directly(module, episodes, t, torch.zeros_like)[1] for t in range(len(episodes.support.x))])
    torch.testing.assert_close(module.play(episodes).loss, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_evaluation_is_deterministic_and_training_is_not(mode: str, episodes: Episode) -> None:
    module = leo(task_mode=mode)
    assert not torch.allclose(module.play(episodes).loss, module.play(episodes).loss, rtol=1e-3)
    module.eval()
    torch.testing.assert_close(module.play(episodes), module.play(episodes), rtol=0, atol=0)


def test_a_step_that_carries_a_code_far_away_leaves_loss_and_gradient_finite(
    episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise of standard deviation e^x has a gradient as large, by which the next step goes; without a limit to nan."""
    module = leo(inner_steps=5, inner_lr=1.0, finetune_steps=5).float()
    module.decoder.weight.data *= 10
    tasks = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, episodes)

    def finite() -> bool:
        torch.manual_seed(0)
        gradient = meta_gradient(module, tasks)
        return all(g.isfinite().all() for g in gradient.values()) and bool(module.play(tasks).loss.isfinite().all())

    assert finite()
    monkeypatch.setattr("lightning_meta.algorithms.initialize.leo.MOST_LOG_STD", torch.inf)
    assert not finite()


def test_every_task_draws_its_own_noise(episodes: Episode) -> None:
    same = Episode(*(Batch(*(leaf[:1].expand_as(leaf) for leaf in batch)) for batch in episodes))
    loss = leo(task_mode="vmap").play(same).loss
    assert len(set(loss.tolist())) == len(loss)


def test_dropout_acts_on_features_in_training(episodes: Episode) -> None:
    module, features = leo(dropout=0.5), 1 + torch.rand(50, FEATURES, dtype=torch.float64)
    kept = features / features.square().sum(1, keepdim=True).sqrt()
    dropped = module.prepare(features)
    zeros = dropped == 0
    assert 0.4 < zeros.double().mean() < 0.6
    torch.testing.assert_close(dropped[~zeros], 2 * kept[~zeros])
    torch.testing.assert_close(module.eval().prepare(features), kept)


def test_dropout_is_drawn_again_for_every_use_of_the_features(
    episodes: Episode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the authors' code: for the encoder, for each step's loss, and for the query set."""
    masked: list[int] = []

    def dropout(x: Tensor, p: float, training: bool) -> Tensor:
        masked.append(len(x))
        assert (p, training) == (0.5, True)
        return x

    module = leo(dropout=0.5, inner_steps=3, finetune_steps=2, task_mode="loop")
    monkeypatch.setattr("torch.nn.functional.dropout", dropout)
    module.play(Episode(*(Batch(*(leaf[:1] for leaf in batch)) for batch in episodes)))
    assert len(masked) == 1 + 3 + 2 + 1


def test_codes_are_one_per_class_and_smaller_than_the_weights_they_stand_for(episodes: Episode) -> None:
    module = leo()
    codes = module.encode(module.backbone(episodes.support.x[0]), episodes.support.y[0])
    assert codes.mean.shape == codes.std.shape == (WAY, LATENT)
    assert module.decode(codes.mean).shape == (WAY, FEATURES)
    assert LATENT < FEATURES


def test_a_code_depends_on_the_other_classes(episodes: Episode) -> None:
    """The relation network compares: other classes beside it change a class's code, unlike a class mean."""
    module, labels = leo(), torch.arange(WAY)
    features = torch.rand(WAY, FEATURES, dtype=torch.float64)
    others = torch.cat([features[:1], torch.rand(WAY - 1, FEATURES, dtype=torch.float64)])
    assert (module.encode(features, labels).mean[0] - module.encode(others, labels).mean[0]).abs().max() > 1e-3


def test_adaptation_in_latent_space_lowers_the_support_loss(episodes: Episode) -> None:
    on_support = Episode(episodes.support, episodes.support)
    losses = [leo(eval_inner_steps=k, finetune_steps=0).eval().play(on_support).loss.mean() for k in (0, 1, 5)]
    assert losses[0] > losses[1] > losses[2]


def test_fine_tuning_lowers_the_support_loss_further(episodes: Episode) -> None:
    on_support = Episode(episodes.support, episodes.support)
    losses = [leo(finetune_steps=k).eval().play(on_support).loss.mean() for k in (0, 1, 5)]
    assert losses[0] > losses[1] > losses[2]


def test_the_stop_gradient_penalty_trains_the_encoder_through_the_first_codes_only(episodes: Episode) -> None:
    """Adapted codes depend on decoder and learned rates; a gradient there would have come through them."""
    module = leo()
    module.adapt(Batch(episodes.support.x[0], episodes.support.y[0])).head.penalties["stop_gradient"].backward()
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"backbone", "encoder", "relation"}


def test_the_correlation_penalty_is_zero_for_orthogonal_rows_of_any_length() -> None:
    orthogonal, _ = torch.linalg.qr(torch.randn(LATENT, LATENT, dtype=torch.float64))
    scale = torch.arange(1.0, LATENT + 1, dtype=torch.float64)[:, None]
    assert correlation_penalty(scale * orthogonal) < 1e-30
    equal_rows = torch.ones(LATENT, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(correlation_penalty(equal_rows), torch.tensor(1 - 1 / LATENT, dtype=torch.float64))


def test_a_class_moves_as_far_whatever_the_number_of_classes() -> None:
    """From weights of 0, and with features at right angles, one step takes a class to lr (1 - 1 / N) x of its own x."""
    for n_way in (2, 3, 6):
        module = leo(n_way=n_way, inner_steps=0, finetune_lr=0.25).eval()
        torch.nn.init.zeros_(module.decoder.weight)
        features = torch.eye(n_way, FEATURES, dtype=torch.float64)
        weights = module.adapt_head(Batch(features, torch.arange(n_way))).weights
        assert weights[0, 0].item() == pytest.approx(0.25 * (1 - 1 / n_way), rel=1e-9)


def test_gradients_are_clipped_by_number_and_then_by_the_norm_of_each_tensor() -> None:
    """As in the authors' code, not by the norm of all tensors together. Seen in the step of plain descent at rate 1."""
    module = leo(optimizer=partial(torch.optim.SGD, lr=1.0)).float()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    data = blobs()
    data.setup("fit")
    torch.manual_seed(0)
    gradient = {name: 100 * g for name, g in meta_gradient(module, data.dataset("train").__getitems__([0])).items()}
    for name, p in module.named_parameters():
        p.register_hook(lambda g, name=name: gradient[name])
    trainer(gradient_clip_val=0.1).fit(module, datamodule=data)
    norms = []
    for name, p in module.named_parameters():
        clipped = gradient[name].clamp(-0.1, 0.1)
        norms.append(clipped.norm())
        expected = clipped * min(1.0, 0.1 / norms[-1].item())
        torch.testing.assert_close(before[name] - p.detach(), expected, rtol=1e-3, atol=1e-5)
    assert sum(norm > 0.1 for norm in norms) >= 2, "not the norm of all together"
    with_algorithm = trainer(gradient_clip_val=0.1, gradient_clip_algorithm="norm")
    before = [p.detach().clone() for p in module.parameters()]
    with_algorithm.fit(module, datamodule=blobs())
    step = torch.cat([(a - b).flatten() for a, b in zip(before, module.parameters(), strict=True)])
    assert step.norm().item() == pytest.approx(0.1, rel=1e-3)


def trainer(**overrides: Any) -> pl.Trainer:
    return pl.Trainer(
        **overrides, max_steps=1, limit_val_batches=0, accelerator="cpu", inference_mode=False, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_training_logs_the_penalties() -> None:
    trained = trainer()
    trained.fit(leo().float(), datamodule=blobs())
    assert {"train/kl", "train/stop_gradient", "train/orthogonality"} <= set(trained.callback_metrics)


def test_way_mismatch_names_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"3-way.*n_way=5"):
        trainer().fit(LEO(conv4(), n_way=5), datamodule=blobs())


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="finetune_steps=-1"):
        leo(finetune_steps=-1)
