"""`predict` on files of rows: texts by class, classes and numbers of tables, on the scale of the user's file."""

import csv
import json
from pathlib import Path

import pytest
import torch

from lightning_meta.cli import main, predict
from lightning_meta.cli.predict import load_run
from lightning_meta.core import Batch
from lightning_meta.errors import ConfigError, DataError

TRAINER = """
trainer: {accelerator: cpu, max_steps: 2, max_epochs: -1, num_sanity_val_steps: 0, enable_progress_bar: false,
  enable_model_summary: false, log_every_n_steps: 1,
  logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: runs, name: ""}},
  callbacks: [{class_path: lightning_meta.callbacks.EpisodicCheckpoint}]}
"""
TABLE = """
data: {class_path: Tables, init_args: {path: table.csv, target: y, task: task, inputs: [a, b], k_shot: 3, n_query: 3,
  steps_per_epoch: 2, val_episodes: 2, test_episodes: 2}}
"""
RUNS = {
    "mean": TABLE + """
model: {class_path: CommonMean, init_args: {backbone: {class_path: MLP, init_args: {in_features: 3, hidden: []}}}}
""",
    "cnp": TABLE + "model: {class_path: ConditionalNeuralProcess, init_args: {x_size: 3, width: 8}}\n",
    "texts": """
data: {class_path: TextClasses, init_args: {file: texts.csv, split: {fractions: [0.4, 0.3, 0.3]}, n_way: 2, k_shot: 1,
  n_query: 2, min_count: 1, length: 4, vocabulary: 50, steps_per_epoch: 2, val_episodes: 2, test_episodes: 2}}
model: {class_path: ProtoNet, init_args: {backbone: {class_path: EmbeddingAverage,
  init_args: {embedding_dim: 8, word_vectors: random}}}}
""",
}  # fmt: skip
RUNS["maml_texts"] = RUNS["texts"].replace("ProtoNet", "MAML")
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short runs, and a user's rows: y = 1000 + 100 a."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [
        {"task": k, "a": i % 5 + k, "b": "xy"[i % 2], "y": 1000 + 100 * (i % 5 + k)} for k in range(9) for i in range(8)
    ]
    write(folder / "table.csv", [dict(row) for row in rows])
    own = [{"id": i, "a": i, "b": "x", "y": 1000 + 100 * i} for i in range(6)]
    write(folder / "support.csv", [dict(row) for row in own])
    write(folder / "query.csv", [{"id": 10 + i, "a": i, "b": "y"} for i in range(4)])
    write(folder / "texts.csv", [{"text": f"the {w} n{i}", "label": w} for w in "abcdefghij" for i in range(4)])
    write(folder / "known.csv", [{"text": f"the {w}", "label": w} for w in ("hot", "cold", "hot")])
    write(folder / "asked.csv", [{"text": "the hot"}, {"text": "the cold"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, rest in RUNS.items():
            (folder / f"{name}.yaml").write_text(TRAINER + rest)
            main(["fit", "--config", f"{name}.yaml", "--test_after_fit", "false", "--name", name])
    for file in ("table.csv", "texts.csv"):  # a checkpoint has what is needed of them
        (folder / file).unlink()
    return folder


@pytest.fixture
def at_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def read(run: str) -> list[dict[str, str]]:
    with (Path("runs") / run / "version_0" / "predictions" / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_on_the_scale_of_the_file(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(["runs/mean/version_0", "--support", "support.csv", "--query", "query.csv", "--json"])
    rows = read("mean")
    assert list(rows[0]) == ["id", "a", "b", "predicted"]
    module, data, _ = load_run(Path("runs/mean/version_0"))
    scale, target = data.encoding.inputs.scales["a"], data.encoding.target
    x = lambda a, b: [(a - scale.mean) / scale.std, float(b == "x"), float(b == "y")]  # noqa: E731
    y = torch.tensor([[(1000 + 100 * i - target.mean) / target.std] for i in range(6)])
    adapted = module.adapt(Batch(torch.tensor([x(i, "x") for i in range(6)]), y))
    expected = module.predict(adapted, torch.tensor([x(i, "y") for i in range(4)]))[:, 0] * target.std + target.mean
    assert [float(row["predicted"]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert abs(float(rows[0]["predicted"]) - 1000) < 400  # not on the scale of the network
    written = json.loads(Path("runs/mean/version_0/predictions/predictions.json").read_text())
    assert [row["predicted"] for row in written] == [float(row["predicted"]) for row in rows]
    assert "support       6 rows" in capsys.readouterr().out


def test_distributions_have_an_interval(at_work: Path) -> None:
    predict.main(["runs/cnp/version_0", "--support", "support.csv", "--query", "query.csv"])
    for row in read("cnp"):
        low, middle, high = (float(row[name]) for name in ("low", "predicted", "high"))
        assert low < middle < high
        assert middle - low == pytest.approx(high - middle, abs=1e-3)


def test_texts_are_classified(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that repeat a word of the support set, which training never saw, are of a known class."""
    predict.main(["runs/texts/version_0", "--support", "known.csv", "--query", "asked.csv"])
    rows = read("texts")
    assert [row["text"] for row in rows] == ["the hot", "the cold"]
    assert all(row["predicted"] in ("hot", "cold") and 0.4 < float(row["probability"]) <= 1 for row in rows)
    assert "2 classes, from 1 to 2 rows each" in capsys.readouterr().out


def test_mistakes_are_one_line(at_work: Path) -> None:
    (at_work / "half.csv").write_text("a,y\n1,2\n")
    (at_work / "word.csv").write_text("a,b,y\n1,x,many\n")
    (at_work / "one.csv").write_text("text,label\nhello,a\n")
    for run, support, query, message in (
        ("mean", "nowhere.csv", "query.csv", r"nowhere\.csv is no file; give a table with a row for each"),
        ("mean", "half.csv", "query.csv", r"half\.csv .*line 2 has no column 'b'; its columns are a, y\.$"),
        ("mean", "query.csv", "query.csv", r"query\.csv .*line 2 has no column 'y'"),
        ("mean", "word.csv", "query.csv", r"word\.csv: y must be a number in each row: .*'many'"),
        ("texts", "one.csv", "asked.csv", r"one\.csv has rows of one class, a; give rows of two or more"),
    ):
        with pytest.raises(DataError, match=message):
            predict.main([f"runs/{run}/version_0", "--support", support, "--query", query])


def test_categories_that_training_has_not_seen_are_named(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training has x and y; a missing one is nothing to be told of."""
    cells = ("x", "z", "w", "z", "")
    write(at_work / "new.csv", [{"a": i, "b": b, "y": 1000 + 100 * i} for i, b in enumerate(cells)])
    predict.main(["runs/mean/version_0", "--support", "support.csv", "--query", "new.csv"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert note.split(maxsplit=1)[1] == (
        "new.csv has categories that training has not seen, which are taken as if they were missing (b: w, z)"
    )
    rows = read("mean")
    assert rows[1]["predicted"] != rows[0]["predicted"]
    predict.main(["runs/mean/version_0", "--support", "support.csv", "--query", "query.csv"])
    assert "note" not in capsys.readouterr().out


def test_another_number_of_classes_names_both_numbers(at_work: Path) -> None:
    write(at_work / "three.csv", [{"text": f"the {w}", "label": w} for w in ("hot", "cold", "warm")])
    message = (
        r"^three\.csv has 3 classes \(cold, hot, warm\), which this checkpoint cannot play: .* are 3-way, but MAML has "
        r"n_way=2 .*give rows of as many classes as training had, or .*ProtoNet\.$"
    )
    with pytest.raises(ConfigError, match=message):
        predict.main(["runs/maml_texts/version_0", "--support", "three.csv", "--query", "asked.csv"])
