"""How does a module that has learned a piece go on with it? Its notes, to look at and to listen to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.sampling import episode_keys, uniform
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.audio.chorales import STEPS_PER_CHORD, Score
from lightning_meta.datamodules.audio.midi import notes_of, write_midi
from lightning_meta.datamodules.audio.synthesis import draw_timbre
from lightning_meta.datamodules.audio.voice_mixtures import CHORD, sung
from lightning_meta.datamodules.audio.wav import write_wav
from lightning_meta.datamodules.sequences.chorales import STEPS_PER_BAR, Chorales, score_of
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import BLUE, GREEN, GREY, INK, LABEL, PURPLE, VERMILLION, new_figure, tidy
from lightning_meta.reports.tested import Tested

SEED = 0x4F52474E  # of what is drawn, the same in every test
NAMES = ("soprano", "alto", "tenor", "bass")
COLOURS = (VERMILLION, PURPLE, GREEN, BLUE)
SAMPLE_RATE = 16000
LOUDEST = 0.8
STEP = CHORD / STEPS_PER_CHORD  # seconds


class Continuations(Report):
    """Picture `continuations`: the bars of a piece that were learned from, and three ways on from there.

    Those are the piece itself, and notes that are drawn one after another from the predictions of the module after and
    before adaptation. All are in `<log_dir>/music/` as MIDI and WAV files, and the latter in W&B. For `Chorales`.

    Args:
        pieces: how many test episodes; the first of them is in the picture.
        chunks: how many the module writes. None: as many as there are queries.
    """

    def __init__(self, pieces: int = 1, chunks: int | None = None) -> None:
        super().__init__(pieces=pieces, chunks=chunks)
        self.pieces, self.chunks = pieces, chunks

    def applies(self, tested: Tested) -> bool:
        return tested.plays_episodes and isinstance(tested.data, Chorales)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        drawn = []
        for number in tested.first(self.pieces):
            support, query = tested.episodes([number])
            start = score_of(support.y.flatten())
            ways = {"piece": score_of(query.y.flatten())}
            steps = {"adapted": None, "before": 0} if tested.adapts_in_steps else {"adapted": None}
            for name, inner_steps in steps.items():
                adapted = tested.adapt(support, inner_steps)
                tokens = continued(tested, adapted, support.y[0, -1, -1], self.chunks or len(query.y[0]), number)
                ways[name] = score_of(tokens)
            for name, score in ways.items():
                self.write(tested, log_dir / "music" / f"piece_{number}_{name}", np.concatenate([start, score]))
            drawn.append((start, ways))
        return {"continuations": continuations(*drawn[0], tested.name)}

    def write(self, tested: Tested, path: Path, score: Score) -> None:
        write_midi(path.with_suffix(".mid"), score, NAMES, STEP)
        write_wav(path.with_suffix(".wav"), played(score), SAMPLE_RATE)
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


def played(score: Score) -> Tensor:
    """The samples of a score on four drawn instruments."""
    samples = round(len(score) * STEP * SAMPLE_RATE)
    timbres, keys = episode_keys(SEED, 1, range(len(NAMES))), episode_keys(SEED, 2, range(len(NAMES)))
    voices = [
        sung(score[:, voice], draw_timbre(timbres[voice]), keys[voice], SAMPLE_RATE, samples)
        for voice in range(len(NAMES))
    ]
    whole = torch.stack([voice / voice.square().mean().sqrt().clamp_min(1e-8) for voice in voices]).sum(0)
    return LOUDEST * whole / whole.abs().max().clamp_min(1e-8)


def continuations(start: Score, ways: Mapping[str, Score], title: str = "Continuations") -> Figure:
    """A row for each way on, pitches over bars; what was learned from stands before the line.

    Args:
        start: `(steps, 4)`, the same for all.
        ways: the scores of each by name: `piece`, `adapted`, `before`.
        title: of the figure.
    """
    told = {"piece": "as the piece goes on", "adapted": "after adaptation", "before": "before adaptation"}
    figure = new_figure(9.0, 1.0 + 1.7 * len(ways), title)
    grid = figure.subplots(len(ways), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, score) in zip(grid, ways.items(), strict=True):
        notes = notes_of(np.concatenate([start, score]))
        for colour, voice, of_voice in zip(COLOURS, NAMES, notes, strict=True):
            begin, end, pitch = np.array(of_voice).reshape(-1, 3).T
            axes.barh(
                pitch, (end - begin - 0.15) / STEPS_PER_BAR, 0.9, begin / STEPS_PER_BAR, color=colour, label=voice
            )
        axes.axvline(len(start) / STEPS_PER_BAR, color=INK, linewidth=1)
        axes.axvspan(0, len(start) / STEPS_PER_BAR, color=GREY, alpha=0.12, linewidth=0)
        tidy(axes, y_label="pitch")
        axes.set_title(told[name], fontsize=LABEL, color=INK, loc="left")
        axes.margins(x=0)
    tidy(grid[-1], "bars", "pitch")
    grid[0].legend(*grid[0].get_legend_handles_labels(), frameon=False, fontsize=LABEL, ncols=4, loc="lower right",
                   bbox_to_anchor=(1, 1), borderpad=0)  # fmt: skip
    return figure
