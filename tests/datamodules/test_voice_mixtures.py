"""Mixtures of drawn chorales: their scores, their instruments, and how well they can be taken apart at best."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sound import si_sdr, sounding
from lightning_meta.datamodules import VoiceMixtures
from lightning_meta.datamodules.audio.chorales import JSB, RANGES, SCALE, draw_chorale
from lightning_meta.datamodules.audio.midi import passage_of
from lightning_meta.datamodules.audio.synthesis import Timbre
from lightning_meta.datamodules.audio.voice_mixtures import CHORD, sung
from lightning_meta.datamodules.audio.wav import read_wav, write_wav
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import chorales

SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHAPE = EpisodeShape(1, 1, 2)
SINE = Timbre(
    slope=50.0, even=1, formant=1e4, gain=0, stretch=0, attack=0.001, decay=1e6, vibrato=0, rate=1, noise=0
)  # whose partials above the first cannot be heard


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_chorales_keep_to_their_ranges_and_keys_and_no_voice_crosses_another() -> None:
    scores = [draw_chorale(key, 30) for key in episode_keys(0, 0, range(20))]
    for score in scores:
        assert score.shape == (120, 4)
        chords = score[::4]
        assert (np.diff(chords, axis=1) < 0).all(), "from the highest to the lowest"
        for voice, (low, high) in enumerate(RANGES):
            assert low <= chords[:, voice].min() and chords[:, voice].max() <= high
        keys = [{(keynote + tone) % 12 for tone in SCALE} for keynote in range(12)]
        assert any({*(score % 12).flatten().tolist()} <= key for key in keys)
        assert {len({*(chord % 12).tolist()}) for chord in chords} <= {1, 2, 3}, "triads"
        moves = np.abs(np.diff(chords, axis=0))
        assert moves[:, :3].mean() < 4, "near tones"
    assert len({score.tobytes() for score in scores}) == len(scores)


def test_a_voice_sings_the_pitches_of_its_score() -> None:
    """The strongest frequency of each quarter of a chord; rests are silent."""
    score, rate = np.array([69] * 4 + [57] * 2 + [60] * 2 + [-1] * 4), 8000
    step = round(CHORD / 4 * rate)
    (notes,) = passage_of(score[:, None]).voices
    sound = sung(notes, SINE, episode_keys(0, 0, [0])[0], rate, len(score) * step)
    for place, pitch in enumerate(score.tolist()):
        part = sound[place * step : (place + 1) * step]
        if pitch < 0:
            assert not part.any()
        else:
            strongest = torch.fft.rfft(part, 16 * step).abs().argmax().item() * rate / (16 * step)
            assert strongest == pytest.approx(440 * 2 ** ((pitch - 69) / 12), rel=0.01)


# ---- episodes -------------------------------------------------------------------------------------------------------


def test_episodes_are_segments_of_one_piece_and_mixtures_the_sums_of_their_voices() -> None:
    data = chorales()
    for split in SPLITS:
        bank = data.load_source(split)
        episode = bank.sample(episode_keys(0, 1, range(6)), SHAPE)
        for part, count in zip(episode, (1, 2), strict=True):
            assert part.x.shape == (6, count, 4800) and part.y.shape == (6, count, 4, 4800)
            assert torch.equal(part.x, part.y.sum(2)) and sounding(part.y).all()
        known = (bank.voices.float() / (2**15 - 1)).flatten(3).movedim(2, 3)
        for t in range(6):
            segments = torch.cat([episode.support.y[t], episode.query.y[t]]).movedim(1, 2)
            found = [(known == one).flatten(2).all(2).nonzero().tolist() for one in segments]
            assert all(len(places) == 1 for places in found)
            assert len({places[0][0] for places in found}) == 1 and len({places[0][1] for places in found}) == 3


def test_the_data_are_the_same_in_every_run_and_no_two_splits_share_a_piece() -> None:
    made = {split: chorales().load_source(split).voices for split in SPLITS}
    assert torch.equal(made["val"], chorales(seed=5).load_source("val").voices)
    data = VoiceMixtures()
    scores = [score.tobytes() for split in SPLITS for score in data.pieces(split)]
    assert len(scores) == len({*scores}) == 328


def test_no_instrument_plays_in_two_splits_unless_it_is_asked_for() -> None:
    def heard(data: VoiceMixtures) -> list[set[Timbre]]:
        return [{one for key in episode_keys(3, 0, range(200)) for one in data.ensemble(key, s)} for s in SPLITS]

    train, val, test = heard(chorales())
    assert (len(train), len(val), len(test)) == (60, 20, 20) and not train & val and not (train | val) & test
    assert all(len({*chorales().ensemble(key, "val")}) == 4 for key in episode_keys(0, 0, range(50)))
    fixed = heard(chorales(instruments="fixed"))
    assert len(fixed[0]) == 4 and fixed[0] == fixed[1] == fixed[2]


def oracle(y_BVL: Tensor) -> Tensor:
    """The SI-SDR `(B, V)` of masks made from the true voices: each one's share of the magnitudes."""
    window = torch.hann_window(512).sqrt()
    spectra = torch.stft(y_BVL.flatten(0, 1), 512, 128, window=window, return_complex=True)
    magnitude = spectra.abs().unflatten(0, y_BVL.shape[:2])
    mixture = spectra.unflatten(0, y_BVL.shape[:2]).sum(1, keepdim=True)
    masked = (magnitude / magnitude.sum(1, keepdim=True).clamp_min(1e-8) * mixture).flatten(0, 1)
    sounds = torch.istft(masked, 512, 128, window=window, length=y_BVL.shape[-1])
    return si_sdr(sounds.view_as(y_BVL), y_BVL)


