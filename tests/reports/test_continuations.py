"""Continuations: what is drawn from a model that is sure, how often from one that is not, and what is written."""

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from lightning_meta.algorithms import MAML
from lightning_meta.backbones import NextToken
from lightning_meta.core import Batch
from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules import Chorales, ClassSplit, MidiFolder
from lightning_meta.datamodules.audio.midi import Note, Passage, passage_of
from lightning_meta.datamodules.audio.wav import read_wav
from lightning_meta.datamodules.sequences.chorales import score_of
from lightning_meta.reports import tested
from lightning_meta.reports.continuations import Continuations, continuations, continued, played
from tests.conftest import midi_files, next_tokens
from tests.datamodules.test_midi import NAMES, read
from tests.reports.conftest import run_test

VOCABULARY, LENGTH = 64, 8
STEP = 0.15  # seconds


class Counting(NextToken):
    """Its features name the next token: the last one and one more; and every place of a row but the last is ignored."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY, LENGTH, VOCABULARY)

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return 50 * torch.nn.functional.one_hot((ids_BL + 1) % VOCABULARY, VOCABULARY).to(self.places)


def data() -> Chorales:
    return Chorales(pieces=[1, 1, 2], bars=1, k_shot=3, n_query=2, length=LENGTH, val_episodes=1, test_episodes=2)


def module(backbone: NextToken | None = None) -> MAML:
    made = MAML(**(next_tokens(vocabulary=VOCABULARY, length=LENGTH) | ({"backbone": backbone} if backbone else {})))
    if backbone:
        with torch.no_grad():
            made.learner[1].weight.copy_(torch.eye(VOCABULARY))
            made.learner[1].bias.zero_()
    return made.eval()


def asked_of(made: Any) -> tested.Tested:
    trainer, pieces = pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False), data()
    pieces.setup("test")
    return tested.Tested(trainer, made, pieces)


@torch.no_grad()
def test_a_model_that_is_sure_is_followed_over_the_ends_of_chunks() -> None:
    counting = asked_of(module(Counting()))
    support = counting.episodes([0]).support
    adapted = counting.adapt(support, inner_steps=0)
    found = continued(counting, adapted, torch.tensor(5), 2, piece=0)
    assert found.tolist() == list(range(6, 6 + 2 * LENGTH))


@torch.no_grad()
def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Of a model that is not adapted and knows two tokens; padding, which it wants most, is never drawn."""
    backbone = Counting()
    made = module(backbone)
    made.learner[1].weight.zero_()
    made.learner[1].bias.fill_(-50)
    made.learner[1].bias[[PAD, 10, 20]] = torch.tensor([9.0, 0.0, 1.0])
    asked = asked_of(made)
    adapted = asked.adapt(asked.episodes([0]).support, inner_steps=0)
    tokens = torch.cat([continued(asked, adapted, torch.tensor(5), 10, piece) for piece in range(10)])
    assert set(tokens.tolist()) == {10, 20}
    assert (tokens == 20).double().mean() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.05)


