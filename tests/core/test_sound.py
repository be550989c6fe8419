"""Log-mels against an implementation in NumPy that shares no code with them, resampling against SciPy's."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import signal
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from lightning_meta.core.sound import (
    FLOOR,
    LogMels,
    mel_bands,
    power_spectra,
    resample,
    si_sdr,
    si_sdr_improvement,
    sounding,
)
from lightning_meta.metrics import EpisodicSISDR, EpisodicSISDRImprovement, metric_of

RATE = 8000


def sine(frequency: float, samples: int = RATE, rate: int = RATE) -> Tensor:
    return torch.sin(2 * np.pi * frequency * torch.arange(samples, dtype=torch.float64) / rate)


def by_numpy(clip: np.ndarray, rate: int, size: int) -> np.ndarray:
    """Decibels `(size, steps)` of one clip, low frequencies first: frame after frame, band after band."""
    hop = -(-len(clip) // size)
    window = 2 * hop
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.concatenate([np.zeros(window), clip, np.zeros(2 * window)])
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, size + 2) / 2595) - 1)
    points = 2 * window
    while rate / points > corners[1]:
        points *= 2
    frequencies = np.arange(points // 2 + 1) * rate / points
    picture = np.zeros((size, size))
    for step in range(size):
        first = step * hop + window - window // 2
        power = np.abs(np.fft.rfft(padded[first : first + window] * hann, points)) ** 2
        for band in range(size):
            low, centre, high = corners[band : band + 3]
            weights = np.interp(frequencies, [low, centre, high], [0, 1, 0], left=0, right=0)
            picture[band, step] = 10 * np.log10(np.maximum(weights @ power, 1e-30))
    return picture


@pytest.mark.parametrize(("samples", "size"), [(8000, 32), (5120, 32), (4000, 16), (3001, 24), (8000, 64), (1000, 64)])
def test_pictures_are_those_of_numpy(samples: int, size: int) -> None:
    clip = np.random.default_rng(size).standard_normal(samples) * np.linspace(1, 0, samples) ** 3
    decibels = by_numpy(clip, RATE, size)
    expected = np.clip(decibels - decibels.max() + FLOOR, 0, None)[::-1] * 255 / FLOOR
    found = LogMels(RATE, samples / RATE, size)(torch.from_numpy(clip).float()[None])
    assert found.shape == (1, 1, size, size) and found.dtype == torch.uint8
    assert np.abs(found[0, 0].numpy() - expected).max() < 0.51, "rounded"
    assert len(found.unique()) > 50


def test_the_power_of_a_window_is_that_of_its_samples() -> None:
    """Parseval's theorem, for a step that lies within the clip."""
    clip = torch.randn(1, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    power = power_spectra(clip, points=400, window=200, hop=100)[0, :, 3]
    inside = clip[0, 200:400] * torch.hann_window(200, dtype=torch.float64)
    assert float(power[0] + power[-1] + 2 * power[1:-1].sum()) == pytest.approx(400 * float(inside.square().sum()))


def test_each_frequency_between_the_first_and_the_last_band_counts_once() -> None:
    bands = mel_bands(20, 2048, RATE)
    total, tops = bands.sum(0), bands.argmax(1)
    assert_allclose(total[tops[0] + 1 : tops[-1]].numpy(), 1, atol=1e-5)
    assert (bands.max(1).values > 0.8).all(), "none is empty"


@pytest.mark.parametrize("size", [32, 64, 128])
def test_no_band_of_a_picture_is_empty(size: int) -> None:
    assert (LogMels(RATE, 1.0, size).bands.sum(1) > 0).all()


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 3000.0])
def test_a_sine_is_a_line_at_its_mel(frequency: float) -> None:
    picture = LogMels(RATE, 1.0, 32)
    rows = picture(sine(frequency)[None].float())[0, 0].flip(0)[:, 2:-2].int().sum(1)
    step = 2595 * np.log10(1 + RATE / 2 / 700) / 33
    assert abs(int(rows.argmax()) + 1 - 2595 * np.log10(1 + frequency / 700) / step) <= 0.5


