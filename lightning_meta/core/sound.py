"""Sounds as pictures: log-mel spectrograms, frequency upwards in rows and time in columns.

The mel scale is that of O'Shaughnessy, "Speech Communication" (1987), 2595 log10(1 + f / 700), which HTK uses.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 60.0  # decibels below the loudest place of a clip, where a picture is black
EPS = 1e-8  # of energies, so that those of silence can be divided by
OVERLAP = 2  # a window is so many steps of time long, so that each sample is in two


@dataclass(frozen=True)
class LogMels:
    """Makes square pictures of clips, which must have `length` samples.

    A picture is `(1, size, size)` uint8: 255 is the loudest place of its clip, 0 is `FLOOR` decibels below or less. So
    it does not depend on how loud the clip is. The lowest frequency is in the last row, as spectrograms are drawn.

    Args:
        sample_rate: samples in a second.
        seconds: how long a clip is.
        size: how many mel bands, and how many steps of time.
    """

    sample_rate: int
    seconds: float
    size: int

    @property
    def length(self) -> int:
        """Samples of a clip."""
        return round(self.sample_rate * self.seconds)

    @property
    def hop(self) -> int:
        """Samples from one step of time to the next."""
        return -(-self.length // self.size)

    @property
    def window(self) -> int:
        return OVERLAP * self.hop

    @property
    def points(self) -> int:
        return spectrum_points(self.window, self.size, self.sample_rate)

    @cached_property
    def bands(self) -> Tensor:
        return mel_bands(self.size, self.points, self.sample_rate)

    def __call__(self, clips: Tensor) -> Tensor:
        """Pictures `(B, 1, size, size)` of clips `(B, length)`, none of which is silent."""
        clips = F.pad(clips, (0, self.hop * self.size - self.length))
        power = power_spectra(clips, self.points, self.window, self.hop)[..., : self.size]
        return (255 * above_floor(decibels(self.bands @ power))).round().to(torch.uint8).flip(-2)[:, None]


@dataclass(frozen=True)
class MelFrames:
    """Takes sounds of any length apart into frames, a step of time each, for networks that read them one by one.

    Args:
        sample_rate: samples in a second.
        step: seconds from one frame to the next.
        bands: mel bands.
    """

    sample_rate: int
    step: float
    bands: int

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return round(self.sample_rate * self.step)

    @property
    def window(self) -> int:
        return OVERLAP * self.hop

    @property
    def points(self) -> int:
        return spectrum_points(self.window, self.bands, self.sample_rate)

    @cached_property
    def triangles(self) -> Tensor:
        return mel_bands(self.bands, self.points, self.sample_rate)

    def __call__(self, sounds: Tensor) -> Tensor:
        """Decibels `(B, frames, bands)` of sounds `(B, samples)`; as many frames as hear something of them."""
        sounds = F.pad(sounds, (0, -sounds.shape[-1] % self.hop))
        return decibels(self.triangles @ power_spectra(sounds, self.points, self.window, self.hop)).mT


def decibels(power: Tensor) -> Tensor:
    return 10 * power.clamp_min(1e-30).log10()


def above_floor(decibels: Tensor) -> Tensor:
    """1 at the loudest place of a spectrum `(..., rows, columns)`, 0 where it is `FLOOR` decibels below or less."""
    above = decibels - decibels.amax((-2, -1), keepdim=True) + FLOOR
    return above.clamp_min(0) / FLOOR


def spectrum_points(window: int, bands: int, sample_rate: int) -> int:
    """Of a spectrum: the window's, doubled until the lowest, narrowest band has one, and once at least."""
    narrowest = float(hertz(mel(torch.tensor(sample_rate / 2)) / (bands + 1)))
    return window * 2 ** max(ceil(log2(sample_rate / window / narrowest)), 1)


def power_spectra(clips: Tensor, points: int, window: int, hop: int) -> Tensor:
    """Power `(B, points // 2 + 1, steps)` of clips `(B, samples)` under Hann windows, step t around sample `t * hop`.

    What is before the beginning and after the end is silence.
    """
    shape = torch.hann_window(window, dtype=clips.dtype, device=clips.device)
    spectra = torch.stft(clips, points, hop, window, shape, center=True, pad_mode="constant", return_complex=True)
    return spectra.abs().square()


def mel_bands(bands: int, points: int, sample_rate: int) -> Tensor:
    """Triangles `(bands, points // 2 + 1)` over the frequencies of a spectrum, at even distances in mel.

    Each rises from the top of the one before to its own, which is 1, and falls to that of the next.
    """
    corners = hertz(torch.linspace(0, float(mel(torch.tensor(sample_rate / 2.0))), bands + 2))
    frequencies = torch.linspace(0, sample_rate / 2, points // 2 + 1)
    rise, fall = (corners[1:-1] - corners[:-2])[:, None], (corners[2:] - corners[1:-1])[:, None]
    rising, falling = (frequencies - corners[:-2, None]) / rise, (corners[2:, None] - frequencies) / fall
    return torch.minimum(rising, falling).clamp_min(0)


def mel(frequency: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + frequency / 700)


def hertz(mels: Tensor) -> Tensor:
    return 700 * (10 ** (mels / 2595) - 1)


def resample(samples: Tensor, sample_rate: int, wanted: int) -> Tensor:
    """Samples `(..., n)` at another rate, `(..., round(n * wanted / sample_rate))`.

    Done on the whole spectrum: what is below half of both rates is kept as it is, and nothing else.
    """
    if sample_rate == wanted:
        return samples
    before = samples.shape[-1]
    after = max(round(before * wanted / sample_rate), 1)
    kept = (min(before, after) + 1) // 2
    return torch.fft.irfft(torch.fft.rfft(samples)[..., :kept], after) * (after / before)


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio `(...)` of sounds `(..., L)`, in decibels.

    Le Roux, Wisdom, Erdogan, Hershey: "SDR - Half-baked or Well Done?" (2018), arXiv:1811.02508: how much of the
    estimate is along the target and how much across.
    """
    along = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + EPS) * target
    ratio = (along.square().sum(-1) + EPS) / ((estimate - along).square().sum(-1) + EPS)
    return 10 * torch.log10(ratio)


def si_sdr_improvement(estimates: Tensor, targets: Tensor) -> Tensor:
    """By how much the SI-SDR `(..., V)` of the voices of a mixture, `(..., V, L)`, is better than the mixture's own."""
    return si_sdr(estimates, targets) - si_sdr(targets.sum(-2, keepdim=True).expand_as(targets), targets)


def sounding(voices: Tensor) -> Tensor:
    """Which voices `(..., L)` are not silent, `(...)`: the SI-SDR of silence means nothing."""
    return voices.abs().amax(-1) > 0
