"""Tones of instruments that do not exist: sums of partials with noise, by rule and by key."""

from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_meta.core.sampling import Keys, normal, subkeys, uniform

PARTIALS = 16
LOWEST, HIGHEST = 110.0, 440.0  # Hz: two octaves of keynotes, in which every instrument plays
FORMANT_WIDTH = 0.5  # octaves
AUDIBLE = 0.95  # of half the sample rate: no partial is above
RELEASE = 0.02  # seconds in which a tone dies away at its end

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])


class Timbre(NamedTuple):
    """What all tones of an instrument share.

    Attributes:
        slope: partial h has the amplitude `h ** -slope`.
        even: by how much partials of even number are weaker: 0 of a clarinet, 1 of a violin.
        formant: at which frequency, in Hz, partials are stronger,
        gain: and by how much.
        stretch: partial h is at `h * sqrt(1 + stretch * h^2)` times the keynote, as those of stiff strings.
        attack: seconds until a tone has its full strength.
        decay: seconds in which it falls to 1 / e after that.
        vibrato: by which part of it the frequency varies,
        rate: and how often a second.
        noise: of breath or bow, beside a tone of amplitude 1.
    """

    slope: float
    even: float
    formant: float
    gain: float
    stretch: float
    attack: float
    decay: float
    vibrato: float
    rate: float
    noise: float


class Tones(NamedTuple):
    """What differs between the tones of an instrument, each `(E,)`.

    Attributes:
        pitch: Hz.
        onset: when they begin, in seconds,
        length: and how long they are.
        level: amplitude.
    """

    pitch: npt.NDArray[np.float64]
    onset: npt.NDArray[np.float64]
    length: npt.NDArray[np.float64]
    level: npt.NDArray[np.float64]


def draw_timbre(key: Keys) -> Timbre:
    """An instrument of a key `()`."""
    slope, even, formant, gain, stretch, attack, decay, vibrato, rate, noise = uniform(key, 10).tolist()
    return Timbre(
        slope=0.3 + 1.7 * slope,
        even=even,
        formant=between(300, 2500, formant),
        gain=4 * gain,
        stretch=0.005 * stretch**3,
        attack=between(0.005, 0.2, attack),
        decay=between(0.1, 3, decay),
        vibrato=0.03 * vibrato**2,
        rate=3 + 5 * rate,
        noise=0.3 * noise**2,
    )


def draw_tones(keys: Keys) -> Tones:
    """A tone for each of the keys `(E,)`."""
    pitch, onset, length, level = np.moveaxis(uniform(keys, 4), -1, 0)
    return Tones(between(LOWEST, HIGHEST, pitch), 0.1 * onset, 0.4 + 0.4 * length, 0.1 + 0.9 * level)


def between(low: float, high: float, unit: Numbers) -> Numbers:
    """From `low` to `high` at even distances in octaves."""
    return low * (high / low) ** unit


def play(timbre: Timbre, tones: Tones, keys: Keys, sample_rate: int, samples: int) -> Tensor:
    """The sounds `(E, samples)` float32. The keys `(E,)` decide the phases of the partials and the noise."""
    time_L = np.arange(samples) / sample_rate
    h_P = np.arange(1, PARTIALS + 1)
    ratio_P = h_P * np.sqrt(1 + timbre.stretch * h_P**2)
    frequency_EP = tones.pitch[:, None] * ratio_P
    octaves_EP = np.log2(frequency_EP / timbre.formant)
    amplitude_EP = h_P**-timbre.slope * np.where(h_P % 2, 1, timbre.even)
    amplitude_EP = amplitude_EP * (1 + timbre.gain * np.exp(-0.5 * (octaves_EP / FORMANT_WIDTH) ** 2))
    amplitude_EP[frequency_EP * (1 + timbre.vibrato) > AUDIBLE * sample_rate / 2] = 0
    amplitude_EP /= np.linalg.norm(amplitude_EP, axis=1, keepdims=True).clip(1e-12)  # all may be too high
    # The phase is the integral of the frequency: pitch * (1 + vibrato * cos(2 pi rate t)).
    turn = 2 * np.pi * timbre.rate
    beats_EL = tones.pitch[:, None] * (time_L + timbre.vibrato / turn * np.sin(turn * time_L))
    phase_key, noise_key = np.moveaxis(subkeys(keys, range(2)), -1, 0)
    phase_EP = uniform(phase_key, PARTIALS)
    tone_EL = np.zeros_like(beats_EL)
    for p in range(PARTIALS):
        cycles_EL = beats_EL * ratio_P[p] + phase_EP[:, p, None]
        cycles_EL -= np.rint(cycles_EL)  # so that single precision will do, and is twice as fast
        tone_EL += amplitude_EP[:, p, None] * torch.sin(torch.from_numpy(2 * np.pi * cycles_EL).float()).numpy()
    tone_EL += timbre.noise * normal(noise_key, samples)
    since_EL = time_L - tones.onset[:, None]
    left_EL = tones.length[:, None] - since_EL
    envelope_EL = np.clip(since_EL / timbre.attack, 0, 1) * np.clip(left_EL / RELEASE, 0, 1)
    envelope_EL *= np.exp(-np.clip(since_EL - timbre.attack, 0, None) / timbre.decay)
    return torch.from_numpy((tones.level[:, None] * envelope_EL * tone_EL).astype(np.float32))
