"""How does a translator that has adapted to a language translate sentences of it?"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lightning_meta.core.sentences import words_of
from lightning_meta.datamodules.language.translations import TranslationDataModule
from lightning_meta.metrics import EpisodicBLEU, EpisodicWordAccuracy
from lightning_meta.reports.base import Report
from lightning_meta.reports.fonts import drawable, short
from lightning_meta.reports.style import DPI, GREEN, GREY, INK, LABEL, SMALL, TITLE, VERMILLION
from lightning_meta.reports.tables import write_csv
from lightning_meta.reports.tested import Tested

LINE, WIDTH, LEFT, TOP = 0.22, 8.2, 1.1, 0.62  # inches
LONGEST = 84  # letters of a line


class Translations(Report):
    """Picture `translations`: sentences of test languages, their translations before and after adaptation, the truth.

    `translations.csv` has all queries of these episodes. For what translates, on `Ciphers` and its like.

    Args:
        episodes: how many test episodes are in the table.
        sentences: how many of the sentences are drawn, of one episode after the other.
    """

    def __init__(self, episodes: int = 5, sentences: int = 6) -> None:
        super().__init__(episodes=episodes, sentences=sentences)
        self.episodes, self.sentences = episodes, sentences

    def applies(self, tested: Tested) -> bool:
        return (
            tested.adapts_in_steps
            and isinstance(tested.data, TranslationDataModule)
            and isinstance(tested.module.metric, EpisodicBLEU | EpisodicWordAccuracy)
        )

    def draw(self, tested: Tested, log_dir: Path) -> dict[str, Figure]:
        ids = tested.first(self.episodes)
        tasks, source, target = tested.episodes(ids), tested.data.source_words(), tested.data.target_words()
        before, after = tested.play(tasks, inner_steps=0).preds, tested.play(tasks).preds
        rows = [
            dict(zip(("episode", "sentence", "before", "translation", "truth"), (episode, *texts), strict=True))
            for number, episode in enumerate(ids)
            for texts in zip(
                words_of(tasks.query.x[number], source),
                *(words_of(part[number], target) for part in (before, after, tasks.query.y)),
                strict=True,
            )
        ]
        write_csv(log_dir / "translations.csv", rows)
        of_each = len(rows) // len(ids)  # one of each episode, then the next of each
        shown = sorted(rows, key=lambda row: rows.index(row) % of_each)[: self.sentences]
        return {"translations": translations(shown, tested.title)}


def translations(rows: Sequence[dict[str, str]], title: str = "Translations") -> Figure:
    """Four lines for each sentence; a translation is green where it is right, word for word."""
    lines = ("sentence", "before", "translation", "truth")
    height = TOP + len(rows) * (len(lines) + 0.6) * LINE
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(0.12, 0.12, title, fontsize=TITLE, color=INK, va="top")
    for place, row in enumerate(rows):
        top = TOP + place * (len(lines) + 0.6) * LINE
        texts = short(drawable([row[line] for line in lines], "text"), LONGEST)
        for number, (line, text) in enumerate(zip(lines, texts, strict=True)):
            right = GREEN if row[line] == row["truth"] else VERMILLION
            colour = right if line == "translation" else GREY if line == "before" else INK
            middle = top + number * LINE
            axes.text(LEFT - 0.1, middle, line, fontsize=SMALL, color=GREY, ha="right", va="center")
            axes.text(LEFT, middle, text, fontsize=LABEL, color=colour, va="center")
    return figure
