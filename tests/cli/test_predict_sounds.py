"""Mixtures of a user's, taken apart: whole files whatever their length, rate and channels; others refused by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_meta.algorithms import MetaTasNet
from lightning_meta.cli.predict_sounds import predict_sounds, taken_apart
from lightning_meta.core import Batch
from lightning_meta.datamodules.audio.wav import read_wav, write_wav
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import chorales
from tests.datamodules.test_audio import save, tone

VOICES = ("1 soprano", "2 alto", "3 tenor", "4 bass")
RATE, LENGTH = 8000, 4800


def separator() -> MetaTasNet:
    torch.manual_seed(0)
    return MetaTasNet(window=64, channels=4, hidden=4, blocks=1, repeats=1).eval()


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    for number, voice in enumerate(VOICES):
        save(tmp_path / "support" / voice / "a.wav", tone(200 * (4 - number), 0.7))
    save(tmp_path / "query/song.wav", tone(440, 1.3))
    return tmp_path / "support", tmp_path / "query"


def heard(path: Path) -> Tensor:
    samples, rate = read_wav(path)
    assert rate == RATE
    return samples[:, 0]


def test_every_voice_is_written_and_together_they_are_the_mixture(places: tuple[Path, Path], tmp_path: Path) -> None:
    facts = dict(predict_sounds(separator(), chorales(), *places, tmp_path / "out"))
    assert facts["query"] == "1 mixtures" and "sounds" not in facts and "1 examples of 4800" in facts["support"]
    found = [heard(tmp_path / "out/song" / f"{voice}.wav") for voice in VOICES]
    torch.testing.assert_close(torch.stack(found).sum(0), heard(places[1] / "song.wav"), rtol=0, atol=2e-3)


def test_other_rates_and_channels_are_told(places: tuple[Path, Path], tmp_path: Path) -> None:
    stereo = torch.from_numpy(tone(440, 1.0, 16000)).repeat(2, 1).T.numpy().copy()
    save(places[1] / "song.wav", stereo, 16000)
    facts = predict_sounds(separator(), chorales(), *places, tmp_path / "out")
    assert [fact for name, fact in facts if name == "sounds"] == [
        "resampled to 8000 Hz from 16000 Hz", "of several channels, their mean taken: 1 of 5",
    ]  # fmt: skip
    assert len(heard(tmp_path / "out/song/4 bass.wav")) == 8000


def test_a_long_mixture_is_taken_apart_in_segments_that_fade_into_each_other() -> None:
    """Where a segment's neighbours say the same, it is what the network makes of that segment alone."""
    module, length = separator(), 640
    y = torch.randn(1, 4, length, generator=torch.Generator().manual_seed(0))
    adapted = module.adapt(Batch(y.sum(1), y))
    x = y.sum(1)[0]
    whole = taken_apart(module, adapted, x.repeat(3)[: 2 * length + 100], length)
    assert whole.shape == (4, 2 * length + 100)
    torch.testing.assert_close(whole.sum(0), x.repeat(3)[: 2 * length + 100], rtol=1e-3, atol=1e-4)
    here, before = module.predict(adapted, x[None])[0], module.predict(adapted, x.roll(-length // 2)[None])[0]
    fade = torch.hann_window(length)[: length // 2]
    expected = here[:, : length // 2] * fade + before[:, length // 2 :] * (1 - fade)
    torch.testing.assert_close(whole[:, length : length + length // 2], expected, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_heard_is_refused_by_name(places: tuple[Path, Path], tmp_path: Path) -> None:
    support, query = places
    write_wav(query / "silent.wav", torch.zeros(6000), RATE)
    write_wav(query / "short.wav", torch.ones(800).cumsum(0) / 800, RATE)
    (query / "torn.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError) as error:
        predict_sounds(separator(), chorales(), support, query, tmp_path / "out")
    for said in (
        "3 sounds cannot be used",
        "silent.wav is silent",
        "short.wav is too short: 0.10 s, where",
        "torn.wav",
    ):
        assert said in str(error.value)
    (support / VOICES[0] / "a.wav").unlink()
    (support / VOICES[0]).rmdir()
    with pytest.raises(ConfigError, match="has 3 folders of voices, but the run takes 4 apart"):
        predict_sounds(separator(), chorales(), support, query, tmp_path / "out")
    with pytest.raises(DataError, match="nowhere is no folder; --query must be one"):
        predict_sounds(separator(), chorales(), support, tmp_path / "nowhere", tmp_path / "out")