def test_loudness_does_not_show_and_time_runs_to_the_right() -> None:
    picture = LogMels(RATE, 1.0, 32)
    clip = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(picture(clip), picture(clip * 0.0078125))
    late = clip * (torch.arange(RATE) >= RATE // 2)
    columns = picture(late)[0, 0].int().sum(0)
    assert columns[:14].sum() == 0 and (columns[18:] > 0).all()


@pytest.mark.parametrize(
    ("rate", "wanted"), [(16000, 8000), (44100, 8000), (8000, 16000), (22050, 8000), (11025, 8000)]
)
def test_resampling_is_scipys_and_keeps_a_sine(rate: int, wanted: int) -> None:
    samples = rate // 2 + 1
    # A whole number of periods, at a frequency that both rates have.
    clip = torch.sin(2 * np.pi * 200 * torch.arange(samples, dtype=torch.float64) / samples)
    after = round(samples * wanted / rate)
    found = resample(clip, rate, wanted)
    assert_allclose(found.numpy(), signal.resample(clip.numpy(), after), atol=1e-9)
    assert_allclose(found.numpy(), np.sin(2 * np.pi * 200 * np.arange(after) / after), atol=1e-9)


def test_what_the_new_rate_does_not_have_is_gone_and_nothing_is_folded_down() -> None:
    high = sine(5000, 16000, 16000)
    assert float(resample(high, 16000, 8000).abs().max()) < 1e-9
    assert float(high[::2].abs().max()) > 0.9, "where leaving out samples would make 3,000 Hz of it"
    assert resample(high, 16000, 16000) is high


# ---- how near a sound is to another ---------------------------------------------------------------------------------


def voices(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_si_sdr_is_that_of_torchmetrics_and_of_a_projection() -> None:
    target = voices(3, 4, 200)
    for share in (0.01, 0.5, 10.0):
        estimate = target * 3 + share * voices(2, 3, 4, 200)[1]
        ours = si_sdr(estimate, target)
        torch.testing.assert_close(
            ours, scale_invariant_signal_distortion_ratio(estimate, target), rtol=1e-6, atol=1e-6
        )
        one, true = estimate[1, 2].numpy(), target[1, 2].numpy()
        factor, left, *_ = np.linalg.lstsq(true[:, None], one, rcond=None)
        assert ours[1, 2].item() == pytest.approx(10 * np.log10(np.sum((factor * true) ** 2) / left[0]), abs=1e-5)


def test_si_sdr_of_noise_across_the_target_is_what_was_added() -> None:
    """Also where the level, or the sign, of the estimate is another."""
    target = torch.sin(2 * np.pi * torch.arange(1000, dtype=torch.float64) / 50)
    across = torch.cos(2 * np.pi * torch.arange(1000, dtype=torch.float64) / 50)
    for decibels in (-20.0, 0.0, 30.0):
        for level in (1e-2, -1.0, 1e3):
            found = si_sdr(level * (target + across * 10 ** (-decibels / 20)), target)
            assert found.item() == pytest.approx(decibels, abs=1e-3)


def test_the_metrics_are_means_over_voices_that_sound() -> None:
    targets, preds = voices(2, 3, 4, 90), voices(2, 2, 3, 4, 90)[1]
    targets[0, 1, 2] = 0
    mixtures = targets.sum(2, keepdim=True).expand_as(targets)
    theirs = scale_invariant_signal_distortion_ratio(preds, targets)
    before = scale_invariant_signal_distortion_ratio(mixtures, targets)
    there = torch.ones(2, 3, 4, dtype=torch.bool)
    there[0, 1, 2] = False
    assert torch.equal(sounding(targets), there)
    for metric, values in ((EpisodicSISDR, theirs), (EpisodicSISDRImprovement, theirs - before)):
        expected = torch.stack([values[t][there[t]].mean() for t in range(2)])
        torch.testing.assert_close(metric.per_episode(preds, targets), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(metric.per_episode(7 * preds, targets), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(si_sdr_improvement(mixtures, targets)[there], torch.zeros(there.sum()).double())
    assert metric_of("si_sdri").text(6.123, 0.05) == "6.12 ± 0.05 dB"
    assert metric_of("si_sdr") is EpisodicSISDR and metric_of("si_sdri_voice_1") is EpisodicSISDRImprovement
