"""SimpleShot against NumPy, and where its centre of features comes from."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_meta.algorithms import SimpleShot
from lightning_meta.core import Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, blobs, conv4, feature_episodes

CENTER = 0.1 * torch.arange(6.0)


def centred() -> SimpleShot:
    module = SimpleShot(conv4(), n_classes=12)
    module.center_on(CENTER[None])
    return module


CASES: dict[str, Make] = {"simple-shot": lambda: SimpleShot(conv4(), n_classes=12, features="l2n")}
VARIANTS: dict[str, Make] = {"simple-shot-centred": centred}


@pytest.mark.parametrize("features", ["raw", "l2n", "cl2n"])
def test_the_label_is_that_of_the_nearest_class_mean(features: str) -> None:
    tasks = feature_episodes(n_query=40, noise=1.0)
    module = SimpleShot(nn.Flatten(), features=features).double().eval()
    center = torch.rand(8).double()
    module.center_on(center[None])
    found = module.play(tasks).preds.argmax(2)

    def prepared(x: torch.Tensor) -> np.ndarray:
        rows = x.numpy() - (center.numpy() if features == "cl2n" else 0)
        return rows if features == "raw" else rows / np.linalg.norm(rows, axis=1, keepdims=True)

    for t in range(3):
        support, query = prepared(tasks.support.x[t]), prepared(tasks.query.x[t])
        means = np.stack([support[tasks.support.y[t].numpy() == c].mean(0) for c in range(3)])
        nearest = np.linalg.norm(query[:, None] - means, axis=2).argmin(1)
        np.testing.assert_array_equal(found[t].numpy(), nearest)


def test_the_three_treatments_of_features_differ() -> None:
    tasks = feature_episodes(n_query=40, noise=1.0)
    labels = []
    for features in ("raw", "l2n", "cl2n"):
        module = SimpleShot(nn.Flatten(), features=features).double().eval()
        module.center_on(tasks.support.x.flatten(0, 1))
        labels.append(module.play(tasks).preds.argmax(2))
    assert not any(torch.equal(a, b) for a, b in zip(labels, labels[1:] + labels[:1], strict=True))


def test_without_a_centre_it_says_so(episodes: Episode) -> None:
    with pytest.raises(ConfigError, match=r"features=cl2n.*center_on"):
        SimpleShot(conv4(), n_classes=12).double().eval().play(episodes)


def trainer(folder: Path, **settings) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", inference_mode=False, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def test_the_centre_is_the_mean_of_the_training_features_and_travels_with_the_checkpoint(tmp_path: Path) -> None:
    """With the weights that it belongs to: those of the validation before the checkpoint."""
    data, module = blobs(), SimpleShot(conv4("running"), task_mode="loop")
    fitting = trainer(tmp_path, max_steps=4)
    fitting.fit(module, datamodule=data)
    path = fitting.checkpoint_callback.best_model_path
    loaded = SimpleShot.load_from_checkpoint(path, backbone=conv4("running"))
    images = data.source("train").inputs.float() / 255  # 144, so that each is taken equally often, but for rounding
    with torch.no_grad():
        expected = loaded.backbone(images)[torch.arange(2000) * 144 // 2000].mean(0)
    torch.testing.assert_close(loaded.center, expected, rtol=1e-4, atol=1e-5)
    (scores,) = trainer(tmp_path).test(module, datamodule=blobs(), ckpt_path=path, verbose=False)
    (again,) = trainer(tmp_path).test(loaded, datamodule=blobs(), verbose=False)
    assert again == pytest.approx(scores, abs=1e-6)
