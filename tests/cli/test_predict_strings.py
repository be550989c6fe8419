"""Recordings of a user's, written down: whatever their length, rate and channels; others refused by name."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.algorithms import MetaASR
from lightning_meta.cli.predict_strings import predict_strings
from lightning_meta.core import Batch
from lightning_meta.core.ctc import strings_of
from lightning_meta.datamodules.audio.wav import write_wav
from lightning_meta.errors import DataError
from tests.algorithms.test_meta_asr import asr
from tests.conftest import babble

RATE = 8000


def recogniser() -> MetaASR:
    torch.manual_seed(0)
    return asr(inner_lr=0.2, inner_steps=3).eval()


@cache
def words() -> Sequence[Sequence[Tensor]]:
    """The recordings of each word by a speaker."""
    return babble().recordings("test")[0]


def said(text: str) -> Tensor:
    """The words of a string, without pauses but for what is left of a frame."""
    data = babble()
    takes = [words()[data.symbols.index(symbol)][0][: data.samples] for symbol in text]
    return torch.cat([F.pad(take, (0, -len(take) % data.mels.hop + data.mels.hop)) for take in takes])


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    support, query = tmp_path / "support", tmp_path / "query"
    texts = {"one.wav": "ab", "two.wav": "cca"}
    for name, text in texts.items():
        write_wav(support / name, said(text), RATE)
    rows = ["file,text", "one.wav,a b", "two.wav,cca"]
    (support / "transcripts.csv").write_text("\n".join(rows))
    write_wav(query / "x.wav", said("ba"), RATE)
    write_wav(query / "y.wav", said("abcab"), RATE)
    return support, query


def test_it_is_what_the_hooks_make_of_the_frames(places: tuple[Path, Path]) -> None:
    """The frames of whole files are those of the data's strings."""
    module, data = recogniser(), babble(shortest=2, longest=5)
    rows, facts = predict_strings(module, data, *places)
    assert facts == [("support", "2 recordings, 5 symbols of abc"), ("query", "2 recordings")]
    source = data.load_source("test")

    def frames(text: str) -> Tensor:
        clips = torch.full((1, 1, 5), -1)
        clips[0, 0, : len(text)] = torch.tensor([source.begin[0, data.symbols.index(symbol)] for symbol in text])
        x = source.spoken(clips, torch.zeros_like(clips))[0, 0]
        return ((x - x.max() + 60) / 60).clamp_min(0)

    support = Batch(torch.stack([frames("ab"), frames("cca")]), torch.tensor([[1, 2, 0], [3, 3, 1]]))
    adapted = module.adapt(support)
    expected = strings_of(module.predict(adapted, torch.stack([frames("ba"), frames("abcab")])), "abc")
    assert [row["file"] for row in rows] == ["x.wav", "y.wav"]
    assert [row["text"] for row in rows] == expected and any(expected)


def test_other_rates_and_channels_are_told(places: tuple[Path, Path]) -> None:
    write_wav(places[1] / "x.wav", torch.rand(20000) - 0.5, 16000)
    _, facts = predict_strings(recogniser(), babble(), *places)
    assert ("sounds", "resampled to 8000 Hz from 16000 Hz") in facts


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, r"transcripts.csv cannot be read .*with the columns file and text"),
        ("file,words\none.wav,ab", r"transcripts.csv lacks the column text"),
        ("file,text", r"transcripts.csv has no rows"),
        ("file,text\nnone.wav,ab", r"none.wav does not exist"),
        ("file,text\none.wav,", r"one.wav has no text"),
        ("file,text\none.wav,a7x", r"one.wav has 7, x in its text. The symbols of the run are abc"),
        ("file,text\none.wav," + 40 * "a", r"one.wav has \d+ steps of time, but its text a+ takes 79. Give longer"),
    ],
)
def test_tables_that_do_not_fit_are_refused(places: tuple[Path, Path], table: Any, message: str) -> None:
    (places[0] / "transcripts.csv").unlink()
    if table is not None:
        (places[0] / "transcripts.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        predict_strings(recogniser(), babble(), *places)


def test_what_cannot_be_heard_is_refused_by_name(places: tuple[Path, Path], tmp_path: Path) -> None:
    support, query = places
    write_wav(query / "silent.wav", torch.zeros(6000), RATE)
    write_wav(query / "short.wav", torch.rand(100), RATE)
    with pytest.raises(DataError, match=r"2 sounds cannot be used: .*short.wav is too short: 0.01 s, where a frame is"):
        predict_strings(recogniser(), babble(), support, query)
    with pytest.raises(DataError, match="nowhere is no folder; --query must be one"):
        predict_strings(recogniser(), babble(), support, tmp_path / "nowhere")
