"""MIDI files, read back by the rules of the format."""

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.audio.chorales import draw_chorale
from lightning_meta.datamodules.audio.midi import _number, passage_of, write_midi

NAMES = ("soprano", "alto", "tenor", "bass")


def number(content: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and where the next byte is."""
    value = 0
    while True:
        value, byte, place = value << 7 | content[place] & 0x7F, content[place], place + 1
        if byte < 0x80:
            return value, place


def read(content: bytes) -> tuple[int, list[tuple[str, int, list[tuple[int, int, int]]]]]:
    """Ticks of a quarter, and of each track its name, its tempo, and its notes: begin, end, pitch."""
    name, size, kind, count, division = struct.unpack_from(">4sIHHH", content)
    assert (name, size, kind) == (b"MThd", 6, 1)
    tracks, start = [], 14
    while start < len(content):
        name, size = struct.unpack_from(">4sI", content, start)
        assert name == b"MTrk"
        place, end, time, title, tempo, notes, sounding = start + 8, start + 8 + size, 0, "", 0, [], {}
        while place < end:
            wait, place = number(content, place)
            time += wait
            if content[place] == 0xFF:
                event, (length, place) = content[place + 1], number(content, place + 2)
                told, place = content[place : place + length], place + length
                title = told.decode() if event == 3 else title
                tempo = int.from_bytes(told, "big") if event == 0x51 else tempo
                assert (event == 0x2F) == (place == end)
            else:
                status, pitch, velocity = content[place : place + 3]
                place += 3
                if status & 0xF0 == 0x90 and velocity:
                    sounding[pitch] = time
                else:
                    notes.append((sounding.pop(pitch), time, pitch))
        assert not sounding
        tracks.append((title, tempo, notes))
        start = end
    assert len(tracks) == count
    return division, tracks


def test_a_score_is_written_as_its_notes(tmp_path: Path) -> None:
    score = draw_chorale(episode_keys(0, 0, [0])[0], 60)
    score[5:9, 2] = -1
    write_midi(tmp_path / "music" / "piece.mid", passage_of(score).voices, NAMES, 0.15)
    division, (head, *tracks) = read((tmp_path / "music" / "piece.mid").read_bytes())
    assert (division, head[1]) == (4, 600_000) and [title for title, *_ in tracks] == list(NAMES)
    again = np.full_like(score, -1)
    for voice, (_, _, notes) in enumerate(tracks):
        for begin, end, pitch in notes:
            again[begin:end, voice] = pitch
        assert all(a[1] < b[0] or a[2] != b[2] for a, b in pairwise(notes)), "held, not repeated"
    assert np.array_equal(again, score)


def test_numbers_are_those_of_the_standard() -> None:
    table = {0: "00", 0x40: "40", 0x7F: "7f", 0x80: "8100", 0x2000: "c000", 0x3FFF: "ff7f", 0x4000: "818000"}
    assert {value: _number(value).hex() for value in table} == table


@pytest.mark.parametrize("score", [[[60, -1]], [[60, 50], [60, -1]]])
def test_rests_are_no_notes(score: list[list[int]]) -> None:
    assert [len(notes) for notes in passage_of(np.array(score)).voices] == [1, len(score) - 1]
