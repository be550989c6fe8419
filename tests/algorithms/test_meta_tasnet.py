"""Meta-TasNet and what it is compared with (meta_tasnet), against the formulas written out for one voice at a time."""

from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import IndependentTasNet, MetaTasNet, MultiTaskTasNet, ProtoNet
from lightning_meta.backbones.conv_tasnet import loudness
from lightning_meta.core import Batch
from lightning_meta.core.sound import si_sdr
from lightning_meta.errors import ConfigError
from lightning_meta.modules import SeparationModule
from tests.conftest import Make, blobs, chorales, conv4, random_mixtures

SIZES = {"voices": 4, "window": 16, "channels": 4, "hidden": 6, "blocks": 2, "repeats": 1}


def stirred(**settings: object) -> MetaTasNet:
    """As after some training: what is generated is no longer zero."""
    module = MetaTasNet(**SIZES | settings, rank=2, embedding=3)
    for head in module.generated.heads.values():
        nn.init.normal_(head.weight, std=0.2)
    return module


SEPARATORS: dict[str, Make] = {
    "meta_tasnet": stirred,
    "independent_tasnet": lambda: IndependentTasNet(**SIZES),
    "multi_task_tasnet": lambda: MultiTaskTasNet(**SIZES),
}


def first(part: Batch) -> Batch:
    return Batch(part.x[0], part.y[0])


