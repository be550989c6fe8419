"""Folders of MIDI files: notes and tokens there and back, what mido reads, splits, and files that cannot be used."""

import logging
import re
import struct
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta import extras
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import MidiFolder
from lightning_meta.datamodules.audio.chorales import draw_chorale
from lightning_meta.datamodules.audio.midi import Note, write_midi
from lightning_meta.datamodules.audio.midi import passage_of as of_score
from lightning_meta.datamodules.class_split import ClassSplit
from lightning_meta.datamodules.sequences import midi_folder
from lightning_meta.datamodules.sequences.midi_events import (
    FIRST_PITCH,
    IDS_PER_PITCH,
    LONGEST_WAIT,
    Ticks,
    UnusableFileError,
    on_grid,
    passage_of,
    read_ticks,
    tokens_of,
)
from lightning_meta.datamodules.sequences.music import DOWN, UP, transposed
from lightning_meta.errors import ConfigError, DataError
from tests.conftest import midi_files
from tests.datamodules.test_midi import read

needs_mido = pytest.mark.skipif(find_spec("mido") is None, reason="mido is not installed")

pytestmark = pytest.mark.usefixtures("midi_reader")


def random_ticks(seed: int) -> Ticks:
    """Many notes of few pitches, so that they overlap, and of any length."""
    generator = np.random.default_rng(seed)
    begin, length = generator.integers(100, 20_000, 300), generator.integers(0, 3000, 300)
    pitch = generator.integers(50, 60, 300)
    return Ticks([(b, b + n, p) for b, n, p in zip(*(x.tolist() for x in (begin, length, pitch)), strict=True)], 480)


def sounding(notes: Sequence[Note]) -> set[tuple[int, int]]:
    """All pairs of a step and a pitch that sounds in it."""
    return {(step, note.pitch) for note in notes for step in range(note.begin, note.end)}


# ---- notes and tokens -----------------------------------------------------------------------------------------------


def test_what_a_token_says() -> None:
    """C and E are struck; 2 steps later E ends and F begins; a long wait is several tokens."""
    notes = [Note(0, 37, 60), Note(0, 2, 64), Note(2, 37, 65)]
    struck, ended = (lambda pitch: FIRST_PITCH + 2 * pitch), (lambda pitch: FIRST_PITCH + 2 * pitch + 1)
    expected = [struck(60), struck(64), 2, ended(64), struck(65), 16, 16, 3, ended(60), ended(65)]
    assert (LONGEST_WAIT, tokens_of(notes).tolist()) == (16, expected)
    assert tokens_of(notes, lowest=60)[:3].tolist() == [struck(0), struck(4), 2]


@pytest.mark.parametrize("steps_per_quarter", [1, 4, 12])
def test_notes_come_back_from_their_tokens(steps_per_quarter: int) -> None:
    for seed in range(4):
        notes = on_grid(random_ticks(seed), steps_per_quarter)
        passage = passage_of(tokens_of(notes, 50), 50)
        assert passage.voices == [notes] and passage.steps == max(note.end for note in notes)
        assert torch.equal(tokens_of(passage.voices[0], 50), tokens_of(notes, 50))


def test_what_sounds_on_the_grid_is_what_sounds_in_the_file() -> None:
    """Each note by itself at its nearest steps, whatever else its pitch is doing; and each strike is there."""
    for seed in range(4):
        ticks = random_ticks(seed)
        first = min(round(begin / 120) for begin, _, _ in ticks.notes)
        nearest = []
        for begin, end, pitch in ticks.notes:
            b, e = (int(np.floor(tick / 120 + 0.5)) - first for tick in (begin, end))
            nearest.append(Note(b, max(e, b + 1), pitch))
        notes = on_grid(ticks, 4)
        assert sounding(notes) == sounding(nearest)
        assert {(n.begin, n.pitch) for n in notes} == {(n.begin, n.pitch) for n in nearest}
        assert len(sounding(notes)) == sum(n.end - n.begin for n in notes), "no two notes of a pitch at once"


def test_any_ids_are_notes() -> None:
    """Those of a passage that begins in the middle of notes, and those of a module that has not learned yet."""
    end, begin = FIRST_PITCH + 1, FIRST_PITCH
    assert passage_of(torch.tensor([end, 3, begin, 2, 0, begin, 4])) == ([[Note(3, 5, 0), Note(5, 9, 0)]], 9)
    ids = torch.randint(0, FIRST_PITCH + 20, (500,), generator=torch.Generator().manual_seed(0))
    passage = passage_of(ids)
    assert passage.steps == ids[ids < FIRST_PITCH].sum() >= max(note.end for note in passage.voices[0])
    assert passage_of(tokens_of(passage.voices[0])).voices == passage.voices


