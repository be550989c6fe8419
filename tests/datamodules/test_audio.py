"""Classes of sounds: files of all kinds, folders, spoken digits and drawn instruments."""

import csv
import logging
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import wavfile

from lightning_meta.cli.export import of_sounds
from lightning_meta.cli.predict import read_task, treatment
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sound import LogMels
from lightning_meta.datamodules import AudioFolder, ClassSplit, SpokenDigits, Timbres
from lightning_meta.datamodules.audio.spoken_digits import DIGITS
from lightning_meta.datamodules.audio.synthesis import Timbre, Tones, play
from lightning_meta.datamodules.audio.wav import clip_of, read_wav
from lightning_meta.errors import ConfigError, DataError, UserError

RATE = 8000
SPLITS: tuple[Split, ...] = ("train", "val", "test")
WORDS = ["bed", "cat", "dog", "four", "go", "happy", "left", "no", "off", "yes"]
HALVES = ClassSplit(fractions=(0.4, 0.3, 0.3))


def tone(frequency: float, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return (20000 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype("<i2")


def save(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """By the standard library: `(samples,)` or `(samples, channels)` of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((samples.ndim if samples.ndim == 1 else samples.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def riff(kind: int, bits: int, data: bytes, channels: int = 1, more: bytes = b"", before: bytes = b"") -> bytes:
    """A WAV file byte by byte."""
    form = struct.pack("<HHIIHH", kind, channels, RATE, 0, channels * bits // 8, bits) + more
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["u1", "<i2", "<i4", "<f4", "<f8"])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_are_read_as_scipy_writes_them(tmp_path: Path, kind: str, channels: int) -> None:
    wanted = np.random.default_rng(0).uniform(-1, 1, (50, channels))
    whole = {
        "u1": lambda x: np.rint(x * 127 + 128),
        "<i2": lambda x: np.rint(x * 32767),
        "<i4": lambda x: x * 2147483000,
    }
    wavfile.write(tmp_path / "a.wav", 11025, whole.get(kind, lambda x: x)(wanted).astype(kind))
    samples, rate = read_wav(tmp_path / "a.wav")
    assert rate == 11025 and samples.dtype == torch.float32
    assert_allclose(samples.numpy(), wanted, atol=0.02 if kind == "u1" else 1e-4)


def test_24_bits_extensible_headers_and_other_chunks(tmp_path: Path) -> None:
    numbers = [0, 1, -1, 2**22, -(2**23), 2**23 - 1]
    data = b"".join(number.to_bytes(3, "little", signed=True) for number in numbers)
    more = struct.pack("<HHIH", 22, 24, 4, 1) + bytes(14)
    (tmp_path / "a.wav").write_bytes(riff(0xFFFE, 24, data, more=more, before=b"LIST\x03\x00\x00\x00abc\x00"))
    samples, _ = read_wav(tmp_path / "a.wav")
    assert_array_equal(samples[:, 0].numpy(), np.array(numbers, "float32") / 2**23)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no WAV file"),
        (b"ID3\x03 a song", "no WAV file"),
        (riff(1, 16, bytes(100))[:-20], "it is cut off: 80 of 100 bytes"),
        (riff(1, 16, bytes(100))[:30], "it is cut off: 10 of 16 bytes"),
        (b"RIFF\x04\x00\x00\x00WAVE", "it lacks fmt  and data"),
        (riff(2, 4, bytes(100)), "format 2 of 4 bits, 1 channels, 8000 Hz; save it as PCM of 16 bits"),
        (riff(1, 16, bytes(100), channels=0), "format 1 of 16 bits, 0 channels"),
        (riff(3, 32, np.array([0.5, np.nan], "<f4").tobytes()), "some samples are no numbers"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_wav(tmp_path / "a.wav")
    assert str(error.value).startswith(f"{tmp_path}/a.wav cannot be read ({message}")
    assert str(error.value).endswith("Replace or remove it.") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(RATE, "<i2"), "a.wav is silent in its first 1 s. Remove it"),
        (np.full(RATE, 7, "<i2"), "a.wav is silent"),
        (np.concatenate([np.zeros(RATE, "<i2"), tone(400)]), "a.wav is silent in its first 1 s. Remove it, or raise"),
        (np.stack([tone(400), -tone(400)], 1), "the mean of its 2 channels"),
        (tone(400)[:249], r"a.wav is too short: 31.1 ms, where one of the 32 steps of time of a picture is 31.2 ms"),
        (tone(400)[:0], "a.wav is too short: 0.0 ms"),
    ],
)
def test_sounds_without_content_are_refused(tmp_path: Path, samples: np.ndarray, message: str) -> None:
    path = save(tmp_path / "a.wav", samples)
    with pytest.raises(DataError, match=message):
        clip_of(read_wav(path), LogMels(RATE, 1.0, 32), path)


def test_clips_are_cut_followed_by_silence_mixed_and_resampled(tmp_path: Path) -> None:
    picture = LogMels(RATE, 0.5, 16)

    def clip(samples: np.ndarray, rate: int = RATE) -> np.ndarray:
        path = save(tmp_path / "a.wav", samples, rate)
        return clip_of(read_wav(path), picture, path).numpy()

    exact = tone(440, 0.5) / 2**15
    assert_allclose(clip(tone(440, 2.0)), exact, atol=1e-6)
    assert_allclose(clip(tone(440, 0.25)), np.concatenate([exact[:2000], np.zeros(2000)]), atol=1e-6)
    assert_allclose(clip(np.stack([tone(440, 0.5), np.zeros(4000, "<i2")], 1)), exact / 2, atol=1e-6)
    assert_allclose(clip(tone(440, 0.5, 44100), 44100), exact, atol=2e-3)


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten classes, each a pitch; `bed` has 3 sounds, `cat` 4 and so on."""
    for number, word in enumerate(WORDS):
        for index in range(3 + number):
            save(tmp_path / "words" / word / f"{index}.wav", tone(300 + 300 * number))
    save(tmp_path / "words/_background_noise_/hum.wav", tone(50))
    return tmp_path / "words"


def folder(root: Path, split: ClassSplit = HALVES, **kwargs: Any) -> AudioFolder:
    return AudioFolder(str(root), split, **{"size": 16, "seconds": 0.5, "n_way": 2, "n_query": 2, **kwargs},
                       cache=str(root.parent / "cache"))  # fmt: skip


def pitches(data: AudioFolder, split: Split) -> list[str]:
    """Which class each of a split's is, by the row of its loudest place."""
    bank = data.load_source(split)
    loudest = {int(data.picture(torch.from_numpy(tone(300 + 300 * n)).float()[None]).float().mean(-1).argmax()): word
               for n, word in enumerate(WORDS)}  # fmt: skip
    assert len(loudest) == len(WORDS)
    return [loudest[int(bank.inputs[first].float().mean(-1).argmax())] for first in bank.first]


def test_a_folder_of_class_folders(root: Path) -> None:
    data = folder(root)
    data.prepare_data()
    found = {split: pitches(data, split) for split in SPLITS}
    assert sorted(word for words in found.values() for word in words) == WORDS, "without the noise of the background"
    for split in SPLITS:
        assert found[split] == data.class_names(split)
        assert data.load_source(split).size.tolist() == [3 + WORDS.index(word) for word in found[split]]
    data.setup("fit")
    episode = next(iter(data.train_dataloader()))
    assert episode.query.x.shape == (4, 4, 1, 16, 16)
    assert len(list((root.parent / "cache").iterdir())) == 1
    save(root / "bed/0.wav", tone(305, 0.4))
    assert folder(root).cache != data.cache, "made anew when a sound has changed"
    assert folder(root, ClassSplit(fractions=(0.3, 0.3, 0.4))).cache != folder(root, seconds=0.4).cache


def test_a_table_names_the_classes(root: Path, tmp_path: Path) -> None:
    """The layout of ESC-50."""
    lines = []
    for number, word in enumerate(WORDS):
        for index in range(4):
            save(tmp_path / f"esc/audio/1-{number}-{index}.wav", tone(300 + 300 * number))
            lines.append({"filename": f"1-{number}-{index}.wav", "fold": "1", "category": word})
    table = tmp_path / "esc/meta/esc50.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    for split, words in zip(SPLITS, (WORDS[4:], WORDS[2:4], WORDS[:2]), strict=True):
        (table.parent / f"{split}.txt").write_text("\n".join(words))
    lists = ClassSplit(train="train.txt", val="val.txt", test="test.txt")
    data = folder(tmp_path / "esc", lists, table="meta/esc50.csv")
    data.prepare_data()
    assert {split: pitches(data, split) for split in SPLITS} == {
        "train": WORDS[4:], "val": WORDS[2:4], "test": WORDS[:2]
    }  # fmt: skip
    with pytest.raises(
        DataError, match=r"esc50\.csv .*no column 'label'; its columns are filename, fold, category\. Name"
    ):
        folder(tmp_path / "esc", table="meta/esc50.csv", class_column="label").prepare_data()
    (tmp_path / "esc/audio/1-3-2.wav").unlink()
    with pytest.raises(DataError, match=r"names 1 files that are not in \S+audio, 1-3-2.wav is the first"):
        folder(tmp_path / "esc", table="meta/esc50.csv").prepare_data()
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        folder(tmp_path / "esc", table="none.csv").prepare_data()


def test_all_sounds_that_cannot_be_used_are_named_at_once(root: Path) -> None:
    save(root / "cat/1.wav", np.zeros(4000, "<i2"))
    (root / "no/2.wav").write_bytes(b"?")
    with pytest.raises(DataError, match=r"^2 sounds cannot be used: .*cat/1.wav is silent .*no/2.wav cannot be read"):
        folder(root).prepare_data()
    assert not (root.parent / "cache").exists()


def test_other_rates_and_channels_are_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(root / "bed/0.wav", tone(300, rate=16000), 16000)
    save(root / "bed/1.wav", np.stack([tone(300)] * 2, 1))
    with caplog.at_level(logging.INFO):
        folder(root).prepare_data()
    assert "Sounds resampled to 8000 Hz from 16000 Hz: 1 of 75." in caplog.text
    assert "Sounds of several channels, their mean taken: 1 of 75." in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4}, "size=4 must be at least 8"),
        ({"seconds": 0.001}, r"seconds=0.001 at sample_rate=8000 are 8 samples, fewer than the size=16 steps of time"),
        ({"sample_rate": 0}, "sample_rate=0 must be at least 1"),
        ({"n_query": 12}, r"episodes need 13 sounds of every class \(k_shot=1 \+ n_query=12\), but \w+ has \d+; lower"),
    ],
)
def test_settings_that_cannot_be(root: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data = folder(root, HALVES, **settings)
        data.groups  # noqa: B018
        data.load_source("train")


def test_folders_that_are_not_there_are_said_to_lack_sounds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="with a folder of sounds for each class"):
        folder(tmp_path / "none").prepare_data()
    (tmp_path / "some/a").mkdir(parents=True)
    (tmp_path / "some/b").mkdir()
    (tmp_path / "some/c").mkdir()
    with pytest.raises(DataError, match=r"some/\w has no sounds \(.wav\); add some or remove the folder"):
        folder(tmp_path / "some").prepare_data()


