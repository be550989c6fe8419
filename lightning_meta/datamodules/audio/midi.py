"""Notes, and standard MIDI files of them, without another library: what editors of notes and players read.

The format is that of "Standard MIDI Files 1.0" (MIDI Manufacturers Association, RP-001).
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_meta.datamodules.audio.chorales import Score

STEPS_PER_QUARTER = 4
VELOCITY = 80
NAME, END_OF_TRACK, TEMPO = 0x03, 0x2F, 0x51  # kinds of meta events
ON, OFF = 0x90, 0x80


class Note(NamedTuple):
    """On a grid: the step where it begins, that after its last, and its pitch in semitones as MIDI counts them."""

    begin: int
    end: int
    pitch: int


class Passage(NamedTuple):
    """The notes of each voice, by when they begin, and how many steps there are in all."""

    voices: list[list[Note]]
    steps: int


def passage_of(score: Score) -> Passage:
    """The notes of a score. A pitch that does not change is one note."""
    voices = []
    for pitch_S in score.T:
        begins = np.flatnonzero(np.diff(pitch_S, prepend=-2) != 0)
        ends = [*begins[1:].tolist(), len(pitch_S)]
        notes = [Note(b, e, int(pitch_S[b])) for b, e in zip(begins.tolist(), ends, strict=True)]
        voices.append([note for note in notes if note.pitch >= 0])
    return Passage(voices, len(score))


def write_midi(
    path: Path,
    voices: Sequence[Sequence[Note]],
    names: Sequence[str],
    seconds: float,
    steps_per_quarter: int = STEPS_PER_QUARTER,
) -> None:
    """Write the notes of voices, a track for each; a step takes so many seconds."""
    tempo = round(seconds * steps_per_quarter * 1e6).to_bytes(3, "big")  # microseconds of a quarter
    tracks = [_track([(0, _meta(TEMPO, tempo))])]
    for channel, (name, notes) in enumerate(zip(names, voices, strict=True)):
        begins = [(note.begin, bytes([ON | channel, note.pitch, VELOCITY])) for note in notes]
        ends = [(note.end, bytes([OFF | channel, note.pitch, 0])) for note in notes]
        # Where a pitch is struck anew, its end comes first: OFF is less than ON.
        tracks.append(_track([(0, _meta(NAME, name.encode())), *sorted(ends + begins)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_chunk(b"MThd", struct.pack(">HHH", 1, len(tracks), steps_per_quarter)) + b"".join(tracks))


def _track(events: Sequence[tuple[int, bytes]]) -> bytes:
    """Of events at their steps, in their order."""
    written, before = b"", 0
    for step, event in events:
        written += _number(step - before) + event
        before = step
    return _chunk(b"MTrk", written + _number(0) + _meta(END_OF_TRACK, b""))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack(">I", len(content)) + content


def _meta(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """In groups of seven bits, the highest first; all but the last have the eighth bit set."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.insert(0, value & 0x7F | 0x80)
    return bytes(groups)
