"""A trained tagger on sentences of a user's: a few with tags, and others to be tagged."""

from pathlib import Path
from typing import Any

import torch

from lightning_meta.core.tags import OUTSIDE, spans_of
from lightning_meta.datamodules.language.tagged_sentences import TaggedSentences, read_tagged
from lightning_meta.errors import DataError
from lightning_meta.modules import EpisodicModule


def predict_tags(
    module: EpisodicModule[Any], data: TaggedSentences, support: Path, query: Path, out: Path
) -> list[tuple[str, str]]:
    """Write the words of the query file with their tags to `<out>/predictions.txt`; and what is to be said of them.

    Args:
        module: the trained one.
        data: what it was trained on, which says how words are encoded.
        support: a word and its tag on each line, an empty line after each sentence.
        query: likewise; tags may be left out, and are not looked at.
        out: folder.

    Raises:
        DataError: of the files.
    """
    for path, option in ((support, "--support"), (query, "--query")):
        if not path.is_file():
            raise DataError(f"{path} is no file; {option} must be one, with a word on each line.")
    known, asked = read_tagged(support, data.tags), read_tagged(query, data.tags, labelled=False)
    with torch.no_grad():
        adapted = module.adapt(data.encode(known))
    found_QL = module.predict(adapted, data.encode(asked).x).argmax(-1)
    blocks = []
    for sentence, tags_L in zip(asked, found_QL.tolist(), strict=True):
        tags = tags_L + [OUTSIDE] * (len(sentence.words) - len(tags_L))
        blocks += [f"{word} {data.tags[tag]}" for word, tag in zip(sentence.words, tags, strict=False)] + [""]
    out.mkdir(parents=True, exist_ok=True)
    (out / "predictions.txt").write_text("\n".join(blocks), encoding="utf-8")
    words_QL = torch.tensor([[place < len(sentence.words) for place in range(data.length)] for sentence in asked])
    spans = int(spans_of(found_QL.where(words_QL, OUTSIDE)).begins.sum())
    cut = sum(len(sentence.words) > data.length for sentence in (*known, *asked))
    facts = [
        ("support", f"{len(known)} sentences, {len(data.tags)} tags"),
        ("query", f"{len(asked)} sentences, {spans} spans found"),
        ("cut off", f"{cut} sentences after {data.length} words; what follows is tagged O" if cut else ""),
        ("files", f"{out}/predictions.txt"),
    ]
    return [(name, fact) for name, fact in facts if fact]