def test_what_is_written_is_what_was_learned_and_what_follows(tmp_path: Path) -> None:
    wandb, made, pieces = create_autospec(WandbLogger, instance=True), module(), data()
    report = Continuations(pieces=2)
    run_test(tmp_path, made, pieces, report, logger=[CSVLogger(tmp_path, name="", version=""), wandb])
    assert [path.name for path in report.paths] == ["continuations.png"]
    ways = ("piece", "adapted", "before")
    stems = {f"piece_{number}_{way}" for number in range(2) for way in ways}
    assert {path.name for path in (tmp_path / "music").iterdir()} == {
        f"{s}.{kind}" for s in stems for kind in ("mid", "wav")
    }
    logged = {name for call in wandb.experiment.log.call_args_list for name in call.args[0]}
    assert logged == {f"test/{stem}" for stem in stems}
    tasks = pieces.dataset("test").__getitems__(range(2))
    for number in range(2):
        start = score_of(tasks.support.y[number].flatten())
        for way in ways:
            _, (_, *tracks) = read((tmp_path / "music" / f"piece_{number}_{way}.mid").read_bytes())
            whole = np.full((10, len(NAMES)), -1)
            for voice, (_, _, notes) in enumerate(tracks):
                for begin, end, pitch in notes:
                    whole[begin:end, voice] = pitch
            assert np.array_equal(whole[:6], start)
            sound = read_wav(tmp_path / "music" / f"piece_{number}_{way}.wav")
            assert len(sound.samples) == round(10 * STEP * sound.sample_rate)
        truth = score_of(torch.cat([tasks.support.y[number], tasks.query.y[number]]).flatten())
        expected = played(passage_of(truth), STEP, 4)
        found = read_wav(tmp_path / "music" / f"piece_{number}_piece.wav").samples[:, 0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_pieces_of_a_folder_are_gone_on_with(tmp_path: Path, midi_reader: None) -> None:
    """Their notes as they are in the tokens, in one track, with the grid of the data."""
    midi_files(tmp_path / "midi", 3)
    folder = MidiFolder(
        str(tmp_path / "midi"), ClassSplit(fractions=(0.4, 0.3, 0.3)), cache=str(tmp_path / "cache"), k_shot=3,
        n_query=2, length=LENGTH, steps_per_quarter=2, test_episodes=1,
    )  # fmt: skip
    made = MAML(**next_tokens(vocabulary=folder.vocabulary, length=LENGTH))
    run_test(tmp_path, made, folder, Continuations(chunks=3))
    tasks = folder.dataset("test").__getitems__([0])
    truth = folder.passage(torch.cat([tasks.support.y[0], tasks.query.y[0]]).flatten())
    division, (head, (name, _, found)) = read((tmp_path / "music" / "piece_0_piece.mid").read_bytes())
    assert (division, head[1], name, sorted(found)) == (2, 500_000, "notes", truth.voices[0])
    sound = read_wav(tmp_path / "music" / "piece_0_piece.wav")
    assert len(sound.samples) == round(truth.steps * 0.25 * sound.sample_rate)
    assert len([*(tmp_path / "music").iterdir()]) == 6


def test_pitches_that_are_too_high_to_be_heard_leave_the_rest_as_it_is() -> None:
    whole = played(Passage([[Note(0, 9, 60), Note(4, 6, 127)]], 9), 0.125, 4)
    assert whole.isfinite().all() and whole[:8000].square().mean() > 1e-3


def test_a_passage_in_which_no_time_passes_is_silent() -> None:
    assert not played(Passage([[]], 0), 0.125, 4).any()


def test_the_picture_has_a_bar_for_each_note() -> None:
    start = [[72, 67, 60, 48]] * 4
    ways = {"piece": [[72, 67, 59, -1]] * 4, "adapted": [[74, 67, 60, 48]] * 4}
    figure = continuations(4, {way: passage_of(np.array(start + score)) for way, score in ways.items()}, NAMES, 16)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["as the piece goes on", "after adaptation"]
    notes = [
        sorted(
            (round(bar.get_x() * 16), round(bar.get_y() + bar.get_height() / 2))
            for voice in axes.containers
            for bar in voice
        )
        for axes in figure.axes
    ]
    assert notes == [
        [(0, 48), (0, 60), (0, 67), (0, 72), (4, 59)], [(0, 48), (0, 60), (0, 67), (0, 72), (4, 74)],
    ]  # fmt: skip


def test_batches_of_one_query_are_answered_as_in_the_test() -> None:
    """`adapt` and `answer` are the halves of `play`."""
    asked = asked_of(module())
    tasks = asked.episodes([0, 1])
    with torch.no_grad():
        whole = asked.play(tasks).preds
        parts = asked.answer(asked.adapt(tasks.support), Batch(*tasks.query)).preds
        torch.testing.assert_close(parts, whole)
        unadapted = asked.answer(asked.adapt(tasks.support, inner_steps=0), tasks.query).preds
    assert not torch.allclose(unadapted, whole)