def test_there_is_as_much_to_gain_as_in_chorales_of_bach() -> None:
    """Four voices of one level: near -5 dB in the mixture; 9 to 15 dB by the best masks."""
    y = VoiceMixtures(pieces=[1, 1, 6], k_shot=1, n_query=3).load_source("test").voices.float().flatten(0, 1)
    before = si_sdr(y.sum(1, keepdim=True).expand_as(y), y).mean(0)
    assert (before > -9).all() and (before < -2).all()
    at_best = oracle(y)
    assert 9 < at_best.mean() < 15 and (at_best.mean(0) > 6).all()


def test_chorales_of_a_file_are_played(tmp_path: Path) -> None:
    file = tmp_path / JSB
    file.parent.mkdir()
    score = [[72, 67, 60, 48]] * 4 + [[71, -1, 62, 43]] * 4
    file.write_text(json.dumps({"train": [score, score], "valid": [score], "test": [score[::-1]]}))
    data = chorales(scores="jsb", root=str(tmp_path))
    assert [len(data.pieces(split)) for split in SPLITS] == [2, 1, 1]
    assert np.array_equal(data.pieces("train")[0], (score * 2)[:12]), "short ones begin anew"
    voices = data.load_source("train").voices
    assert voices.shape == (2, 3, 4, 4800) and not sounding(voices.float())[0, 1, 1] and voices[0, 0].any()
    with pytest.raises(DataError, match=r"nowhere/.*Jsb16thSeparated.json does not exist\. Copy"):
        chorales(scores="jsb", root="nowhere").load_source("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seconds": 0.3}, r"seconds=0\.3 is shorter than a chord of 0\.6 s; raise it"),
        ({"sample_rate": 1000}, "sample_rate=1000 must be at least 4000"),
        ({"segments": 0}, "segments=0 must be at least 1"),
        ({"pieces": [3, 1]}, r"pieces=\[3, 1\] must be three numbers"),
        ({"pieces": [3, 0, 1]}, r"pieces=\[3, 0, 1\] must be three numbers"),
        ({"n_way": 4}, "n_way must be 1, not 4"),
        ({"k_shot": 2}, r"k_shot=2 \+ n_query=2 segments are needed of every piece, which has 3; lower"),
    ],
)
def test_settings_that_make_no_mixtures_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chorales(**settings).setup("test")


def test_sounds_are_read_as_they_were_written(tmp_path: Path) -> None:
    wanted = torch.linspace(-1.5, 1.5, 200)
    write_wav(tmp_path / "new/a.wav", wanted, 8000)
    samples, rate = read_wav(tmp_path / "new/a.wav")
    assert rate == 8000
    torch.testing.assert_close(samples[:, 0], wanted.clamp(-1, 1), rtol=0, atol=1e-4)
