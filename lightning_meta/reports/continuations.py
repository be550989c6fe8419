"""How does a module that has learned a piece go on with it? Its notes, to look at and to listen to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.sampling import episode_keys, uniform
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.audio.midi import Passage, write_midi
from lightning_meta.datamodules.audio.synthesis import draw_timbre
from lightning_meta.datamodules.audio.voice_mixtures import sung
from lightning_meta.datamodules.audio.wav import write_wav
from lightning_meta.datamodules.sequences.music import MusicDataModule
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREEN, GREY, INK, LABEL, PURPLE, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested

SEED = 0x4F52474E  # of what is drawn, the same in every test
COLOURS = (VERMILLION, PURPLE, GREEN, BLUE)
SAMPLE_RATE = 16000
LOUDEST = 0.8
QUARTERS_PER_BAR = 4


class Continuations(Report):
    """Picture `continuations`: the bars of a piece that were learned from, and three ways on from there.

    Those are the piece itself, and notes that are drawn one after another from the predictions of the module after and
    before adaptation. All are in `<log_dir>/music/` as MIDI and WAV files, and the latter in W&B.

    Args:
        pieces: how many test episodes; the first of them is in the picture.
        chunks: how many the module writes. None: as many as there are queries.
    """

    def __init__(self, pieces: int = 1, chunks: int | None = None) -> None:
        super().__init__(pieces=pieces, chunks=chunks)
        self.pieces, self.chunks = pieces, chunks

    def applies(self, tested: Tested) -> bool:
        return tested.plays_episodes and isinstance(tested.data, MusicDataModule)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        data, drawn = tested.data, []
        for number in tested.first(self.pieces):
            support, query = tested.episodes([number])
            start, ways = support.y.flatten(), {"piece": query.y.flatten()}
            steps = {"adapted": None, "before": 0} if tested.adapts_in_steps else {"adapted": None}
            for name, inner_steps in steps.items():
                adapted = tested.adapt(support, inner_steps)
                ways[name] = continued(tested, adapted, start[-1], self.chunks or len(query.y[0]), number)
            passages = {name: data.passage(torch.cat([start, tokens])) for name, tokens in ways.items()}
            for name, passage in passages.items():
                self.write(tested, log_dir / "music" / f"piece_{number}_{name}", passage)
            drawn.append((data.passage(start).steps, passages))
        steps_per_bar = QUARTERS_PER_BAR * data.steps_per_quarter
        return {"continuations": continuations(*drawn[0], data.voices, steps_per_bar, tested.name)}

    def write(self, tested: Tested, path: Path, passage: Passage) -> None:
        data = tested.data
        seconds = data.seconds / data.steps_per_quarter
        write_midi(path.with_suffix(".mid"), passage.voices, data.voices, seconds, data.steps_per_quarter)
        write_wav(path.with_suffix(".wav"), played(passage, seconds, data.steps_per_quarter), SAMPLE_RATE)
        tested.send_sound(path.with_suffix(".wav"))


def continued(tested: Tested, adapted: Any, last: Tensor, chunks: int, piece: int) -> Tensor:
    """So many chunks of tokens `(chunks * length,)` after the token `last`, each drawn from its probabilities."""
    length = tested.data.length
    chances = uniform(episode_keys(SEED, 0, [piece])[0], chunks * length)
    written: list[Tensor] = [last]
    for place, chance in enumerate(chances.tolist()):
        seen_11L = torch.stack(written[place // length * length :])[None, None]
        scores_V = tested.answer(adapted, Batch(seen_11L, seen_11L)).preds[0, 0, -1].double()
        scores_V[PAD] = -torch.inf
        ends_V = scores_V.softmax(-1).cumsum(-1)
        written.append((ends_V[:-1] <= chance * ends_V[-1]).sum())
    return torch.stack(written[1:])


def played(passage: Passage, seconds: float, steps_per_quarter: int) -> Tensor:
    """The samples of a passage whose steps take so many seconds, each voice on a drawn instrument."""
    samples, count = round(max(passage.steps, 1) * seconds * SAMPLE_RATE), range(len(passage.voices))
    timbres, keys = episode_keys(SEED, 1, count), episode_keys(SEED, 2, count)
    voices = [
        sung(notes, draw_timbre(timbre), key, SAMPLE_RATE, samples, seconds, steps_per_quarter)
        for notes, timbre, key in zip(passage.voices, timbres, keys, strict=True)
    ]
    whole = torch.stack([voice / voice.square().mean().sqrt().clamp_min(1e-8) for voice in voices]).sum(0)
    return LOUDEST * whole / whole.abs().max().clamp_min(1e-8)


def continuations(
    start: int, ways: Mapping[str, Passage], names: Sequence[str], steps_per_bar: int, title: str = "Continuations"
) -> Figure:
    """A row for each way on, pitches over bars; what was learned from stands before the line.

    Args:
        start: how many steps were learned from.
        ways: the whole passage of each by name: `piece`, `adapted`, `before`.
        names: of the voices.
        steps_per_bar: of four quarters.
        title: of the figure.
    """
    told = {"piece": "as the piece goes on", "adapted": "after adaptation", "before": "before adaptation"}
    figure = new_figure(9.0, 1.0 + 1.7 * len(ways), title)
    grid = figure.subplots(len(ways), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, passage) in zip(grid, ways.items(), strict=True):
        for colour, voice, of_voice in zip(COLOURS[-len(names) :], names, passage.voices, strict=True):
            begin, end, pitch = np.array(of_voice).reshape(-1, 3).T
            axes.barh(
                pitch, (end - begin - 0.15) / steps_per_bar, 0.9, begin / steps_per_bar, color=colour, label=voice
            )
        axes.axvline(start / steps_per_bar, color=INK, linewidth=1)
        axes.axvspan(0, start / steps_per_bar, color=GREY, alpha=0.12, linewidth=0)
        tidy(axes, y_label="pitch")
        axes.set_title(told[name], fontsize=LABEL, color=INK, loc="left")
        axes.margins(x=0)
    tidy(grid[-1], "bars", "pitch")
    if len(names) > 1:
        grid[0].legend(*grid[0].get_legend_handles_labels(), frameon=False, fontsize=LABEL, ncols=len(names),
                       loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)  # fmt: skip
    return figure
