"""A trained separator on mixtures of a user's: examples of each voice by itself, and files to be taken apart."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.datamodules.audio.wav import read_all, write_wav
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
    reason = f"the run was trained on segments of {data.length / data.sample_rate:g} s"
    paths = [*(path for of_voice in solos for path in of_voice), *mixtures]
    sounds, notes = read_all(paths, data.sample_rate, data.length, reason)
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
