"""A trained translator on sentences of a user: pairs of a language that it has not seen, others to be translated."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_meta.core import Batch
from lightning_meta.core.sentences import END, words_of
from lightning_meta.core.tokenizer import UNKNOWN
from lightning_meta.datamodules.language.translations import TranslationDataModule
from lightning_meta.datamodules.rows import Examples, Row, read_examples
from lightning_meta.modules import EpisodicModule

SENTENCE, TRANSLATION = "sentence", "translation"  # columns


def predict_translations(
    module: EpisodicModule[Any], data: TranslationDataModule, support: Path, query: Path
) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of the query file with a `predicted` translation, and what is to be said of both files.

    Args:
        module: the trained one.
        data: what it was trained on, with the vocabularies of the checkpoint.
        support: a file of rows with the columns `sentence` and `translation`.
        query: the same; `translation` may be missing.

    Raises:
        DataError: of the files: a column or a value is missing, a sentence has too many words or none.
    """
    of_user, asked = read_sentences(data, support, TRANSLATION), read_sentences(data, query)
    known = Batch(of_user.x, data.rows_of((data.target_ids(str(target)) for target in of_user.targets), support))
    with torch.no_grad():
        preds_QL = module.predict(module.adapt(known), asked.x)
    found = words_of(preds_QL, data.target_words())
    rows = [row | {"predicted": text} for row, text in zip(asked.rows, found, strict=True)]
    words, strange = (asked.x > END).sum().item(), (asked.x == UNKNOWN).sum().item()
    facts = [("support", f"{len(known.y)} sentences with their translations"), ("query", f"{len(rows)} sentences")]
    if strange:
        facts.append(("note", f"{strange} of {words + strange} words of {query} are not in the vocabulary of training"))
    return rows, facts


def read_sentences(data: TranslationDataModule, path: Path, target: str | None = None) -> Examples:
    """Sentences of a file, and their translations in the column `target`."""

    def encode(rows: list[Row]) -> Tensor:
        return data.rows_of((data.source_ids(str(row[SENTENCE])) for row in rows), path)

    return read_examples(path, [SENTENCE], target, encode)
