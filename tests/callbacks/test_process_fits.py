"""The bound that a test logs, and the pictures of neural processes, in real, tiny tests of the Trainer."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.distributions import Normal

from lightning_meta.algorithms import ConditionalNeuralProcess, ProtoNet
from lightning_meta.callbacks import Completions, Pictures, ProcessFits, completions
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import EpisodicDataModule, GaussianProcess, ImageCompletion
from lightning_meta.modules import EpisodicModule
from tests.conftest import SIZE, blobs, conv4, sinusoids

EPISODES = 7
SIZES = {"val_episodes": 2, "test_episodes": EPISODES, "eval_meta_batch_size": 3}


def trainer(folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", inference_mode=False, logger=CSVLogger(folder, name="", version=""),
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


def functions() -> GaussianProcess:
    return GaussianProcess(k_shot=4, n_query=5, **SIZES)


def pixels() -> ImageCompletion:
    return ImageCompletion(blobs(), k_shot=20, n_query=5, **SIZES)


def cnp(x_size: int = 1) -> ConditionalNeuralProcess:
    return ConditionalNeuralProcess(x_size=x_size, width=8, layers=1)


def test_bounds_are_scores_of_the_posteriors_on_the_test_episodes(tmp_path: Path) -> None:
    data = functions()
    (logged,) = trainer(tmp_path, ProcessFits(tasks=3)).test(cnp(), data, verbose=False)
    keys, shape = episode_keys(0, 2, range(EPISODES)), data.shapes["test"]
    y = data.dataset("test").__getitems__(range(EPISODES)).query.y[..., 0].double()
    known, averaged = data.source("test").posterior(keys, shape), data.source("test").averaged_posterior(keys, shape)
    expected = {
        "gp_log_likelihood": Normal(*map(torch.from_numpy, known)).log_prob(y),
        "gp_averaged_log_likelihood": torch.from_numpy(averaged.log_density),
        "gp_averaged_normal_log_likelihood": Normal(*map(torch.from_numpy, averaged[:2])).log_prob(y),
    }
    for name, values_TQ in expected.items():
        values = values_TQ.mean(1)
        assert logged[f"test/{name}"] == pytest.approx(values.mean().item(), rel=1e-5)
        assert logged[f"test/{name}_ci95"] == pytest.approx(1.96 * values.std().item() / EPISODES**0.5, rel=1e-5)
        assert logged["test/log_likelihood"] < logged[f"test/{name}"]


def test_pictures_are_drawn_where_they_make_sense(tmp_path: Path) -> None:
    def drawn(module: EpisodicModule, data: EpisodicDataModule) -> list[str]:
        callbacks: list[Pictures] = [ProcessFits(tasks=3), Completions(images=2, pixels=(5, 50))]
        trainer(tmp_path, *callbacks).test(module, data, verbose=False)
        return [path.stem for callback in callbacks for path in callback.paths]

    assert drawn(cnp(), functions()) == ["process_fits"]
    assert drawn(cnp(x_size=2), pixels()) == ["completions"]
    assert drawn(cnp(), sinusoids()) == []
    assert drawn(ProtoNet(conv4()), blobs()) == []


def test_completions_show_the_first_pixels_and_predict_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Tensor] = {}
    figure = completions.completions

    def spy(images: Tensor, contexts: dict[int, tuple[Tensor, Tensor]], title: str) -> object:
        shown.update(images=images, **{f"seen {k}": seen for k, (seen, _) in contexts.items()})
        shown.update({f"preds {k}": preds for k, (_, preds) in contexts.items()})
        return figure(images, contexts, title)

    monkeypatch.setattr(completions, "completions", spy)
    module, data = cnp(x_size=2), pixels()
    trainer(tmp_path, Completions(images=2, pixels=(20, 100, 1000))).test(module, data, verbose=False)
    assert set(shown) == {"images", "seen 20", "seen 100", "preds 20", "preds 100"}  # an image has 256 pixels
    assert shown["images"].shape == (2, SIZE, SIZE, 1)
    assert shown["seen 20"].sum((1, 2)).tolist() == [20, 20]
    assert (shown["seen 100"] >= shown["seen 20"]).all()
    tasks = data.dataset("test").__getitems__(range(2))
    seen = shown["images"][..., 0][shown["seen 20"]].view(2, -1)
    torch.testing.assert_close(seen.sort().values, tasks.support.y[..., 0].sort().values)
    preds = module.eval().play(tasks).preds
    down, right = ((tasks.query.x + 1) / 2 * (SIZE - 1)).round().long().unbind(-1)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(shown["preds 20"][rows, down, right], preds.detach())
