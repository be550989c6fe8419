"""Sentences as rows of token ids: the words, an end, then padding."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.core.tokenizer import PAD, UNKNOWN

END = 2  # of a sentence; the ids of words follow
FIRST_WORD = 3


def words_of(ids_ML: Tensor, names: Sequence[str] | None = None, unknown: str = "?") -> list[str]:
    """Sentences of M rows of ids, up to their ends; without names a word is its number."""
    texts = []
    for row in ids_ML.tolist():
        kept = row[: row.index(END)] if END in row else row
        written = [
            unknown if id == UNKNOWN else str(id) if names is None else names[id - FIRST_WORD]
            for id in kept
            if id != PAD
        ]
        texts.append(" ".join(written))
    return texts


def up_to_end(ids_ML: Tensor) -> Tensor:
    """The same rows with padding in place of all that follows their first end."""
    ended_ML = (ids_ML == END).cumsum(-1) - (ids_ML == END).long()
    return torch.where(ended_ML > 0, PAD, ids_ML)


def nats_per_token(logits_QLV: Tensor, y_QL: Tensor) -> Tensor:
    """Cross-entropy, mean over the tokens of all rows; padding does not count."""
    return F.cross_entropy(logits_QLV.flatten(0, 1), y_QL.flatten(), ignore_index=PAD)
