"""Mixtures that are heard and seen: the files are the sounds of the test, and the spectra theirs."""

from pathlib import Path
from unittest.mock import create_autospec

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from lightning_meta.algorithms import MetaTasNet
from lightning_meta.core.sound import si_sdr_improvement
from lightning_meta.datamodules.audio.wav import read_wav
from lightning_meta.reports import Separation
from lightning_meta.reports.separation import NAMES, decibels, separation
from tests.conftest import chorales


def test_the_sounds_are_those_of_the_first_test_episode(tmp_path: Path) -> None:
    """Each at the same level, so that estimates add up to the mixture; and W&B gets them all."""
    wandb = create_autospec(WandbLogger, instance=True)
    data, module = chorales(), MetaTasNet(window=64, channels=4, hidden=4, blocks=1)
    trainer = pl.Trainer(
        accelerator="cpu", logger=[CSVLogger(tmp_path, name="", version=""), wandb], callbacks=[Separation(mixtures=2)],
        inference_mode=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.test(module, data, verbose=False)
    mixtures, voices = data.dataset("test")[0].query
    for q in range(2):
        sounds = {path.stem.removeprefix(f"mixture_{q}_"): path for path in tmp_path.glob(f"sounds/mixture_{q}_*.wav")}
        parts = {f"{name}_{kind}" for name in NAMES for kind in ("estimate", "truth")}
        assert sounds.keys() == parts | {"mixture"}
        heard = {name: read_wav(path).samples[:, 0] for name, path in sounds.items()}
        level = heard["mixture"].norm() / mixtures[q].norm()
        for name, truth in zip(NAMES, voices[q], strict=True):
            torch.testing.assert_close(heard[f"{name}_truth"], level * truth, rtol=0, atol=1e-4)
        whole = torch.stack([heard[f"{name}_estimate"] for name in NAMES]).sum(0)
        torch.testing.assert_close(whole, heard["mixture"], rtol=0, atol=3e-4)
    logged = {name for call in wandb.experiment.log.call_args_list for name in call.args[0]}
    assert len(logged) == 18 and "test/mixture_0_alto_estimate" in logged


def test_the_picture_says_by_how_much_each_voice_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    true, noise = torch.randn(2, 4, 4000, generator=generator)
    true[3] = 0
    found = true + 0.5 * noise
    figure = separation(true.sum(0), found, true, 8000)
    titles = [axes.get_title() for axes in figure.axes]
    better = si_sdr_improvement(found, true)
    assert titles[:5] == [
        "mixture", *(f"{name}, {better[v]:+.1f} dB" for v, name in enumerate(NAMES[:3])), "bass, silent",
    ]  # fmt: skip


def test_a_tone_is_at_its_frequency() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    strongest = decibels(tone)[:, 40].argmax().item()
    assert strongest / 256 * 4000 == pytest.approx(1000, abs=16)
