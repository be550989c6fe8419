"""The success story: its invariant on random histories, one worked by hand, and that it goes on from a checkpoint."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_meta.algorithms import EvolutionStrategies
from lightning_meta.errors import ConfigError
from lightning_meta.optimizers import SuccessStory
from tests.algorithms.test_evolution_strategies import Still, bowl


def live(optimizer: SuccessStory, param: Tensor, rewards: Sequence[float]) -> list[float]:
    """The weight after each step; every gradient is -1, so a change adds `lr`."""
    after = []
    for reward in rewards:

        def closure(reward: float = reward) -> Tensor:
            param.grad = -torch.ones_like(param)
            return torch.tensor(-reward)

        optimizer.step(closure)
        after.append(param.item())
    return after


def made(**settings: float) -> tuple[SuccessStory, Tensor]:
    param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    return SuccessStory([param], **({"lr": 1.0, "every": 1} | settings)), param


def test_a_story_by_hand() -> None:
    """Evaluated after each step; averages of the whole life, then since each change that is in force.

    1: a change, to 1. 3: 2 < 3, to 2. 5: 3 < 4 < 5, to 3. 4: 13/4 < 4 < 9/2 but not < 4: one undone, to 2.
    -4: 9/5 < 2 but not < 5/3: one undone, to 1. 2: 11/6 < 2, to 2.
    """
    optimizer, param = made()
    assert live(optimizer, param, [1, 3, 5, 4]) == [1, 2, 3, 2]
    assert optimizer.rates() == [13 / 4, 4, 9 / 2]
    assert live(optimizer, param, [-4, 2]) == [1, 2]
    assert optimizer.rates() == [11 / 6, 2]


def test_rates_increase_after_every_evaluation_of_random_histories() -> None:
    """And what is undone is undone to the bit: the weight is what it was before the oldest change that was undone."""
    deepest, undone = 0, 0
    for seed in range(50):
        generator, earned, held, every = torch.Generator().manual_seed(seed), [0.0], {}, 1 + seed % 3
        optimizer, param = made(every=every, lr=0.1)
        times: list[int] = []  # of the changes in force
        for now in range(1, 80):
            before = param.item()
            earned.append(earned[-1] + torch.randn((), generator=generator).item() + 0.03 * now)
            live(optimizer, param, [earned[-1] - earned[-2]])
            found = [time for time, _ in optimizer.param_groups[0]["story"]]
            kept = [time for time in found if time < now]
            assert kept == times[: len(kept)] and (now % every == 0 or found == times)
            if now % every == 0:
                rates = [(earned[now] - earned[time]) / (now - time) for time in (0, *kept)]
                assert all(low < high for low, high in pairwise(rates))
                assert (len(kept) < len(times)) != (found[-1:] == [now]), "changed, or undone"
            if len(kept) < len(times):
                undone += 1
                assert param.item() == held[times[len(kept)]]
            times = found
            held[now], deepest = before, max(deepest, len(kept))
    assert deepest > 4 and undone > 50


def test_a_story_goes_on_from_a_checkpoint() -> None:
    rewards = torch.randn(40, generator=torch.Generator().manual_seed(3)).tolist()
    whole, first, rest = made(), made(), made()
    expected = live(*whole, rewards)
    before = live(*first, rewards[:25])
    rest[1].data.copy_(first[1].data)
    rest[0].load_state_dict(first[0].state_dict())
    assert before + live(*rest, rewards[25:]) == expected
    assert rest[0].rates() == whole[0].rates()


def test_a_training_goes_on_with_its_story_and_finds_the_place(tmp_path: Path) -> None:
    """With evolution strategies, whose loss is minus what is earned; changes that overshoot are undone."""
    finals = []
    for folder, ckpt in (("whole", None), ("rest", tmp_path / "whole" / "step=13.ckpt")):
        module = EvolutionStrategies(Still(), optimizer=lambda params: SuccessStory(params, lr=0.2, every=2))
        saving = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=40, max_epochs=-1, inference_mode=False, logger=False, callbacks=[saving],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=bowl(meta_batch_size=20), ckpt_path=ckpt)
        finals.append((module.learner.place.detach(), trainer.optimizers[0]))
    (place, optimizer), (again, other) = finals
    assert torch.equal(place, again) and optimizer.rates() == other.rates()
    torch.testing.assert_close(place, torch.tensor([2.0, 2.0]), rtol=0, atol=0.5)
    assert 0 < len(optimizer.param_groups[0]["story"]) < 20


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match="every=0 must be at least 1"):
        made(every=0)
    with pytest.raises(ValueError, match="lr=0 must be above 0"):
        made(lr=0)
