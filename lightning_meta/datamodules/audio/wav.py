"""WAV files, without another library: those that recorders and editors write are read, and such are written.

The standard library's `wave` knows whole numbers only, and takes a file that was cut off for a short one.
"""

import struct
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.core.sound import LogMels, resample
from lightning_meta.errors import DataError

WHOLE, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # formats; an extensible one says further on which of the others it is
NUMBERS = {
    (WHOLE, 8): "u1", (WHOLE, 16): "<i2", (WHOLE, 24): "<i4", (WHOLE, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"
}  # fmt: skip


class Sound(NamedTuple):
    """Samples in [-1, 1], `(samples, channels)` float32, and how many of them make a second."""

    samples: Tensor
    sample_rate: int


def read_wav(path: Path) -> Sound:
    """The sound of a file: PCM of 8, 16, 24 or 32 bits, or floating point. Raises `DataError` where it has none."""
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{path} cannot be read ({error}). Replace or remove it.") from error


def parse(content: bytes) -> Sound:
    """Raises `ValueError` or `struct.error` where the content is not that of a WAV file."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("no WAV file")
    chunks, place = dict[bytes, bytes](), 12
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        chunks.setdefault(name, content[place + 8 : place + 8 + size])
        if name in (b"fmt ", b"data") and len(chunks[name]) < size:
            raise ValueError(f"it is cut off: {len(chunks[name])} of {size} bytes of sound are there")
        place += 8 + size + size % 2
    if missing := [name.decode() for name in (b"fmt ", b"data") if name not in chunks]:
        raise ValueError(f"it lacks {' and '.join(missing)}")
    kind, channels, sample_rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if kind == EXTENSIBLE:
        (kind,) = struct.unpack_from("<H", chunks[b"fmt "], 24)
    if (kind, bits) not in NUMBERS or not channels or not sample_rate:
        raise ValueError(
            f"format {kind} of {bits} bits, {channels} channels, {sample_rate} Hz; save it as PCM of 16 bits"
        )
    data = chunks[b"data"]
    data = data[: len(data) - len(data) % (channels * bits // 8)]
    if bits == 24:  # a byte of zeros below each number
        data = np.pad(np.frombuffer(data, "u1").reshape(-1, 3), ((0, 0), (1, 0))).tobytes()
    samples = np.frombuffer(data, NUMBERS[kind, bits]).reshape(-1, channels).astype("float64")
    if kind == WHOLE:
        samples = (samples - 128) / 128 if bits == 8 else samples / 2.0 ** (31 if bits == 24 else bits - 1)
    if not np.isfinite(samples).all():
        raise ValueError("some samples are no numbers")
    return Sound(torch.from_numpy(samples.astype("float32")), sample_rate)


def write_wav(path: Path, samples: Tensor, sample_rate: int) -> None:
    """Write samples `(samples,)`, which are cut off beyond [-1, 1], with 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = (samples.clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, sample_rate, len(whole), "NONE", ""))
        file.writeframes(whole.numpy().astype("<i2").tobytes())


def read_all(
    paths: Sequence[Path], sample_rate: int, least: int = 1, reason: str = "there must be a sample"
) -> tuple[dict[Path, Tensor], list[str]]:
    """Sounds `(samples,)` of one channel at a sample rate, by their files; and what was done to them, in words.

    Raises `DataError` where sounds are silent, or shorter than `least` samples, for a `reason`: all of them at once.
    """
    sounds, errors, rates, several = {}, [], set[int](), 0
    for path in paths:
        try:
            sound = read_wav(path)
            mono = sound.samples.mean(1)
            if len(mono) * sample_rate < least * sound.sample_rate:
                raise DataError(
                    f"{path} is too short: {len(mono) / sound.sample_rate:.2f} s, where {reason}. Give a longer one, "
                    "or remove it."
                )
            if mono.min() == mono.max():
                raise DataError(f"{path} is silent. Remove it.")
            sounds[path] = resample(mono, sound.sample_rate, sample_rate)
        except DataError as error:
            errors.append(str(error))
            continue
        rates |= {sound.sample_rate} - {sample_rate}
        several += sound.samples.shape[1] > 1
    if errors:
        raise DataError(" ".join([f"{len(errors)} sounds cannot be used:", *errors] if len(errors) > 1 else errors))
    notes = {
        f"resampled to {sample_rate} Hz from {', '.join(f'{rate} Hz' for rate in sorted(rates))}": rates,
        f"of several channels, their mean taken: {several} of {len(paths)}": several,
    }
    return sounds, [note for note, happened in notes.items() if happened]


def clip_of(sound: Sound, picture: LogMels, path: Path) -> Tensor:
    """The beginning of a sound, `(picture.length,)`: one channel, at the sample rate of the pictures.

    Of several channels it is the mean. What is missing at the end is silence.

    Raises:
        DataError: it is silent, or shorter than a step of time. `path` is named.
    """
    samples, sample_rate = sound
    mono = samples[: -(-picture.length * sample_rate // picture.sample_rate)].mean(1)
    least = picture.hop / picture.sample_rate
    if len(mono) < least * sample_rate:
        raise DataError(
            f"{path} is too short: {1000 * len(mono) / sample_rate:.1f} ms, where one of the {picture.size} steps of "
            f"time of a picture is {1000 * least:.1f} ms. Remove it, or lower data.seconds."
        )
    if mono.min() == mono.max():
        many = f" (the mean of its {samples.shape[1]} channels)" if samples.shape[1] > 1 else ""
        raise DataError(
            f"{path} is silent in its first {len(mono) / sample_rate:g} s{many}. Remove it, or raise data.seconds."
        )
    clip = resample(mono, sample_rate, picture.sample_rate)[: picture.length]
    return torch.nn.functional.pad(clip, (0, picture.length - len(clip)))
