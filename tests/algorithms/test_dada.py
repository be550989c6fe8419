"""DADA: its coins, its gradient, and that it finds by how much held-out images are moved."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import DADA
from lightning_meta.backbones import MLP
from lightning_meta.core import Momentum
from lightning_meta.core.augment import LARGEST, MOVES
from lightning_meta.core.episode import Split
from lightning_meta.datamodules import ClassificationDataModule, HeldOutImages
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import first_trials, held_out, network, outer_gradient

BILEVEL = {
    "dada": lambda **kw: DADA(network(), 4, **kw),
    "dada-probabilities": lambda **kw: DADA(network(), 4, **({"probability": 0.3} | kw)),
}


def test_a_coin_is_the_relaxed_one() -> None:
    """The larger of two scores with Gumbel noise, softened by the temperature, is a sigmoid of logistic noise."""
    u = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gumbel = -(-u.log()).log()
    score = torch.tensor(0.3).logit()
    first = (torch.stack([score + gumbel[0], gumbel[1]]) / 0.5).softmax(0)[0]
    module = DADA(network(), 4, probability=0.3, temperature=0.5)
    coins = module.coins(100_000 // 8, torch.tensor(5), torch.float64)
    assert coins.shape == (12_500, 8)
    for part in (0.25, 0.5, 0.75):
        assert coins.quantile(part).item() == pytest.approx(first.quantile(part).item(), abs=0.01)
    assert (coins > 0.5).double().mean().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("part", ["raw_magnitudes", "raw_probabilities"])
def test_the_gradient_is_that_of_finite_differences(part: str) -> None:
    """Of the held-out loss, through two unrolled steps; bilinear sampling has kinks, which so small steps miss."""
    torch.manual_seed(0)
    module = DADA(network(), 4, probability=0.4, magnitude=0.3).double().train()
    trial = first_trials(held_out(truncation=2, meta_batch_size=1))
    gradient = outer_gradient(module, trial)[part]
    raw = module.get_parameter(part)
    for k in (0, 2, 5, 7):
        values = []
        for h in (1e-6, -1e-6):
            with torch.no_grad():
                raw[k] += h
                values.append(module.measure(trial)[0]["loss"].mean().item())
                raw[k] -= h
        assert gradient[k].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-9)


class Patterns(ClassificationDataModule):
    """A smooth random pattern for each of six classes, dark at the border, with a little noise."""

    def load_source(self, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed(0)
        grain = torch.rand(6, 1, 6, 6, generator=generator)
        patterns = F.pad(F.interpolate(grain, size=10, mode="bilinear"), (3, 3, 3, 3))[:, None]
        images = 0.9 * patterns + 0.1 * torch.rand(6, 60, 1, 16, 16, generator=generator)
        return ClassBank.from_classes((images * 255).to(torch.uint8))


@pytest.mark.parametrize("degrees", [30.0, pytest.param(45.0, marks=pytest.mark.slow)])
def test_it_finds_by_how_much_held_out_images_are_turned(degrees: float) -> None:
    """From 6 degrees it comes near to what is true, and no other move comes up."""
    torch.manual_seed(0)
    data = HeldOutImages(
        Patterns(), support_per_class=4, held_out_per_class=40, val_per_class=2, test_per_class=2, batch_size=24,
        truncation=4, moved={"rotate": degrees}, steps_per_epoch=150, val_episodes=1, test_episodes=1,
    )  # fmt: skip
    module = DADA(
        MLP(256, [32]), 6, probability=1.0, inner_lr=0.1, inner_optimizer=Momentum,
        optimizer=partial(torch.optim.Adam, lr=0.05),
    )  # fmt: skip
    run = pl.Trainer(
        accelerator="cpu", max_steps=150, inference_mode=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0,
    )  # fmt: skip
    run.fit(module, datamodule=data)
    found = dict(zip(LARGEST, module.magnitudes.tolist(), strict=True))
    assert found["rotate"] == pytest.approx(degrees, rel=0.25)
    assert all(found[name] < 0.25 * LARGEST[name] for name in MOVES if name != "rotate")


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="probability=0 must be in"):
        DADA(network(), 4, probability=0)
