"""The picture and the table of transcripts: what stands in them is what was said and what was read."""

import csv
from pathlib import Path

import torch

from lightning_meta.core.ctc import strings_of
from lightning_meta.reports.style import GREEN, VERMILLION
from lightning_meta.reports.transcripts import Transcripts, transcripts
from tests.algorithms.test_meta_asr import asr
from tests.conftest import babble
from tests.reports.conftest import run_test


def test_the_table_has_what_is_read_before_and_after_adaptation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, data, report = asr(inner_lr=0.5), babble(), Transcripts(episodes=2, strings=3)
    run_test(tmp_path, module, data, report)
    (path,) = tmp_path.rglob("transcripts.csv")
    rows = list(csv.DictReader(path.open()))
    assert [row["episode"] for row in rows] == ["0"] * 3 + ["1"] * 3
    tasks = data.dataset("test").__getitems__(range(2))
    with torch.no_grad():
        after = module.eval().play(tasks).preds.flatten(0, 1)
        module.eval_inner_steps = 0
        before = module.play(tasks).preds.flatten(0, 1)
    parts = {"before": before, "text": after, "truth": tasks.query.y.flatten(0, 1)}
    expected = {name: strings_of(part, data.symbols) for name, part in parts.items()}
    assert {name: [row[name] for row in rows] for name in expected} == expected
    assert expected["before"] != expected["text"]
    assert [path.name for path in report.paths] == ["transcripts.png"]


def test_what_is_read_rightly_is_green() -> None:
    rows = [{"before": "", "text": "12", "truth": "12"}, {"before": "1", "text": "", "truth": "3"}]
    left, right = transcripts(torch.rand(2, 8, 4), rows, 0.02).axes
    assert (left.title.get_text(), left.title.get_color()) == ("read 12", GREEN)
    assert (right.title.get_text(), right.title.get_color()) == ("read nothing", VERMILLION)
    assert [axes.get_title("left") for axes in (left, right)] == ["said 12", "said 3"]
    assert [axes.get_title("right") for axes in (left, right)] == ["before nothing", "before 1"]
    assert left.get_xlim() == (0, 0.16)
