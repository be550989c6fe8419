"""What happens in a MIDI file as tokens: notes begin and end on a grid of time, in any number at once.

Ids are 0 for padding, 1 to 16 for so many steps that pass, then two for each pitch: it is struck, it ends. What happens
in a step is in one order: ends before beginnings, each from the lowest pitch up. So the same notes are the same tokens.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.core.tokenizer import PAD
from lightning_meta.datamodules.audio.midi import Note, Passage
from lightning_meta.errors import reason

LONGEST_WAIT = 16  # steps that one token stands for, at most
FIRST_PITCH = PAD + 1 + LONGEST_WAIT  # id
IDS_PER_PITCH = 2  # struck, ended
PITCHES = 128  # of MIDI
DRUMS = 9  # the channel, counted from 0
MOST_STEPS = 100_000  # 6,250 bars of sixteenths: damaged files may have times that never end


class UnusableFileError(ValueError):
    """A file of which no tokens can be made: in `kind` what is wrong, in words for several files, and for this one."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


class Ticks(NamedTuple):
    """Notes `(begin, end, pitch)` of a file, in ticks, and how many ticks a quarter has."""

    notes: list[tuple[int, int, int]]
    per_quarter: int


def read_ticks(path: Path) -> Ticks:
    """The notes of a MIDI file but drums, those of all tracks together. Raises `UnusableFileError`.

    Pedals, loudness, instruments and changes of tempo are passed over.
    """
    import mido  # of an extra: ask `need` before

    try:
        file = mido.MidiFile(path)
        tracks = [_notes_of_track(track) for track in file.tracks]
    except Exception as error:  # a damaged file fails as whatever the reader stumbles over
        raise UnusableFileError("damaged, or no MIDI files", reason(error).rstrip(".")) from error
    if file.ticks_per_beat <= 0 or file.type == 2:
        what = "tracks that are pieces of their own" if file.ticks_per_beat > 0 else "times in frames of film"
        raise UnusableFileError("without beats that all tracks share", what)
    notes = [note for of_track, _ in tracks for note in of_track]
    if not notes:
        drums = any(drums for _, drums in tracks)
        raise UnusableFileError("with drums alone" if drums else "without notes")
    return Ticks(notes, file.ticks_per_beat)


def _notes_of_track(track: Iterable[Any]) -> tuple[list[tuple[int, int, int]], bool]:
    """Its notes, and whether there are drums. A note that nothing ends lasts as long as the track."""
    notes, sounding, now = [], dict[tuple[int, int], list[int]](), 0
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off"):
            continue
        begun = sounding.setdefault((message.channel, message.note), [])
        if message.type == "note_on" and message.velocity:
            begun.append(now)
        elif begun:
            notes.append((begun.pop(0), now, message.channel, message.note))
    notes += [(begin, now, *place) for place, begun in sounding.items() for begin in begun]
    drums = any(channel == DRUMS for _, _, channel, _ in notes)
    return [(begin, end, pitch) for begin, end, channel, pitch in notes if channel != DRUMS], drums


def on_grid(ticks: Ticks, steps_per_quarter: int) -> list[Note]:
    """The notes at the nearest steps, the first of them at step 0; none is shorter than a step.

    A pitch sounds once at a time: struck while it sounds, it begins anew, and lasts as long as either note.
    """

    def nearest(tick: int) -> int:
        return (2 * tick * steps_per_quarter + ticks.per_quarter) // (2 * ticks.per_quarter)

    first = min(nearest(begin) for begin, _, _ in ticks.notes)
    longest: dict[tuple[int, int], int] = {}
    for struck, released, pitch in ticks.notes:
        begin, end = nearest(struck) - first, nearest(released) - first
        longest[pitch, begin] = max(longest.get((pitch, begin), 0), end, begin + 1)
    notes: list[Note] = []
    for (pitch, begin), end in sorted(longest.items()):
        if notes and notes[-1].pitch == pitch and notes[-1].end > begin:
            end = max(end, notes[-1].end)
            notes[-1] = notes[-1]._replace(end=begin)
        notes.append(Note(begin, end, pitch))
    if (steps := max(note.end for note in notes)) > MOST_STEPS:
        raise UnusableFileError(f"longer than {MOST_STEPS:,} steps", f"{steps:,}")
    return sorted(notes)


def tokens_of(notes: Sequence[Note], lowest: int = 0) -> Tensor:
    """The ids of notes of which none overlaps another of its pitch; `lowest` is the first pitch that has ids."""
    happens = sorted([(note.end, 0, note.pitch) for note in notes] + [(note.begin, 1, note.pitch) for note in notes])
    ids, now = [], 0
    for step, struck, pitch in happens:
        longest, rest = divmod(step - now, LONGEST_WAIT)
        ids += [LONGEST_WAIT] * longest + [rest] * bool(rest)
        ids.append(FIRST_PITCH + IDS_PER_PITCH * (pitch - lowest) + (0 if struck else 1))
        now = step
    return torch.tensor(ids)


def passage_of(tokens: Tensor, lowest: int = 0) -> Passage:
    """The notes of any ids. What ends without having begun is passed over; what has not ended lasts to the end."""
    notes, sounding, now = [], dict[int, int](), 0
    for id in tokens.tolist():
        if id < FIRST_PITCH:
            now += id
            continue
        pitch, ended = divmod(id - FIRST_PITCH, IDS_PER_PITCH)
        notes.append(Note(sounding.pop(pitch, now), now, pitch + lowest))
        if not ended:
            sounding[pitch] = now
    notes += [Note(begin, now, pitch + lowest) for pitch, begin in sounding.items()]
    return Passage([sorted(note for note in notes if note.begin < note.end)], now)
