"""What is optimized lives on between outer updates: exactly, also when training is stopped in the middle."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_meta.algorithms import MAML, LSTMOptimizer
from lightning_meta.backbones import MLP
from lightning_meta.callbacks import EpisodicCheckpoint
from lightning_meta.datamodules import QuadraticOptimizees, Sinusoid
from lightning_meta.errors import ConfigError
from lightning_meta.modules import TruncatedModule
from lightning_meta.modules.learned_rates import LearnedRates
from tests.modules.test_resume import assert_equal

STEPS, SEGMENTS = 8, 3


def quadratics(**settings: Any) -> QuadraticOptimizees:
    """Optimizations of three segments, and epochs of four: they end in the middle of one another."""
    few = dict(unroll_steps=6, truncation=2, meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return QuadraticOptimizees(dimension=3, **(few | settings))


def trainer(**settings: Any) -> pl.Trainer:
    plain = dict(max_steps=STEPS, max_epochs=-1, accelerator="cpu", inference_mode=False, logger=False)
    quiet = dict(num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False)
    return pl.Trainer(**(plain | quiet | settings))


class Diary(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.starts: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].clone())
        self.starts += batch.start.unique().tolist()


def train(folder: Path, ckpt_path: Path | None = None, **settings: Any) -> tuple[dict[str, Any], Diary]:
    """Train to `STEPS`, saving every step; the final checkpoint and what happened."""
    torch.manual_seed(0 if ckpt_path is None else 99)
    module, diary = LSTMOptimizer(hidden=4, optimizer=lambda params: torch.optim.Adam(params, lr=0.03)), Diary()
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(callbacks=[diary, saving]).fit(module, datamodule=quadratics(**settings), ckpt_path=ckpt_path)
    return torch.load(folder / f"step={STEPS}.ckpt", weights_only=True), diary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Diary]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder)


def test_a_segment_begins_where_the_one_before_ended(whole: tuple[Path, Any, Diary]) -> None:
    folder, final, diary = whole
    assert diary.starts == [0, 2, 4, 0, 2, 4, 0, 2]
    carried = [torch.load(folder / f"step={step}.ckpt", weights_only=True)["carried"] for step in (1, 2, STEPS)]
    assert [leaf.shape for leaf in carried[0]] == [(4, 3), *[(4, 3, 4)] * 4]
    assert all(not torch.equal(a, b) for a, b in zip(*carried[:2], strict=True))
    assert_equal(final["carried"], carried[2])


@pytest.mark.parametrize("stop", [2, 3, 4, 7])
def test_a_training_that_was_stopped_goes_on_exactly(
    stop: int, whole: tuple[Path, dict[str, Any], Diary], tmp_path: Path
) -> None:
    """In the middle of an optimization (2, 7), between two (3), at the end of an epoch (4)."""
    folder, final, diary = whole
    resumed, rest = train(tmp_path, folder / f"step={stop}.ckpt")
    assert_equal(rest.losses, diary.losses[stop:], "losses")
    for part in ("state_dict", "optimizer_states", "carried", "global_step"):
        assert_equal(resumed[part], final[part], part)


def test_validation_leaves_what_is_carried_alone(tmp_path: Path) -> None:
    (tmp_path / "often").mkdir()
    _, seldom = train(tmp_path)
    _, often = train(tmp_path / "often", steps_per_epoch=1)
    assert_equal(often.losses, seldom.losses)


def test_without_what_was_carried_training_does_not_go_on(
    whole: tuple[Path, dict[str, Any], Diary], tmp_path: Path
) -> None:
    checkpoint = torch.load(whole[0] / "step=2.ckpt", weights_only=True)
    del checkpoint["carried"]
    torch.save(checkpoint, tmp_path / "cut.ckpt")
    with pytest.raises(ConfigError, match="starts at step 4"):
        train(tmp_path, tmp_path / "cut.ckpt")
    with pytest.raises(ConfigError, match="in the middle of 4 optimizations, but meta_batch_size=2"):
        train(tmp_path, whole[0] / "step=2.ckpt", meta_batch_size=2)


def test_the_best_checkpoint_is_that_of_the_smallest_final_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, best = LSTMOptimizer(hidden=4), EpisodicCheckpoint(dirpath=tmp_path)
    run = trainer(callbacks=[best], max_steps=12)
    run.fit(module, datamodule=quadratics())
    assert (best.monitor, best.mode) == ("val/final_loss", "min")
    (validated,) = run.validate(module, datamodule=quadratics(), ckpt_path=best.best_model_path, verbose=False)
    assert validated["val/final_loss"] == pytest.approx(best.best_model_score.item())


def test_final_loss_and_its_interval_are_over_the_frozen_optimizees(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data = LSTMOptimizer(hidden=4), quadratics(eval_meta_batch_size=3)
    torch.nn.init.normal_(module.rule.networks[0].output.bias)
    (tested,) = trainer(default_root_dir=tmp_path).test(module, datamodule=data, verbose=False)
    losses = module.optimize(data.dataset("test").__getitems__(range(7)), module.rule)
    assert tested["test/final_loss"] == pytest.approx(losses[:, -1].mean().item(), rel=1e-6)
    assert tested["test/final_loss_ci95"] == pytest.approx(1.96 * losses[:, -1].std().item() / 7**0.5, rel=1e-6)
    assert tested["test/loss"] == pytest.approx(losses[:, 1:].mean().item(), rel=1e-6)
    loaded = LSTMOptimizer.load_from_checkpoint(save(module, tmp_path))
    loaded.loss_of = data.loss
    assert torch.equal(loaded.optimize(data.dataset("test").__getitems__(range(7)), loaded.rule), losses)


def save(module: TruncatedModule, folder: Path) -> Path:
    run = trainer(max_steps=0, default_root_dir=folder)
    run.fit(module, datamodule=quadratics())
    run.save_checkpoint(folder / "module.ckpt")
    return folder / "module.ckpt"


def test_what_cannot_be_played_is_refused() -> None:
    with pytest.raises(ConfigError, match="LSTMOptimizer plays the tasks of an OptimizeeDataModule, but Sinusoid"):
        trainer().fit(LSTMOptimizer(), datamodule=Sinusoid())
    with pytest.raises(ConfigError, match="MAML plays the tasks of an EpisodicDataModule, but QuadraticOptimizees"):
        trainer().fit(MAML(MLP(), n_way=1), datamodule=quadratics())
    with pytest.raises(ConfigError, match="bf16-mixed would round"):
        trainer(precision="bf16-mixed").fit(LSTMOptimizer(), datamodule=quadratics())
    with pytest.raises(ConfigError, match="unroll_steps=6 is not a multiple of truncation=4; take 4"):
        trainer().fit(LSTMOptimizer(), datamodule=quadratics(truncation=4))
    counts = TruncatedModule(LearnedRates(0.1, per="all").build({"theta": torch.zeros(3)}))
    with pytest.raises(ConfigError, match="state of LearnedRates has 0, which is no tensor"):
        trainer().fit(counts, datamodule=quadratics())
