"""A trained separator on mixtures of a user's: examples of each voice by itself, and files to be taken apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.sound import resample
from lightning_meta.datamodules.audio.wav import Sound, read_wav, write_wav
from lightning_meta.datamodules.files import SOUNDS, example_files, sub_folders
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.modules import SeparationModule


def predict_sounds(
    module: SeparationModule[Any], data: Any, support: Path, query: Path, out: Path
) -> list[tuple[str, str]]:
    """Write the voices of each mixture to `<out>/<mixture>/<voice>.wav`; and what is to be said of the files.

    Args:
        module: the trained one.
        data: what it was trained on; its `sample_rate` and `length` of segments are those that the module knows.
        support: with a folder for each voice, `<support>/<voice>/*.wav`, in the order of their names.
        query: folder of mixtures.
        out: folder.

    Raises:
        DataError: of the files: all of them at once.
        ConfigError: there are not as many voices as the module was trained on.
    """
    for folder, option in ((support, "--support"), (query, "--query")):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; {option} must be one.")
    voices = sub_folders(support, SOUNDS)
    if len(voices) != module.voices:
        raise ConfigError(
            f"{support} has {len(voices)} folders of voices, but the run takes {module.voices} apart; put sounds of "
            f"each into {support}/<voice>/*.wav."
        )
    solos = [example_files(support / voice, SOUNDS) for voice in voices]
    mixtures = example_files(query, SOUNDS)
    sounds, notes = read_all([*(path for paths in solos for path in paths), *mixtures], data.sample_rate, data.length)
    whole = [torch.cat([sounds[path] for path in paths]) for paths in solos]
    examples = min(len(sound) for sound in whole) // data.length
    y_KVL = torch.stack([sound[: examples * data.length].view(examples, data.length) for sound in whole], 1)
    with torch.no_grad():
        adapted = module.adapt(Batch(y_KVL.sum(1), y_KVL))
    for path in mixtures:
        found_VL = taken_apart(module, adapted, sounds[path], data.length)
        loudest = max(found_VL.abs().max().item(), 1.0)
        for voice, sound_L in zip(voices, found_VL, strict=True):
            write_wav(out / path.stem / f"{voice}.wav", sound_L / loudest, data.sample_rate)
    return [
        (
            "support",
            f"{len(voices)} voices ({', '.join(voices)}), {examples} examples of {data.length} samples of each",
        ),
        ("query", f"{len(mixtures)} mixtures"),
        *(("sounds", note) for note in notes),
        ("files", f"{out}/<mixture>/<voice>.wav, {data.sample_rate} Hz"),
    ]


def taken_apart(module: SeparationModule[Any], adapted: Any, x_L: Tensor, length: int) -> Tensor:
    """The voices `(V, L)` of a mixture of any length, in segments of the length of training that fade over."""
    half = length // 2
    rest = -len(x_L) % half
    segments_BL = torch.nn.functional.pad(x_L, (half, half + rest)).unfold(0, 2 * half, half)
    fade_L = torch.hann_window(2 * half)  # two of them, half apart, add up to one
    found_BVL = torch.cat([module.predict(adapted, one[None]) for one in segments_BL]) * fade_L
    first, second = found_BVL[..., :half], found_BVL[..., half:]
    return (first[1:] + second[:-1]).movedim(1, 0).flatten(1)[:, : len(x_L)]


def read_all(paths: Sequence[Path], sample_rate: int, least: int) -> tuple[dict[Path, Tensor], list[str]]:
    """Sounds `(samples,)` of one channel at a sample rate, by their files; and what was done to them, in words.

    Raises `DataError` where sounds are silent, or shorter than `least` samples: all of them at once.
    """
    sounds, errors, rates, several = {}, [], set[int](), 0
    for path in paths:
        try:
            sound = read_wav(path)
            sounds[path] = usable(sound, sample_rate, least, path)
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


def usable(sound: Sound, sample_rate: int, least: int, path: Path) -> Tensor:
    """Its samples `(samples,)`. Raises `DataError` where they are too few, or silence."""
    mono = sound.samples.mean(1)
    if len(mono) * sample_rate < least * sound.sample_rate:
        raise DataError(
            f"{path} is too short: {len(mono) / sound.sample_rate:.2f} s, where the run was trained on segments of "
            f"{least / sample_rate:g} s. Give a longer one, or remove it."
        )
    if mono.min() == mono.max():
        raise DataError(f"{path} is silent. Remove it.")
    return resample(mono, sound.sample_rate, sample_rate)
