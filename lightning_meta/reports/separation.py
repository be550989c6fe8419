"""What is heard in a mixture: the spectra of its voices, estimated and true, and the sounds to listen to."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.compat import tree_map
from lightning_meta.core.sound import power_spectra, si_sdr_improvement, sounding
from lightning_meta.datamodules.audio.voice_mixtures import VoiceBank
from lightning_meta.datamodules.audio.wav import write_wav
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import DPI, INK, LABEL, SMALL, TITLE
from lightning_meta.reports.tested import Tested

FLOOR = 60.0  # decibels below the loudest place of the mixture, where a picture is white
WINDOW, HOP = 512, 64  # samples
NAMES = ("soprano", "alto", "tenor", "bass")


class Separation(Report):
    """Picture `separation`: spectra of a mixture of a test episode, of its voices as estimated, and as they are.

    The sounds go to `<log_dir>/sounds/`, as WAV files, and to W&B: the mixture, and of each voice the estimate and the
    truth. For `VoiceMixtures`.

    Args:
        mixtures: how many are written as sounds.
    """

    def __init__(self, mixtures: int = 1) -> None:
        super().__init__(mixtures=mixtures)
        self.mixtures = mixtures

    def applies(self, tested: Tested) -> bool:
        return tested.draws_from(VoiceBank)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        episode = tested.episodes(tested.first(1))
        found_QVL = tested.play(episode).preds[0].float().cpu()
        mixture_QL, true_QVL = tree_map(lambda leaf: leaf[0].float().cpu(), episode.query)
        rate = tested.data.sample_rate
        for q in range(min(self.mixtures, len(mixture_QL))):
            self.write(tested, log_dir / "sounds", q, mixture_QL[q], found_QVL[q], true_QVL[q], rate)
        return {"separation": separation(mixture_QL[0], found_QVL[0], true_QVL[0], rate, tested.name)}

    def write(
        self, tested: Tested, folder: Path, q: int, mixture_L: Tensor, found_VL: Tensor, true_VL: Tensor, rate: int
    ) -> None:
        """The sounds of a mixture, all at the level at which none of them is cut."""
        sounds = {"mixture": mixture_L}
        for name, found_L, true_L in zip(NAMES, found_VL, true_VL, strict=True):
            sounds |= {f"{name}_estimate": found_L, f"{name}_truth": true_L}
        loudest = torch.stack([*sounds.values()]).abs().max().clamp_min(1e-8)
        for name, sound_L in sounds.items():
            path = folder / f"mixture_{q}_{name}.wav"
            write_wav(path, sound_L / loudest, rate)
            tested.send_sound(path)


def separation(mixture_L: Tensor, found_VL: Tensor, true_VL: Tensor, rate: int, title: str = "Separation") -> Figure:
    """Two rows, what was found and what is true: the mixture in front of both, then each voice.

    Args:
        mixture_L: samples.
        found_VL, true_VL: of its voices.
        rate: samples in a second.
        title: of the figure.
    """
    better_V = si_sdr_improvement(found_VL, true_VL)
    there_V = sounding(true_VL)
    figure = Figure(figsize=(11, 4.6), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}: improvement of the SI-SDR", fontsize=TITLE, color=INK, x=0.01, ha="left")
    grid = figure.subplots(2, 1 + len(true_VL), sharex=True, sharey=True)
    whole = decibels(mixture_L)
    for row, (label, voices) in enumerate((("estimate", found_VL), ("truth", true_VL))):
        for column, sound_L in enumerate((mixture_L, *voices)):
            axes = grid[row, column]
            axes.imshow(
                decibels(sound_L) - whole.max(), origin="lower", aspect="auto", cmap="Greys", vmin=-FLOOR, vmax=0,
                extent=(0, len(mixture_L) / rate, 0, rate / 2000),
            )  # fmt: skip
            axes.tick_params(labelsize=SMALL)
            if column and row == 0:
                said = f"{better_V[column - 1]:+.1f} dB" if there_V[column - 1] else "silent"
                axes.set_title(f"{NAMES[column - 1]}, {said}", fontsize=LABEL, color=INK)
        grid[row, 1].set_ylabel(label, fontsize=LABEL, color=INK)
        grid[row, 0].set_ylabel("kHz", fontsize=LABEL, color=INK)
    grid[0, 0].set_title("mixture", fontsize=LABEL, color=INK)
    grid[0, 0].tick_params(labelbottom=True)
    grid[1, 0].set_visible(False)
    figure.supxlabel("seconds", fontsize=LABEL, color=INK)
    return figure


def decibels(sound_L: Tensor) -> Tensor:
    """Power `(frequencies, steps)`."""
    return 10 * power_spectra(sound_L[None], WINDOW, WINDOW, HOP)[0].clamp_min(1e-12).log10()