def test_a_user_s_sounds_are_made_like_those_of_training(root: Path, tmp_path: Path) -> None:
    data = folder(root)
    data.prepare_data()
    for word in WORDS[:2]:
        save(tmp_path / "s" / word / "0.wav", tone(300 + 300 * WORDS.index(word), rate=16000), 16000)
    save(tmp_path / "q/which.wav", tone(600))
    (tmp_path / "q/notes.txt").write_text("no sound")
    task = read_task(tmp_path / "s", tmp_path / "q", data)
    assert task.classes == ["bed", "cat"] and task.support.x.shape == (2, 1, 16, 16)
    assert_array_equal(task.query[0].numpy(), data.prepare_image(root / "cat/0.wav").float().numpy() / 255)
    assert (task.support.x - task.query).square().sum((1, 2, 3)).argmin() == 1
    assert treatment(tmp_path / "s", tmp_path / "q", 1, data) == [
        "resampled to 8000 Hz from 16000 Hz: 2 of 3",
        f"files passed over that are no sounds: 1 ({tmp_path}/q/notes.txt)",
    ]
    assert of_sounds(data)["sample_rate"] == RATE


# ---- spoken digits --------------------------------------------------------------------------------------------------

SPEAKERS = ["ann", "bob", "nicolas", "theo", "yweweler"]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A tone for each speaker and digit, twice."""
    for who, speaker in enumerate(SPEAKERS):
        for digit in range(10):
            for index in range(2):
                path = tmp_path / f"data/spoken_digits/recordings/{digit}_{speaker}_{index}.wav"
                save(path, tone(200 + 60 * (10 * who + digit), 0.1))
    return tmp_path / "data"


def test_neither_the_digits_nor_the_speakers_of_the_test_are_in_training(recordings: Path) -> None:
    def of(split: Split) -> set[tuple[str, ...]]:
        return {tuple(path.name.split("_")[:2]) for groups in data.groups[split].values() for group in groups
                for path in data.files[group]}  # fmt: skip

    data = SpokenDigits(str(recordings), cache=str(recordings / "cache"), n_query=1)
    assert of("train") == {(str(digit), who) for digit in range(5) for who in ("ann", "bob")}
    assert of("val") == {(str(digit), "nicolas") for digit in range(5)}
    assert of("test") == {(str(digit), who) for digit in range(5, 10) for who in ("theo", "yweweler")}
    data.prepare_data()
    bank = data.load_source("test")
    assert data.class_names("test") == list(DIGITS[5:]) and bank.size.tolist() == [4] * 5
    found = bank.inputs[bank.first[2] + 3]
    expected = data.prepare_image(recordings / "spoken_digits/recordings/7_yweweler_1.wav")
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_speakers": ["zoe"]}, "of the speakers ann, bob, nicolas, theo, yweweler in .*, zoe is nobody; set"),
        ({"test_speakers": SPEAKERS[:2] + SPEAKERS[3:]}, "nobody is left for train"),
        ({"val_speakers": ["theo"]}, "theo cannot be among val_speakers"),
    ],
)
def test_speakers_that_cannot_be(recordings: Path, settings: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpokenDigits(str(recordings), **settings).groups  # noqa: B018


def test_missing_and_misnamed_recordings(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no recordings \(\*.wav\). Copy recordings/ there from https://github.com"):
        SpokenDigits(str(tmp_path / "empty")).files  # noqa: B018
    save(recordings / "spoken_digits/recordings/ten.wav", tone(500))
    with pytest.raises(DataError, match=r"ten\.wav is not called <digit>_<speaker>_<number>.wav"):
        SpokenDigits(str(recordings)).files  # noqa: B018


# ---- drawn instruments ----------------------------------------------------------------------------------------------

PLAIN = Timbre(slope=1.0, even=0.5, formant=1000.0, gain=2.0, stretch=0.002, attack=0.01, decay=1e9, vibrato=0.0,
               rate=5.0, noise=0.0)  # fmt: skip


def played(timbre: Timbre, pitch: float, samples: int = RATE) -> np.ndarray:
    tones = Tones(*(np.array([value]) for value in (pitch, 0.0, 10.0, 0.5)))
    return play(timbre, tones, episode_keys(0, 0, [3]), RATE, samples)[0].double().numpy()


def test_a_tone_has_the_partials_of_its_timbre_at_any_pitch() -> None:
    """Read from the sound by least squares on sines and cosines at the frequencies that the rule says."""
    for pitch in (110.0, 300.0):
        h = np.arange(1, 17)
        frequency = pitch * h * np.sqrt(1 + 0.002 * h**2)
        wanted = h**-1.0 * np.where(h % 2, 1, 0.5) * (1 + 2 * np.exp(-2 * np.log2(frequency / 1000) ** 2))
        wanted = np.where(frequency < 0.95 * RATE / 2, wanted, 0)
        wanted *= 0.5 / np.sqrt((wanted**2).sum())
        time = np.arange(400, RATE) / RATE
        heard = frequency < RATE / 2
        angles = 2 * np.pi * time[:, None] * frequency[heard]
        solved, rest, *_ = np.linalg.lstsq(
            np.concatenate([np.sin(angles), np.cos(angles)], 1), played(PLAIN, pitch)[400:], rcond=None
        )
        assert_allclose(np.hypot(*solved.reshape(2, -1)), wanted[heard], atol=1e-5)
        assert float(rest[0]) < 1e-6


def test_vibrato_moves_the_pitch_by_its_part_and_at_its_rate() -> None:
    """The frequency between upward zeros of a tone with one partial."""
    pure = PLAIN._replace(slope=50.0, vibrato=0.03, stretch=0.0)
    sound = played(pure, 400.0)
    at = np.flatnonzero((sound[:-1] < 0) & (sound[1:] >= 0))
    exact = (at + sound[at] / (sound[at] - sound[at + 1])) / RATE
    middle, frequency = (exact[1:] + exact[:-1]) / 2, 1 / np.diff(exact)
    assert_allclose(frequency[5:], 400 * (1 + 0.03 * np.cos(2 * np.pi * 5 * middle[5:])), rtol=2e-3)


def test_a_tone_rises_decays_and_ends() -> None:
    timbre = PLAIN._replace(attack=0.1, decay=0.2)
    tones = Tones(*(np.array([value]) for value in (200.0, 0.05, 0.6, 1.0)))
    (sound,) = play(timbre, tones, episode_keys(0, 0, [3]), RATE, RATE).numpy()
    power = np.sqrt((sound.reshape(-1, 400) ** 2).mean(1))  # of 50 ms: ten periods of the keynote, nearly
    assert power[0] == 0 and (power[13:] == 0).all()
    assert power[3] > power[2] > 2.5 * power[1] > 0 and power[3] > power[4]
    assert_allclose(power[8] / power[4], np.exp(-0.2 / 0.2), rtol=0.05)


@pytest.fixture(scope="module")
def timbres() -> Timbres:
    return Timbres(tones=4, seconds=0.5, size=16, n_query=2)


def test_instruments_are_the_same_in_every_run_and_in_one_split_each(timbres: Timbres) -> None:
    bank = timbres.load_source("test")
    assert bank.inputs.shape == (80, 1, 16, 16) and bank.size.tolist() == [4] * 20
    again = Timbres(tones=4, seconds=0.5, size=16, seed=5).load_source("test")
    assert torch.equal(bank.inputs, again.inputs), "whatever the seed of episodes"
    more = Timbres(tones=6, seconds=0.5, size=16).sounds(80)
    assert torch.equal(more[:4], timbres.sounds(80)), "the first of more tones are the same"
    numbers = [set(timbres.numbers(split)) for split in SPLITS]
    assert [len(of_split) for of_split in numbers] == [60, 20, 20] and len(set.union(*numbers)) == 100
    assert len({picture.numpy().tobytes() for picture in bank.inputs}) == 80
    assert timbres.class_names("test")[0] == "instrument 80"


def test_tones_of_an_instrument_share_what_is_its_own(timbres: Timbres) -> None:
    """Level and pitch differ; pictures of an instrument are more alike than those of two, but far from the same."""
    levels = timbres.sounds(80).abs().amax(1)
    assert levels.max() > 1.3 * levels.min()
    bank = timbres.load_source("test")
    episodes = bank.sample(np.arange(100, dtype=np.uint64), EpisodeShape(5, 1, 2))
    support, query = episodes.support.x.flatten(2), episodes.query.x.flatten(2)
    right = (torch.cdist(query, support).argmin(-1) == episodes.query.y).float().mean()
    assert 0.25 < right < 0.8
