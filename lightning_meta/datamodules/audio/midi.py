"""Standard MIDI files of scores, without another library: what editors of notes and players read.

The format is that of "Standard MIDI Files 1.0" (MIDI Manufacturers Association, RP-001).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_meta.datamodules.audio.chorales import Score

STEPS_PER_QUARTER = 4
VELOCITY = 80
NAME, END_OF_TRACK, TEMPO = 0x03, 0x2F, 0x51  # kinds of meta events
ON, OFF = 0x90, 0x80


def notes_of(score: Score) -> list[list[tuple[int, int, int]]]:
    """Of each voice the notes in their order: the step where one begins, that after its last, and its pitch.

    A pitch that does not change is one note.
    """
    voices = []
    for pitch_S in score.T:
        begins = np.flatnonzero(np.diff(pitch_S, prepend=-2) != 0)
        ends = [*begins[1:].tolist(), len(pitch_S)]
        voices.append([(b, e, int(pitch_S[b])) for b, e in zip(begins.tolist(), ends, strict=True) if pitch_S[b] >= 0])
    return voices


def write_midi(path: Path, score: Score, names: Sequence[str], seconds: float) -> None:
    """Write a score `(steps, voices)`, a track for each voice; a step takes so many seconds and is a sixteenth note."""
    tempo = round(seconds * STEPS_PER_QUARTER * 1e6).to_bytes(3, "big")  # microseconds of a quarter
    tracks = [_track([(0, _meta(TEMPO, tempo))])]
    for channel, (name, notes) in enumerate(zip(names, notes_of(score), strict=True)):
        events = [(0, _meta(NAME, name.encode()))]
        for begin, end, pitch in notes:
            events.append((begin, bytes([ON | channel, pitch, VELOCITY])))
            events.append((end, bytes([OFF | channel, pitch, 0])))
        tracks.append(_track(events))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_chunk(b"MThd", struct.pack(">HHH", 1, len(tracks), STEPS_PER_QUARTER)) + b"".join(tracks))


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