@pytest.mark.parametrize("semitones", [-5, 1, 6])
def test_a_transposed_piece_has_all_its_pitches_moved(semitones: int) -> None:
    notes = on_grid(random_ticks(0), 4)
    moved = passage_of(transposed(tokens_of(notes, 40), semitones, FIRST_PITCH, IDS_PER_PITCH), 40)
    assert moved.voices == [[note._replace(pitch=note.pitch + semitones) for note in notes]]


def test_a_piece_is_written_as_it_was_read(tmp_path: Path) -> None:
    """A pitch that is struck again in the step in which it ended, too."""
    notes = on_grid(random_ticks(1), 4)
    assert any(a.end == b.begin and a.pitch == b.pitch for a in notes for b in notes)
    write_midi(tmp_path / "a.mid", [notes], ["notes"], 0.1, 4)
    division, (_, (_, _, found)) = read((tmp_path / "a.mid").read_bytes())
    assert division == 4 and sorted(found) == notes


# ---- files ----------------------------------------------------------------------------------------------------------


def track(*events: bytes) -> bytes:
    content = b"".join(events) + bytes([0, 0xFF, 0x2F, 0])
    return b"MTrk" + struct.pack(">I", len(content)) + content


def file_of(*tracks: bytes, kind: int = 1, division: int = 4) -> bytes:
    return b"MThd" + struct.pack(">IHHh", 6, kind, len(tracks), division) + b"".join(tracks)


DRUM = bytes([0, 0x99, 38, 90, 4, 0x89, 38, 0])
TONE = bytes([0, 0x90, 60, 90, 4, 0x80, 60, 0])


@needs_mido
def test_notes_of_a_file(tmp_path: Path) -> None:
    """Struck without strength is ended; running status; drums; what is never ended; a pedal and a tempo between."""
    running = bytes([2, 0x91, 64, 90, 3, 64, 0, 1, 0xB1, 64, 127, 0, 0x91, 67, 80, 0, 0xFF, 0x51, 3, 7, 0xA1, 0x20, 5])
    (tmp_path / "a.mid").write_bytes(file_of(track(DRUM, TONE), track(running + bytes([0x91, 70, 0]))))
    assert read_ticks(tmp_path / "a.mid") == ([(4, 8, 60), (2, 5, 64), (6, 11, 67)], 4)


@needs_mido
def test_there_and_back_through_a_file(tmp_path: Path) -> None:
    for key in episode_keys(3, 0, range(3)):
        passage = of_score(draw_chorale(key, 8))
        write_midi(tmp_path / "a.mid", passage.voices, "SATB", 0.15)
        first = on_grid(read_ticks(tmp_path / "a.mid"), 4)
        assert sounding(first) == {place for voice in passage.voices for place in sounding(voice)}
        write_midi(tmp_path / "b.mid", passage_of(tokens_of(first)).voices, ["notes"], 0.1)
        assert on_grid(read_ticks(tmp_path / "b.mid"), 4) == first


BROKEN = {
    "damaged/cut.mid": (file_of(track(TONE, TONE))[:-9], r"damaged, or no MIDI files: cut\.mid \("),
    "text.mid": (b"no notes here", r"damaged, or no MIDI files: text\.mid \(MThd not found"),
    "empty.mid": (b"", r"damaged, or no MIDI files: empty\.mid \("),
    "drums.mid": (file_of(track(DRUM)), r"with drums alone: drums\.mid\."),
    "silent.mid": (file_of(track()), r"without notes: silent\.mid\."),
    "film.mid": (file_of(track(TONE), division=-6104), r"without beats that all tracks share: film\.mid \(times in fr"),
    "several.mid": (file_of(track(TONE), kind=2), r"without beats that all tracks share: several\.mid \(tracks that"),
    "long.mid": (file_of(track(TONE, bytes([0xFF, 0xFF, 0x7F]) + TONE[1:])), r"longer than 100,000 steps: long\.mid"),
}


