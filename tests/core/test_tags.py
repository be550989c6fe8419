"""Tags to spans, by hand, by a loop over words and by seqeval."""

import random
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.core.tags import NO_WORD, nats_per_tag, spans_of, tag_names
from lightning_meta.metrics import EpisodicSpanF1

NAMES = tag_names(["PER", "LOC"])
Span = tuple[int, int, str]  # first place, place after the end, entity


def numbers(text: str, length: int) -> torch.Tensor:
    found = [NAMES.index(name) for name in text.split()]
    return torch.tensor(found + [NO_WORD] * (length - len(found)))


def spans_by_words(tags: list[str]) -> set[Span]:
    """Word after word: a span is open or not."""
    found, first = set(), None
    for place, tag in enumerate([*tags, "O"]):
        goes_on = first is not None and tag == f"I-{tags[first][2:]}"
        if first is not None and not goes_on:
            found.add((first, place, tags[first][2:]))
            first = None
        if tag != "O" and not goes_on:
            first = place
    return found


def spans_found(tags: torch.Tensor) -> set[Span]:
    spans = spans_of(tags)
    return {
        (place, int(spans.end[place]), NAMES[2 * int(spans.entity[place]) - 1][2:])
        for place in spans.begins.nonzero()[:, 0].tolist()
    }


def random_tags(seed: int, sentences: int = 40, length: int = 12) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices(NAMES, k=draw.randint(1, length)) for _ in range(sentences)]


def test_names_stand_by_their_numbers() -> None:
    assert NAMES == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("B-PER B-PER I-PER", {(0, 1, "PER"), (1, 3, "PER")}),
        ("O I-LOC I-LOC I-PER", {(1, 3, "LOC"), (3, 4, "PER")}),  # an I begins one where none goes on
        ("B-PER I-LOC", {(0, 1, "PER"), (1, 2, "LOC")}),
        ("O O", set()),
    ],
)
def test_spans_by_hand(text: str, spans: set[Span]) -> None:
    assert spans_found(numbers(text, 6)) == spans == spans_by_words(text.split())


def test_spans_equal_those_of_a_loop_over_words() -> None:
    for tags in random_tags(0, 300):
        assert spans_found(numbers(" ".join(tags), 12)) == spans_by_words(tags)


def episode(true: list[list[str]], found: list[list[str]], length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions `(1, Q, L, C)`, where no word is at random, and targets `(1, Q, L)`."""
    targets = torch.stack([numbers(" ".join(tags), length) for tags in true])
    chosen = torch.stack([numbers(" ".join(tags), length) for tags in found])
    chosen = torch.where(chosen < 0, torch.randint(len(NAMES), chosen.shape), chosen)
    return F.one_hot(chosen, len(NAMES)).double()[None], targets[None]


def test_f1_by_hand() -> None:
    """Three true spans, five found; two of them right: 2 * 2 / (3 + 5)."""
    true = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["B-PER"]]
    found = [["B-PER", "I-PER", "B-LOC"], ["B-LOC", "B-LOC"], ["B-LOC"]]
    assert EpisodicSpanF1.per_episode(*episode(true, found)).item() == 4 / 8
    assert EpisodicSpanF1.per_episode(*episode(true, true)).item() == 1
    assert EpisodicSpanF1.per_episode(*episode([["O"]], [["O"]])).item() == 0


def pair(seed: int) -> tuple[list[list[str]], list[list[str]]]:
    true, draw = random_tags(seed), random.Random(seed)
    return true, [[tag if draw.random() < 0.8 else draw.choice(NAMES) for tag in tags] for tags in true]


@pytest.mark.parametrize("seed", range(3))
def test_f1_is_of_all_sentences_together_and_padding_does_not_count(seed: int) -> None:
    true, found = pair(seed)
    both = [(spans_by_words(a), spans_by_words(b)) for a, b in zip(true, found, strict=True)]
    right = sum(len(a & b) for a, b in both)
    expected = 2 * right / sum(len(a) + len(b) for a, b in both)
    assert 0.2 < expected < 0.9
    for length in (12, 20):
        assert EpisodicSpanF1.per_episode(*episode(true, found, length)).item() == pytest.approx(expected)


@pytest.mark.skipif(find_spec("seqeval") is None, reason="seqeval is not installed")
@pytest.mark.parametrize("seed", range(3))
def test_f1_is_seqevals(seed: int) -> None:
    from seqeval.metrics import f1_score

    true, found = pair(seed)
    assert EpisodicSpanF1.per_episode(*episode(true, found)).item() == pytest.approx(f1_score(true, found))


def test_the_loss_is_the_mean_over_words() -> None:
    logits, tags = torch.randn(2, 3, 5).double(), torch.tensor([[1, 0, NO_WORD], [4, NO_WORD, NO_WORD]])
    words = [-logits[b, place].log_softmax(0)[tag] for b, place, tag in ((0, 0, 1), (0, 1, 0), (1, 0, 4))]
    torch.testing.assert_close(nats_per_tag(logits, tags), torch.stack(words).mean())
