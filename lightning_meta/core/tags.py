"""Tags of words that say where the spans of a sentence are, and of what kind: BIO.

Ramshaw, Marcus: "Text Chunking Using Transformation-Based Learning" (1995), arXiv:cmp-lg/9505040, with `B` on the first
word of every span (Tjong Kim Sang, Veenstra: "Representing Text Chunks" (1999), arXiv:cs/9907006).

Tag 0 is `O`, outside of all spans; of entity e the first word of a span has the tag `1 + 2e`, the others `2 + 2e`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

OUTSIDE, NO_WORD = 0, -100  # as a target; F.cross_entropy passes over the second


class Spans(NamedTuple):
    """Of words `(..., L)`: whether a span begins with one, of which entity it is, and the place after its end."""

    begins: Tensor
    entity: Tensor
    end: Tensor


def tag_names(entities: Sequence[str]) -> list[str]:
    """`O`, `B-PER`, `I-PER` and so on, by their numbers."""
    return ["O", *(f"{place}-{entity}" for entity in entities for place in "BI")]


def spans_of(tags: Tensor) -> Spans:
    """The spans of sentences by their tags `(..., L)`; `NO_WORD` is outside.

    An `I` begins a span where none of its entity goes on, as the evaluation of CoNLL and seqeval have it.
    """
    tags = tags.clamp_min(OUTSIDE)
    entity, inside = (tags + 1) // 2, tags > OUTSIDE
    goes_on = inside & (tags % 2 == 0) & (entity == F.pad(entity, (1, 0))[..., :-1])
    places = torch.arange(tags.shape[-1] + 1, device=tags.device)
    stops = torch.where(F.pad(goes_on, (0, 1)), tags.shape[-1], places)  # the next one to the right is an end
    end = stops[..., 1:].flip(-1).cummin(-1).values.flip(-1)
    return Spans(inside & ~goes_on, entity, end)


def nats_per_tag(logits_BLC: Tensor, tags_BL: Tensor) -> Tensor:
    """Cross-entropy of tags, mean over the words of all sentences."""
    return F.cross_entropy(logits_BLC.flatten(0, -2), tags_BL.flatten(), ignore_index=NO_WORD)