@needs_mido
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    midi_files(tmp_path / "midi", 6)
    (tmp_path / "midi" / Path(name).name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^1 of 7 files of .*midi cannot be used\. 1 {message}") as caught:
        folder(tmp_path).prepare_data()
    assert str(caught.value).endswith("or leave them out: --data.skip_unusable true.")


@needs_mido
def test_all_files_that_cannot_be_used_are_named_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = midi_files(tmp_path / "midi", 6)
    for name, (content, _) in BROKEN.items():
        (tmp_path / "midi" / Path(name).name).write_bytes(content)
    with pytest.raises(DataError, match=r"^8 of 14 files of .* 3 damaged, .* 1 with drums alone: .*") as caught:
        folder(tmp_path).prepare_data()
    assert all(Path(name).name in str(caught.value) for name in BROKEN)
    assert not (tmp_path / "cache").exists()
    data = folder(tmp_path, skip_unusable=True, split=ClassSplit(fractions=(0.4, 0.2, 0.4)))
    data.prepare_data()
    assert "8 of 14 files" in caplog.text and "They are left out." in caplog.text
    assert sum(len(data.sequences(split)) for split in ("train", "val", "test")) == len(names)
    for name in names:
        (tmp_path / "midi" / name).unlink()
    with pytest.raises(DataError, match=r"^8 of 8 files"):
        folder(tmp_path, skip_unusable=True, split=ClassSplit(fractions=(0.4, 0.2, 0.4))).prepare_data()


@needs_mido
def test_bytes_that_were_changed_are_read_or_refused(tmp_path: Path) -> None:
    """Nothing else comes of damage."""
    midi_files(tmp_path, 1)
    (whole,) = (path.read_bytes() for path in tmp_path.rglob("*.mid*"))
    generator, refused = np.random.default_rng(0), 0
    for _ in range(150):
        content = bytearray(whole)
        for place in generator.integers(0, len(whole), 3).tolist():
            content[place] = int(generator.integers(256))
        (tmp_path / "x.mid").write_bytes(content)
        try:
            notes = on_grid(read_ticks(tmp_path / "x.mid"), 4)
            assert passage_of(tokens_of(notes)).voices == [notes]
        except UnusableFileError:
            refused += 1
    assert 10 < refused < 150


def test_the_extra_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # no reader in the place of mido
    monkeypatch.setitem(extras.EXTRAS, "music", ("mido>=99",))
    midi_files(tmp_path / "midi", 6)
    with pytest.raises(ConfigError, match=r"^MidiFolder needs mido>=99, .*pip install -r requirements-music\.txt$"):
        folder(tmp_path).prepare_data()


# ---- the data set ---------------------------------------------------------------------------------------------------


def folder(path: Path, **overrides: Any) -> MidiFolder:
    settings: dict[str, Any] = dict(root=str(path / "midi"), cache=str(path / "cache"), k_shot=3, n_query=2, length=8)
    settings["split"] = ClassSplit(fractions=(0.5, 0.25, 0.25))
    return MidiFolder(**(settings | overrides))


def splits(data: MidiFolder) -> dict[str, list[str]]:
    return {split: data.names[split] for split in ("train", "val", "test")}


def test_a_passage_is_of_one_piece(tmp_path: Path) -> None:
    """The query follows the support, and no chunk reaches into the next piece."""
    midi_files(tmp_path / "midi", 12)
    data = folder(tmp_path)
    data.prepare_data()
    data.setup("fit")
    pieces = {name: tokens.tolist() for name, tokens in zip(data.names["train"], data.sequences("train"), strict=True)}
    tasks, found = data.dataset("train").__getitems__(range(60)), set()
    for t in range(60):
        passage = torch.cat([tasks.support.y[t], tasks.query.y[t]]).flatten().tolist()
        before = torch.cat([tasks.support.x[t], tasks.query.x[t]]).flatten().tolist()
        at = [
            (name, place)
            for name, tokens in pieces.items()
            for place in range(0, len(tokens) - len(passage) + 1, 8)
            if tokens[place : place + len(passage)] == passage
        ]
        name, place = at[0]
        assert before == [pieces[name][place - 1] if place else 0, *passage[:-1]]
        found.add(name)
    assert found == set(pieces) and len(found) == 6
    assert data.facts("train")["pieces"] == 6
    assert data.describe("train") == "3 support and 2 query chunks of 8 tokens of one of 6 pieces"


def test_a_file_is_in_one_split_by_the_seed(tmp_path: Path) -> None:
    names = midi_files(tmp_path / "midi", 16)
    (tmp_path / "midi" / "._0.mid").write_bytes(b"a Macintosh's")
    first, again, other = (
        splits(folder(tmp_path, split=ClassSplit(fractions=(0.5, 0.25, 0.25), seed=seed))) for seed in (0, 0, 1)
    )
    assert first == again != other
    for found in (first, other):
        assert sorted(name for of_split in found.values() for name in of_split) == sorted(names)
        assert {split: len(of_split) for split, of_split in found.items()} == {"train": 8, "val": 4, "test": 4}


def test_the_split_of_a_table_is_kept(tmp_path: Path) -> None:
    """As MAESTRO's, which has other columns too; files that it has not are not read."""
    names = midi_files(tmp_path / "midi", 8)
    (tmp_path / "midi" / "2009").mkdir(exist_ok=True)
    (tmp_path / "midi" / "2009" / "left_out.midi").write_bytes(b"damaged")
    said = ["test", "train", "validation", "train", "test", "train", "validation", "train"]
    rows = [f'Bach,"Title, with a comma",{split},{name}' for split, name in zip(said, names, strict=True)]
    table = tmp_path / "midi" / "maestro.csv"
    table.write_text("\n".join(["canonical_composer,canonical_title,split,midi_filename", *rows]))
    data = folder(tmp_path, table="maestro.csv")
    expected = {
        split: [name for name, one in zip(names, said, strict=True) if one == told]
        for split, told in {"train": "train", "val": "validation", "test": "test"}.items()
    }
    assert splits(data) == expected
    data.prepare_data()
    data.setup("test")
    assert data.count("test") == 2
    table.write_text("\n".join(["split,midi_filename", *(f"train,{name}" for name in names)]))
    with pytest.raises(DataError, match=r"the val split of .*midi has no pieces"):
        _ = folder(tmp_path, table="maestro.csv").names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["split,file", "train,a.mid"],
            r"maestro\.csv .*line 2 has no column 'midi_filename'; its columns are split, file\. Name them with --data",
        ),
        (["split,midi_filename", "dev,a.mid"], r"a\.mid is for 'dev'; it must be one of train, validation, valid, val"),
        (
            ["split,midi_filename", "train,{0}", "test,{0}", "val,{1}"],
            r"a piece must be in one split, .*; but \S+\.mid is in the train split of .* and in the test split of",
        ),
        (
            ["split,midi_filename", "train,{0}", "test,{1}", "val,{2}", "val,nowhere.mid"],
            r"1 pieces of the split are not in .*midi: nowhere\.mid\. It has 3",
        ),
        (None, r"maestro\.csv cannot be read"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path: Path, lines: list[str] | None, message: str) -> None:
    names = midi_files(tmp_path / "midi", 3)
    if lines:
        (tmp_path / "midi" / "maestro.csv").write_text("\n".join(line.format(*names) for line in lines))
    with pytest.raises((ConfigError, DataError), match=message):
        _ = folder(tmp_path, table="maestro.csv").names


