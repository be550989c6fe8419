"""Small bilevel problems that are quick to play, for the contract and for the algorithms' own tests."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from lightning_meta.backbones import MLP, Cell
from lightning_meta.compat import tree_map
from lightning_meta.datamodules import HeldOutImages, Trial
from lightning_meta.modules import BilevelModule
from tests.conftest import SIZE, blobs

STEPS = 6


def held_out(**overrides: Any) -> HeldOutImages:
    """Twelve classes of noisy patterns, of which four are taken, with 12 examples each."""
    settings: dict[str, Any] = dict(
        classes=[0, 3, 5, 7],
        support_per_class=5,
        held_out_per_class=2,
        val_per_class=2,
        test_per_class=3,
        batch_size=6,
        flip=0.25,
        steps_per_epoch=4,
        val_episodes=2,
        test_episodes=3,
        eval_meta_batch_size=2,
    )
    return HeldOutImages(blobs(), **(settings | overrides))


def network() -> MLP:
    """Smooth, so that finite differences are those of the derivative."""
    return MLP(SIZE * SIZE, [8], activation="tanh")


def cell(**overrides: Any) -> Cell:
    """Three edges on maps of 4 x 4 places; with a 3 x 3 convolution (36 weights) on one edge at most."""
    return Cell(**(dict(channels=2, image_size=SIZE, patch=4, budget=44) | overrides))


def whole_trainings(**overrides: Any) -> HeldOutImages:
    """As `held_out`, in trainings of two steps that are judged when they end."""
    return held_out(**(dict(unroll_steps=2, truncation=2, evaluate="retrained", meta_batch_size=2) | overrides))


def first_trials(data: HeldOutImages) -> Trial:
    return trial_of(data, [*data.train_ids(0, 0, data.meta_batch_size)])


def trial_of(data: HeldOutImages, ids: list[int]) -> Trial:
    data.setup("fit")
    trial = data.dataset("train").__getitems__(ids)
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, trial)


def trainer(**settings: Any) -> pl.Trainer:
    plain = dict(max_steps=STEPS, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False)
    quiet = dict(num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False)
    return pl.Trainer(**(plain | quiet | settings))


def outer_gradient(module: BilevelModule, trial: Trial) -> dict[str, Tensor]:
    module.zero_grad()
    loss = module.measure(trial)[0]["loss"].mean()
    if loss.requires_grad:
        loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
