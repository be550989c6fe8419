"""What words are made of, written out by hand."""

import pytest

from lightning_meta.core.word_parts import encoded_words, hashed_parts, parts_of, shape_of


@pytest.mark.parametrize(
    ("word", "shape"), [("Nairobi", "Xx"), ("UN", "X"), ("2.5", "d.d"), ("McDo's", "XxXx'x"), ("ስም", "x"), ("--", "-")]
)
def test_shapes(word: str, shape: str) -> None:
    assert shape_of(word) == shape


def test_parts_come_from_the_ends_inwards() -> None:
    assert parts_of("Abuja", 10) == ["shape Xx", "word <abuja>", "<ab", "ja>", "abu", "uja", "buj"]
    assert parts_of("Abuja", 4) == ["shape Xx", "word <abuja>", "<ab", "ja>"]
    assert parts_of("a", 4) == ["shape x", "word <a>", "<a>"]


def test_ids_leave_padding_out_and_no_process_changes_them() -> None:
    ids = hashed_parts("Abuja", 50, 10)
    assert len(ids) == 10 and ids[7:] == [0] * 3 and all(0 < part < 50 for part in ids[:7])
    assert ids[:3] == [1 + crc % 49 for crc in (0xDDD7182B, 0x09D14550, 0x0D6A9F74)]
    rows = encoded_words([["Abuja", "a"], ["b", "b", "b", "c"]], 3, 50, 10)
    assert rows.shape == (2, 3, 10) and rows[0, 0].tolist() == ids and not rows[0, 2].any()
    assert (rows[1] == rows[1, 0]).all()