def test_folders_and_lists_are_splits(tmp_path: Path) -> None:
    names = midi_files(tmp_path / "midi", 4)
    for split, name in zip(("train", "val", "test"), names, strict=False):
        (tmp_path / "midi" / f"{split}.txt").write_text(name)
    lists = ClassSplit(train="train.txt", val="val.txt", test="test.txt")
    assert splits(folder(tmp_path, split=lists)) == {"train": names[:1], "val": names[1:2], "test": names[2:3]}
    with pytest.raises(ConfigError, match=r"the 4 pieces of .*midi are not split"):
        _ = folder(tmp_path, split=ClassSplit()).names
    for split in ("train", "val", "test"):
        midi_files(tmp_path / "sorted" / split, 2)
    found = splits(folder(tmp_path, root=str(tmp_path / "sorted")))
    assert all(len(found[split]) == 2 and found[split][0].startswith(f"{split}/") for split in found)
    (tmp_path / "sorted" / "val").rename(tmp_path / "sorted" / "validation")
    renamed = splits(folder(tmp_path, root=str(tmp_path / "sorted")))
    assert renamed == found | {"val": [name.replace("val/", "validation/") for name in found["val"]]}
    (tmp_path / "sorted" / "validation").rename(tmp_path / "sorted" / "other")
    with pytest.raises(DataError, match=r"has folders train and test, but splits are to be three"):
        _ = folder(tmp_path, root=str(tmp_path / "sorted")).names


