"""Scores for four voices: drawn by rule and by key, chords in a key, each voice going on to a near tone; or Bach's."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_meta.core.episode import Split
from lightning_meta.core.sampling import Keys, subkeys, uniform
from lightning_meta.errors import DataError, reason

Score = npt.NDArray[np.int64]  # (steps, 4): the pitch of each voice, from the highest, in semitones; -1 is a rest

# From which to which pitch each voice goes, in semitones as MIDI counts them: soprano, alto, tenor, bass.
RANGES = ((60, 79), (53, 72), (47, 67), (35, 60))  # wide enough for a tone below the lowest of the voice above
SCALE = (0, 2, 4, 5, 7, 9, 11)  # of a major key, from its keynote
# Chords by the degree of their root, and how likely each is to follow: tonic, dominant and what leads to it.
NEXT = {
    0: {3: 3, 4: 3, 5: 2, 1: 2},
    1: {4: 4, 6: 1},
    3: {4: 3, 0: 2, 1: 2},
    4: {0: 4, 5: 2},
    5: {3: 2, 1: 3, 4: 1},
    6: {0: 1},
}
STEPS_PER_CHORD = 4
PASSING = 0.35  # how often a voice leaves a chord's tone for a neighbour half-way
JUMPS = 3.0  # semitones: a tone so much further away is e times less likely
JSB = "jsb_chorales/Jsb16thSeparated.json"
ORIGIN = "Copy it from https://github.com/czhuang/JSB-Chorales-dataset, or leave data.scores at drawn."


class Draws(NamedTuple):
    """Numbers in [0, 1) for each chord: of its root `(chords,)`; of tones, and of leaving them, `(chords, 4)` each."""

    root: npt.NDArray[np.float64]
    tone: npt.NDArray[np.float64]
    passing: npt.NDArray[np.float64]


def draw_chorale(key: Keys, chords: int) -> Score:
    """The score of a key `()`."""
    of_keynote, of_root, of_tone, of_passing = subkeys(key, range(4))
    keynote = int(12 * uniform(of_keynote, 1)[0])
    draws = Draws(
        uniform(of_root, chords), *(uniform(one, 4 * chords).reshape(chords, 4) for one in (of_tone, of_passing))
    )
    in_scale = {(keynote + tone) % 12 for tone in SCALE}
    before, degree, score = [round(sum(ends) / 2) for ends in RANGES], 0, []
    for root, tones, passing in zip(*draws, strict=True):
        triad = {(keynote + SCALE[(degree + third) % 7]) % 12 for third in (0, 2, 4)}
        pitches: list[int] = []
        for voice, (low, high) in enumerate(RANGES):
            # The bass takes the root; nobody crosses the voice above.
            wanted = {(keynote + SCALE[degree]) % 12} if voice == 3 else triad
            top = min([high, *(pitch - 1 for pitch in pitches[-1:])])
            near = [pitch for pitch in range(low, top + 1) if pitch % 12 in wanted]
            pitches.append(pick(near, [abs(pitch - before[voice]) for pitch in near], tones[voice]))
        second = [step_away(pitch, in_scale, chance) for pitch, chance in zip(pitches, passing, strict=True)]
        score += [pitches] * (STEPS_PER_CHORD // 2) + [second] * (STEPS_PER_CHORD // 2)
        before = pitches
        following = NEXT[degree]
        degree = [*following][place_of(root, [*following.values()])]
    return np.array(score)


def pick(pitches: list[int], distances: list[int], chance: float) -> int:
    """One of them; the nearer, the likelier."""
    return pitches[place_of(chance, np.exp(-np.array(distances) / JUMPS))]


def place_of(chance: float, weights: npt.ArrayLike) -> int:
    """Of the weight that a number in [0, 1) falls on, when they lie side by side."""
    ends = np.cumsum(weights)
    return int(np.searchsorted(ends[:-1], chance * ends[-1], "right"))


def step_away(pitch: int, in_scale: set[int], chance: float) -> int:
    """A neighbour in the scale, above or below, or the pitch itself."""
    if chance >= PASSING:
        return pitch
    step = 1 if chance < PASSING / 2 else -1
    return next(other for other in (pitch + step, pitch + 2 * step) if other % 12 in in_scale)


def chorales_of_bach(root: Path, split: Split) -> list[Score]:
    """The pieces of a split of `<root>/jsb_chorales/`, as its file has them; a step is a sixteenth note."""
    file = root / JSB
    if not file.is_file():
        raise DataError(f"{file} does not exist. {ORIGIN}")
    try:
        return [np.array(score) for score in json.loads(file.read_text())["valid" if split == "val" else split]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not the file of chorales ({reason(error)}). {ORIGIN}") from error
