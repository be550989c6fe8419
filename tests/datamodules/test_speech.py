"""Strings of words: what is heard is what is put together, of the right speakers and of recordings of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sound import FLOOR
from lightning_meta.datamodules import Babble, SpokenStrings
from lightning_meta.datamodules.audio.babble import draw_speakers
from lightning_meta.datamodules.audio.speech import StringSource
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import babble
from tests.datamodules.test_audio import save, tone

SHAPE = EpisodeShape(1, 6, 6)


def drawn(episodes: int = 40, **options: Any) -> tuple[StringSource, Tensor, Tensor, Tensor]:
    source = babble(**options).load_source("train")
    return source, *source.draw(episode_keys(0, 0, range(episodes)), SHAPE)


def who_and_what(source: StringSource, clips: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The speaker and the word of each recording; -1 of none."""
    owner = np.full((len(source.size), 2), -1)
    for (speaker, word), first in np.ndenumerate(source.begin):
        owner[first : first + source.count[speaker, word]] = speaker, word
    found = np.where(clips.numpy()[..., None] < 0, -1, owner[clips.numpy()])
    return found[..., 0], found[..., 1]


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_frames_side_by_side_are_those_of_the_sound_that_is_put_together(pause: float) -> None:
    data = babble(pause=pause, longest=3)
    source, mels = data.load_source("train"), data.mels
    takes = [take[: data.samples] for words in data.recordings("train") for word in words for take in word]
    clips, pauses, _ = source.draw(episode_keys(0, 0, range(3)), SHAPE)
    x = source.make((clips, pauses, clips), SHAPE).query.x
    for t in range(3):
        for m in range(SHAPE.n_query):
            parts = []
            for clip, silent in zip(clips[t, SHAPE.k_shot + m], pauses[t, SHAPE.k_shot + m], strict=True):
                if clip >= 0:
                    rest = -len(takes[clip]) % mels.hop + mels.hop
                    parts += [torch.zeros(int(silent) * mels.hop), takes[clip], torch.zeros(rest)]
            whole = torch.cat([*parts, torch.zeros(data.frames * mels.hop)])[: (data.frames - 1) * mels.hop]
            spectrum = mels(whole[None])[0]
            expected = ((spectrum - spectrum.max() + FLOOR) / FLOOR).clamp_min(0)
            torch.testing.assert_close(x[t, m], expected, rtol=1e-4, atol=1e-4)
            assert x[t, m].max() == 1 and x[t, m].min() == 0


def test_strings_are_of_the_words_that_the_targets_name() -> None:
    source, clips, pauses, y = drawn(longest=3)
    _, words = who_and_what(source, clips)
    assert (words + 1 == y.numpy()).all()
    lengths = (y > 0).sum(-1)
    assert set(lengths.unique().tolist()) == {2, 3} and (y[..., :2] > 0).all()
    assert (pauses[clips < 0] == 0).all() and pauses.max() == source.strings.pause
    assert y[y > 0].unique().tolist() == [1, 2, 3]


@pytest.mark.parametrize(("support", "query"), [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3)])
def test_strings_have_as_many_speakers_as_they_should_all_of_the_task(support: int, query: int) -> None:
    source, clips, _, y = drawn(support_speakers=support, query_speakers=query, shortest=3, longest=4)
    speakers, _ = who_and_what(source, clips)
    of_task = max(support, query)
    for t in range(len(speakers)):
        assert len({*speakers[t].ravel()} - {-1}) == of_task
        for m, string in enumerate(speakers[t]):
            heard = len({*string[y[t, m] > 0]})
            expected = support if m < SHAPE.k_shot else query
            assert heard == 1 if expected == 1 else 2 <= heard <= expected
    assert len({tuple(sorted({*task.ravel()})) for task in speakers}) > 1


def test_recordings_of_the_support_set_are_not_in_the_query_set() -> None:
    _, clips, _, _ = drawn(query_speakers=1, takes=3)
    sides = set()
    for task in clips.numpy():
        support, query = ({*part.ravel()} - {-1} for part in (task[: SHAPE.k_shot], task[SHAPE.k_shot :]))
        assert support and query and not support & query
        sides.add(max(clip % 3 for clip in support) == 2)
    assert sides == {True, False}  # in every recording's turn


def test_an_episode_is_a_function_of_its_key_and_splits_have_other_speakers() -> None:
    data = babble()
    source = data.load_source("val")
    many, few = (source.sample(episode_keys(0, 1, ids), SHAPE) for ids in (range(9), [7]))
    assert torch.equal(many.query.x[7], few.query.x[0]) and torch.equal(many.support.y[7], few.support.y[0])
    takes = {split: data.recordings(split)[0][0][0] for split in ("train", "val", "test")}
    assert len({tuple(take[:50].tolist()) for take in takes.values()}) == 3
    again = babble(train_speakers=2, seed=5).recordings("train")
    assert torch.equal(again[0][0][0], takes["train"])


def test_without_an_accent_only_the_vocal_tract_moves_formants() -> None:
    keys = episode_keys(0, 0, range(4))
    plain, accented = (np.stack([s.vowels for s in draw_speakers(keys, 5, accent)]) for accent in (0.0, 0.3))
    ratio = plain / plain[0]
    assert np.ptp(ratio.reshape(4, -1), axis=1).max() < 1e-9 and np.ptp(ratio[:, 0, 0, 0]) > 0.01
    moved = np.log2(accented / plain)
    assert moved.std() == pytest.approx(0.3, rel=0.2)


