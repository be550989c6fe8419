"""What does a recogniser that has adapted to speakers hear in strings of theirs?"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.core.ctc import strings_of
from lightning_meta.datamodules.audio.speech import StringSource
from lightning_meta.reports.base import Report
from lightning_meta.reports.style import DPI, GREEN, INK, LABEL, SMALL, TITLE, VERMILLION
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested

COLUMNS = 2
WIDTH, HEIGHT, TOP = 4.2, 1.45, 0.5  # inches, of a spectrum, and above all


class Transcripts(Report):
    """Picture `transcripts`: spectra of strings of test episodes, with what is read before and after adaptation.

    `transcripts.csv` has all queries of these episodes. For what writes down speech, on `Babble` and its like.

    Args:
        episodes: how many test episodes are in the table.
        strings: how many of the strings are drawn, of one episode after the other.
    """

    def __init__(self, episodes: int = 5, strings: int = 6) -> None:
        super().__init__(episodes=episodes, strings=strings)
        self.episodes, self.strings = episodes, strings

    def applies(self, tested: Tested) -> bool:
        return tested.adapts_in_steps and tested.draws_from(StringSource)

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        ids, symbols = tested.first(self.episodes), tested.data.symbols
        tasks = tested.episodes(ids)
        before, after = tested.play(tasks, inner_steps=0).preds, tested.play(tasks).preds
        parts = {"before": before, "text": after, "truth": tasks.query.y}
        written = [strings_of(part.flatten(0, 1), symbols) for part in parts.values()]
        of_each = tasks.query.y.shape[1]
        rows = [
            {"episode": str(ids[place // of_each])} | dict(zip(parts, texts, strict=True))
            for place, texts in enumerate(zip(*written, strict=True))
        ]
        write_csv(log_dir / "transcripts.csv", rows)
        shown = sorted(range(len(rows)), key=lambda place: place % of_each)[: self.strings]  # one of each, then on
        spectra = tasks.query.x.float().cpu().flatten(0, 1)[shown]
        step = tested.data.mels.step
        return {"transcripts": transcripts(spectra, [rows[place] for place in shown], step, tested.name)}


def transcripts(spectra: Tensor, rows: Sequence[dict[str, str]], step: float, title: str = "Transcripts") -> Figure:
    """A spectrum for each string; what was read is green where it is right.

    Args:
        spectra: frames `(strings, S, bands)`.
        rows: what was read in each before and after adaptation, and what was said.
        step: seconds of a frame.
        title: of the figure.
    """
    lines = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * WIDTH, TOP + lines * HEIGHT), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=TITLE, color=INK, x=0.01, ha="left")
    grid = figure.subplots(lines, COLUMNS, squeeze=False, sharex=True)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, spectrum_SF, row in zip(grid.flat, spectra, rows, strict=False):
        seconds = step * len(spectrum_SF)
        axes.imshow(
            spectrum_SF.T, origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=1, extent=(0, seconds, 0, 1)
        )
        axes.set_yticks([])
        axes.tick_params(labelsize=SMALL)
        colour = GREEN if row["text"] == row["truth"] else VERMILLION
        axes.set_title(f"said {row['truth']}", fontsize=LABEL, color=INK, loc="left")
        axes.set_title(f"read {row['text'] or 'nothing'}", fontsize=LABEL, color=colour, loc="center")
        axes.set_title(f"before {row['before'] or 'nothing'}", fontsize=SMALL, color=INK, loc="right")
    figure.supxlabel("seconds", fontsize=LABEL, color=INK)
    return figure