@torch.no_grad()
def test_weights_are_generated_and_applied_as_by_hand() -> None:
    """Kernel by kernel: the shared one, and what the embedding of a voice says of it through the bottleneck."""
    module, tasks = stirred().double().eval(), random_mixtures()
    support, query = first(tasks.support), first(tasks.query)
    found = module.query_loss(module.adapt(support), query).preds
    coefficients, level = module.taken_apart(query.x)
    scores = []
    for voice in range(4):
        alone, _ = module.taken_apart(support.y[:, voice])
        embedding = torch.stack([module.listener(loudness(one[None]))[0] for one in alone]).mean(0)
        own = MetaTasNet(**SIZES).double().extractor
        for name, kernel in module.extractor.named_parameters():
            head = module.generated.heads[name.replace(".", "/")].weight
            written = (head @ (module.generated.code.weight @ embedding)).view(kernel.shape)
            own.get_parameter(name).copy_(kernel + written)
        scores.append(own(loudness(coefficients)))
    masks = torch.stack(scores).exp() / torch.stack(scores).exp().sum(0)
    for voice in range(4):
        sound = module.filters.decode(coefficients * masks[voice][..., None, :], query.x.shape[-1]) * level
        torch.testing.assert_close(found[:, voice], sound, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_of_full_rank_it_can_be_any_network_for_each_voice() -> None:
    """With one less than there are voices: as many weights as `IndependentTasNet` has, and those may be its weights."""
    module = MetaTasNet(**SIZES, embed="learned", embedding=3, rank=3).double()
    other = IndependentTasNet(**SIZES).double()
    other.filters.load_state_dict(module.filters.state_dict())
    module.embeddings.copy_(torch.eye(4)[:, 1:])
    module.generated.code.weight.copy_(torch.eye(3))
    for name, kernel in module.extractor.named_parameters():
        base, *further = (one.get_parameter(name) for one in other.extractors)
        kernel.copy_(base)
        head = module.generated.heads[name.replace(".", "/")]
        head.weight.copy_(torch.stack([(one - base).flatten() for one in further], 1))
    tasks = random_mixtures()
    torch.testing.assert_close(module.play(tasks).preds, other.play(tasks).preds, rtol=1e-9, atol=1e-11)
    written = [*module.extractor.parameters(), *(head.weight for head in module.generated.heads.values())]
    assert sum(map(Tensor.numel, written)) == sum(map(Tensor.numel, other.extractors.parameters()))


def test_the_three_that_are_compared_are_of_one_size() -> None:
    sizes = [sum(p.numel() for p in make().parameters()) for make in (MetaTasNet, IndependentTasNet, MultiTaskTasNet)]
    assert max(sizes) < 1.05 * min(sizes)


@pytest.mark.parametrize("make", SEPARATORS.values(), ids=SEPARATORS)
@torch.no_grad()
def test_voices_add_up_to_the_mixture_and_follow_its_level(make: Callable[[], SeparationModule]) -> None:
    module, tasks = make().double().eval(), random_mixtures()
    adapted, x = module.adapt(first(tasks.support)), tasks.query.x[0]
    found = module.predict(adapted, x)
    torch.testing.assert_close(found.sum(1), x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.predict(adapted, 37 * x), 37 * found, rtol=1e-6, atol=1e-9)
    assert not module.predict(adapted, torch.zeros_like(x)).any()


@torch.no_grad()
def test_voices_follow_the_order_of_the_support_set() -> None:
    """The support set alone says which voice is which."""
    module, tasks = stirred().double().eval(), random_mixtures()
    support, x = first(tasks.support), tasks.query.x[0]
    found = module.predict(module.adapt(support), x)
    turned = module.predict(module.adapt(Batch(support.x, support.y[:, [2, 0, 3, 1]])), x)
    torch.testing.assert_close(turned, found[:, [2, 0, 3, 1]], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(turned, found, atol=1e-3)


@torch.no_grad()
def test_silent_voices_are_left_out_of_the_loss() -> None:
    module, tasks = stirred().double().eval(), random_mixtures()
    query = first(tasks.query)
    query.y[0, 1] = 0
    out = module.query_loss(module.adapt(first(tasks.support)), query)
    there = [(q, v) for q in range(len(query.x)) for v in range(4) if (q, v) != (0, 1)]
    ratios = torch.stack([si_sdr(out.preds[q, v], query.y[q, v]) for q, v in there])
    torch.testing.assert_close(out.loss, -ratios.mean())
    everywhere = module.query_loss(module.adapt(first(tasks.support)), Batch(query.x, torch.zeros_like(query.y)))
    assert everywhere.loss == 0


def test_it_learns_which_voice_is_which_from_the_support_set() -> None:
    """Two tones, high and low, whose places change from task to task: no learner by place can do better than a half."""
    torch.manual_seed(0)
    time = torch.arange(256) / 256
    tones = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (12, 64)])

    def batch(tasks: int, order: list[int]) -> Batch:
        y = (tones[order] * torch.empty(tasks, 2, 2, 1).uniform_(0.5, 1)).float()
        return Batch(y.sum(2), y)

    settings = SIZES | {"voices": 2, "window": 32}
    improved = []
    for module in (MetaTasNet(**settings, rank=2), MultiTaskTasNet(**settings)):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(80):
            module.zero_grad()
            orders = ([0, 1], [1, 0])
            sum(module.query_loss(module.adapt(first(batch(1, o))), first(batch(1, o))).loss for o in orders).backward()
            optimizer.step()
        support, query = batch(1, [1, 0]), batch(1, [1, 0])
        preds = module.eval().predict(module.adapt(first(support)), query.x[0])
        improved.append(module.metric.per_episode(preds[None], query.y).item())
    assert improved[0] > 15 > 8 > improved[1]


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (lambda: MetaTasNet(**SIZES), blobs, r"apart into voices, but Blobs has inputs of the shape \(1, 16, 16\)"),
        (lambda: MetaTasNet(**SIZES | {"voices": 3}), chorales, "voices=3, but the mixtures of VoiceMixtures have 4"),
        (
            lambda: MetaTasNet(voices=4, window=8192), chorales,
            "mixtures of 4800 samples are shorter than the window=8192",
        ),
        (lambda: ProtoNet(conv4()), chorales, "the backbone expects inputs of shape"),
    ],
)  # fmt: skip
def test_data_of_another_kind_are_refused(make: Make, data: Make, message: str, tmp_path) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, inference_mode=False, logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        trainer.fit(make(), datamodule=data())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"voices": 1}, "voices=1 must be at least 2"),
        ({"window": 15}, "window=15 samples are shifted by a half; take an even number"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"hidden": 0}, "hidden=0 must be at least 1"),
    ],
)
def test_sizes_that_make_no_network_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetaTasNet(**SIZES | settings)
