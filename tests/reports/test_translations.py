"""The table of translations: what stands in it is what was predicted, in words."""

import csv
from pathlib import Path

import torch

from lightning_meta.core.sentences import words_of
from lightning_meta.reports.style import GREEN, VERMILLION
from lightning_meta.reports.translations import Translations, translations
from tests.algorithms.test_meta_nmt import nmt
from tests.conftest import ciphers
from tests.reports.conftest import run_test


def test_the_table_has_sentences_before_and_after_adaptation(tmp_path: Path) -> None:
    module, data, report = nmt(inner_lr=0.3), ciphers(), Translations(episodes=2, sentences=3)
    run_test(tmp_path, module, data, report)
    (path,) = tmp_path.rglob("translations.csv")
    rows = list(csv.DictReader(path.open()))
    assert [row["episode"] for row in rows] == ["0"] * 3 + ["1"] * 3
    tasks = data.dataset("test").__getitems__(range(2))
    with torch.no_grad():
        after = module.eval().play(tasks).preds.flatten(0, 1)
        module.eval_inner_steps = 0
        before = module.play(tasks).preds.flatten(0, 1)
    expected = {
        "sentence": words_of(tasks.query.x.flatten(0, 1), data.source_words()),
        "before": words_of(before, data.target_words()),
        "translation": words_of(after, data.target_words()),
        "truth": words_of(tasks.query.y.flatten(0, 1), data.target_words()),
    }
    assert {name: [row[name] for row in rows] for name in expected} == expected
    assert expected["before"] != expected["translation"]
    assert [path.name for path in report.paths] == ["translations.png"]


def test_a_right_translation_is_green_and_a_long_one_is_shortened() -> None:
    rows = [
        {"sentence": "a b", "before": "x", "translation": "one two", "truth": "one two"},
        {"sentence": "a b", "before": "x", "translation": "one " * 60, "truth": "one two"},
    ]
    texts = {text.get_text(): text.get_color() for text in translations(rows).axes[0].texts}
    colours = [t.get_color() for t in translations(rows).axes[0].texts if t.get_text().startswith("one")]
    assert colours[0] == GREEN and colours[2] == VERMILLION
    assert max(map(len, texts)) <= 84