def test_a_voice_has_its_partials_at_multiples_of_its_pitch_and_takes_differ() -> None:
    data = babble()
    takes = data.recordings("train")[0][0]
    assert not torch.equal(takes[0][:500], takes[1][:500])
    assert all(take.abs().max() == 1 for take in takes)
    loud = takes[0][len(takes[0]) // 2 :][:1000]
    spectrum = torch.fft.rfft(loud * torch.hann_window(1000), 8000).abs()  # a point is a Hz
    pitch = next(p for p in np.arange(80, 280) if spectrum[p::p][:12].sum() == max(
        spectrum[q::q][:12].sum() for q in np.arange(80, 280)))  # fmt: skip
    between = spectrum[int(1.5 * pitch) :: pitch][:8].mean()
    assert spectrum[pitch::pitch][:8].mean() > 5 * between


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest": 1}, "longest=1 words of a string are fewer than shortest=2"),
        ({"query_speakers": 3}, "shortest=2 words cannot have 3 speakers; raise it to 3"),
        ({"support_speakers": 2, "query_speakers": 3, "shortest": 3}, "=2 and query_speakers=3 must be equal, or one"),
        ({"step": 0.00001}, "must be at least a sample of 8000 Hz"),
        ({"seconds": 0.01}, "seconds=0.01 a step"),
        ({"vocabulary": 40}, "vocabulary=40 must be at most 27"),
        ({"takes": 1}, "takes=1 must be at least 2"),
        ({"sample_rate": 4000}, "sample_rate=4000 must be at least 8000"),
        ({"pause": -1.0}, "pause=-1 must be at least 0 seconds"),
        ({"accent": -1.0}, "accent=-1 must be at least 0 octaves"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        babble(**options)


def test_episodes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_way must be 1, not 2"):
        babble(n_way=2).setup("fit")
    with pytest.raises(ConfigError, match=r"need 2 speakers, but there are 1; lower them, or add speakers"):
        babble(val_speakers=1).setup("fit")


def digits(folder: Path, speakers: dict[str, int], recordings: int = 6) -> Path:
    """Tones for digits, by folks of other pitches, as files of the data set."""
    for name, pitch in speakers.items():
        for digit in range(3):
            for number in range(recordings):
                sound = tone(pitch + 100 * digit + number, 0.3)
                save(folder / f"spoken_digits/recordings/{digit}_{name}_{number}.wav", sound)
    return folder


def strings(root: Path, **options: Any) -> SpokenStrings:
    settings = dict(vocabulary=4, test_speakers=["cy"], val_recordings=2, query_speakers=1, k_shot=3, n_query=3)
    return SpokenStrings(str(root), **(settings | options))


def pitch_of(sound: Tensor) -> int:
    """Hz."""
    return int(torch.fft.rfft(sound, 80_000).abs().argmax() / 10 + 0.5)


def test_spoken_strings_keep_speakers_and_recordings_apart(tmp_path: Path) -> None:
    data = strings(digits(tmp_path, {"ada": 300, "bob": 700, "cy": 1100}))
    data.prepare_data()
    data.setup("fit")
    heard = {
        split: {pitch_of(take) for words in data.recordings(split) for word in words for take in word}
        for split in ("train", "val", "test")
    }
    assert heard["val"] == {p + 100 * d + n for p in (300, 700) for d in range(3) for n in range(2)}
    assert heard["test"] == {1100 + 100 * d + n for d in range(3) for n in range(6)}
    speeds = {
        round(s * (p + 100 * d + n)) for s in (0.9, 1, 1.1) for p in (300, 700) for d in range(3) for n in (2, 3, 4, 5)
    }
    assert all(min(abs(pitch - s) for s in speeds) <= 1 for pitch in heard["train"]) and len(heard["train"]) > 60
    assert [data.count_speakers(split) for split in ("train", "val", "test")] == [6, 2, 1]
    assert data.symbols == "012"


def test_spoken_strings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no recordings \(\*.wav\). Copy recordings/"):
        strings(tmp_path).prepare_data()
    digits(tmp_path, {"ada": 300, "cy": 1100})
    with pytest.raises(ConfigError, match=r"of the speakers ada, cy .* zoe is nobody; set data.test_speakers"):
        strings(tmp_path, test_speakers=["zoe"]).prepare_data()
    with pytest.raises(ConfigError, match=r"nobody is left for training"):
        strings(tmp_path, test_speakers=["ada", "cy"]).prepare_data()
    with pytest.raises(DataError, match=r"has 1 recordings of zero ada for train.*data.val_recordings=5"):
        strings(tmp_path, val_recordings=5).setup("fit")
    with pytest.raises(DataError, match=r"has 0 recordings of three ada"):
        strings(tmp_path, vocabulary=11).setup("fit")
    with pytest.raises(ConfigError, match=r"vocabulary=12 must be at most 11"):
        strings(tmp_path, vocabulary=12)
    with pytest.raises(ConfigError, match=r"speeds=\[3\] must be some numbers from 0.5 to 2"):
        strings(tmp_path, speeds=[3])


def test_names_are_letters() -> None:
    assert Babble(vocabulary=5).symbols == "abcd"