def test_files_with_the_same_notes_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Or a piece could be in two splits."""
    names = midi_files(tmp_path / "midi", 8)
    (tmp_path / "midi" / "zz_copy.mid").write_bytes((tmp_path / "midi" / names[0]).read_bytes())
    data = folder(tmp_path)
    data.prepare_data()
    told = re.search(r"1 files are left out as copies of others: (\S+) of (\S+)\.$", caplog.text, re.M)
    assert told and told.groups() == ("zz_copy.mid", names[0])
    pieces = [tuple(tokens.tolist()) for split in ("train", "val", "test") for tokens in data.sequences(split)]
    assert len(pieces) == len({*pieces}) == 8


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until one is changed, or a setting that decides about tokens is."""
    names, paths = midi_files(tmp_path / "midi", 6), list[Path]()
    read_once = midi_folder.read_ticks
    monkeypatch.setattr(midi_folder, "read_ticks", lambda path: (paths.append(path), read_once(path))[1])
    for seed in (0, 0, 1):
        folder(tmp_path, split=ClassSplit(fractions=(0.5, 0.25, 0.25), seed=seed)).prepare_data()
        assert len(paths) == 6
    folder(tmp_path, steps_per_quarter=2).prepare_data()
    assert len(paths) == 12
    passage = of_score(draw_chorale(episode_keys(9, 0, [0])[0], 9))
    write_midi(tmp_path / "midi" / names[0], passage.voices, "SATB", 0.15)
    folder(tmp_path).prepare_data()
    assert len(paths) == 18 and len([*(tmp_path / "cache").iterdir()]) == 3


def test_each_episode_is_in_a_key_of_its_own(tmp_path: Path) -> None:
    midi_files(tmp_path / "midi", 12)
    plain, moved = folder(tmp_path), folder(tmp_path, transpose=True)
    for data in (plain, moved):
        data.prepare_data()
        data.setup("fit")
    a, b = (data.dataset("train").__getitems__(range(200)) for data in (plain, moved))
    shifts = set()
    for t in range(200):
        before, after = (plain.passage(torch.cat([x.support.y[t], x.query.y[t]]).flatten()).voices[0] for x in (a, b))
        shift = after[0].pitch - before[0].pitch
        assert after == [note._replace(pitch=note.pitch + shift) for note in before]
        shifts.add(shift)
    assert shifts == {*range(-DOWN, UP + 1)}
    assert moved.describe("train").endswith("of one of 6 pieces, transposed") and moved.facts("train")["transposed"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary": 80, "lowest": 0}, "vocabulary=80 must be 17 and two ids for each pitch"),
        ({"vocabulary": 273, "lowest": 1}, r"which are 1 \(data\.lowest\) to at most 127: 19 to 271"),
        ({"vocabulary": 17}, "vocabulary=17 must be"),
        ({"lowest": -1}, "lowest=-1 must be at least 0"),
        ({"steps_per_quarter": 0}, "steps_per_quarter=0 must be at least 1"),
        ({"n_way": 2}, "a task is one sequence: n_way must be 1, not 2"),
        ({"root": "nowhere"}, "nowhere is no folder; --data.root must be one, with MIDI files"),
        ({"k_shot": 900}, r"k_shot=900 \+ n_query=2 chunks of length=8 tokens are needed of a piece, but the longest"),
        ({"vocabulary": 57, "lowest": 60}, r"6 of 6 files .* 6 with pitches outside 60 to 79, which vocabulary=57 has"),
        ({"split": ClassSplit(fractions=(0, 0, 1))}, r"midi has no pieces for train: split\.fractions=\[0, 0, 1\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    midi_files(tmp_path / "midi", 6)
    with pytest.raises((ConfigError, DataError), match=message):
        data = folder(tmp_path, **settings)
        data.prepare_data()
        data.setup("fit")


def test_a_folder_without_files_and_pieces_that_are_too_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "midi").mkdir()
    with pytest.raises(DataError, match=re.escape("midi has no MIDI files (.mid, .midi). Put some there.")):
        folder(tmp_path).prepare_data()
    midi_files(tmp_path / "midi", 6)
    write_midi(tmp_path / "midi" / "short.mid", [[Note(0, 4, 60)]], ["notes"], 0.1)
    data = folder(tmp_path, split=ClassSplit(fractions=(0.6, 0.2, 0.2)))
    data.prepare_data()
    with caplog.at_level(logging.INFO):
        for split in ("train", "val", "test"):
            data.sources[split] = data.load_source(split)
    assert caplog.text.count("are left out: they have fewer than 5 chunks of 8 tokens") == 1
    assert sum(data.count(split) for split in ("train", "val", "test")) == 6
