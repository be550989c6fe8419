"""Tasks from tables: which rows an episode has, what is learned from training tasks alone, and messages."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import MAML, CommonMean, ProtoNet
from lightning_meta.backbones import MLP
from lightning_meta.cli import main
from lightning_meta.core import Batch
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules import ArrayTables, ClassSplit, School, SklearnTables, Tables
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.tables.row_encoder import RowEncoder
from lightning_meta.datamodules.task_bank import GroupedClassBank, TaskBank
from lightning_meta.errors import ConfigError, DataError, UserError
from lightning_meta.metrics import EpisodicMSE, EpisodicR2
from tests.datamodules.test_episodes import assert_same, at, ready

TINY = """
trainer: {accelerator: cpu, max_steps: 2, max_epochs: -1, num_sanity_val_steps: 0, enable_progress_bar: false,
  enable_model_summary: false, log_every_n_steps: 1,
  logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: runs, name: ""}},
  callbacks: [{class_path: lightning_meta.callbacks.EpisodicCheckpoint}]}
data: {class_path: Tables, init_args: {path: table.csv, target: y, task: task, inputs: [x, kind], k_shot: 3, n_query: 3,
  steps_per_epoch: 2, val_episodes: 2, test_episodes: 2}}
model: {class_path: CommonMean, init_args: {backbone: {class_path: MLP, init_args: {in_features: 3, hidden: []}}}}
"""
TASKS = [f"t{number}" for number in range(10)]
HALVES = ClassSplit(fractions=(0.5, 0.2, 0.3))


def rows(rows_of_task: int = 12) -> list[dict[str, Any]]:
    """Row i of task k: x = k + i / 100, y = 10 x; a kind that names the row's parity."""
    return [
        {"task": task, "x": k + i / 100, "kind": ("even", "odd")[i % 2], "y": 10 * (k + i / 100), "side": "ab"[i % 2]}
        for k, task in enumerate(TASKS)
        for i in range(rows_of_task)
    ]


def write(path: Path, table: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in table)
        else:
            writer = csv.DictWriter(file, list(table[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(table)
    return path


def tables(path: Path, **overrides: Any) -> Tables:
    settings: dict[str, Any] = dict(
        target="y",
        task="task",
        inputs=["x", "kind"],
        split=HALVES,
        k_shot=3,
        n_query=4,
        test_episodes=5,
        val_episodes=4,
    )
    return Tables(str(path), **(settings | overrides))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "table.csv", rows())


# ---- banks ----------------------------------------------------------------------------------------------------------


def test_the_rows_of_an_episode_are_of_one_task_and_distinct() -> None:
    tasks = [
        Batch(torch.arange(n)[:, None] + 100.0 * k, torch.full((n, 1), float(k))) for k, n in enumerate((7, 9, 30))
    ]
    bank = TaskBank.from_tasks(tasks)
    episode = bank.sample(episode_keys(0, 0, range(300)), EpisodeShape(1, 3, 4))
    x = torch.cat([episode.support.x, episode.query.x], 1)[..., 0]
    y = torch.cat([episode.support.y, episode.query.y], 1)[..., 0]
    assert (x.div(100, rounding_mode="floor") == y).all() and (y == y[:, :1]).all()
    assert all(len(set(row)) == 7 for row in x.tolist())
    assert np.bincount(y[:, 0].long()) == pytest.approx([100, 100, 100], abs=30)
    assert {*x[y[:, 0] == 0].flatten().tolist()} == {*map(float, range(7))}  # all rows are in use


def test_the_classes_of_an_episode_are_of_one_task() -> None:
    counts = (2, 4, 3)
    bank = GroupedClassBank.from_tasks(
        [[torch.full((6, 1), 10.0 * k + c) for c in range(count)] for k, count in enumerate(counts)]
    )
    episode = bank.sample(episode_keys(0, 0, range(200)), EpisodeShape(2, 1, 3))
    x, y = episode.query.x[..., 0], episode.query.y
    task = x.div(10, rounding_mode="floor")
    assert (task == task[:, :1]).all()
    for values, labels in zip(x, y, strict=True):
        assert len({(v, label) for v, label in zip(values.tolist(), labels.tolist(), strict=True)}) == 2
    assert {*x.flatten().tolist()} == {0, 1, 10, 11, 12, 13, 20, 21, 22}
    with pytest.raises(
        ConfigError, match=r"n_way=3 classes are needed of every task, but 1 of 3 tasks have fewer, .* 2"
    ):
        bank.check(EpisodeShape(3, 1, 1))


# ---- what a table becomes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.jsonl"])
def test_inputs_and_targets_are_scaled_by_the_training_tasks(name: str, tmp_path: Path) -> None:
    data = ready(tables(write(tmp_path / name, rows())))
    known = [row for row in rows() if row["task"] in data.tasks["train"]]
    x, y = (np.array([row[column] for row in known]) for column in ("x", "y"))
    assert data.encoding.inputs.features == ["x", "kind=even", "kind=odd"]
    for split in ("train", "val", "test"):
        episode = at(data.dataset(split), 3)
        values = episode.support.x[:, 0].double() * x.std() + x.mean()
        targets = episode.support.y[:, 0].double() * y.std() + y.mean()
        torch.testing.assert_close(targets, 10 * values, rtol=1e-4, atol=1e-4)
        (task,) = {TASKS[int(value + 1e-4)] for value in values}
        assert task in data.tasks[split]
        row = (values % 1 * 100).round().long() % 2
        assert torch.equal(episode.support.x[:, 1:], F.one_hot(row, 2).float())
    assert sorted(name for names in data.tasks.values() for name in names) == TASKS


def test_a_folder_has_a_table_for_each_task(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in TASKS:
        write(folder / f"{task}.csv", [row for row in rows() if row["task"] == task])
    (folder / "notes.txt").write_text("no table")
    whole, parts = ready(tables(file)), ready(tables(folder, task=None))
    assert whole.tasks == parts.tasks
    assert_same(at(whole.dataset("test"), 1), at(parts.dataset("test"), 1))


def test_tasks_are_split_by_lists(file: Path, tmp_path: Path) -> None:
    for split, names in {"train": TASKS[:4], "val": TASKS[4:6], "test": TASKS[6:]}.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
    data = ready(tables(file, split=ClassSplit("train.txt", "val.txt", "test.txt")))
    assert data.tasks == {"train": TASKS[:4], "val": TASKS[4:6], "test": TASKS[6:]}


def test_gaps_and_unknown_categories() -> None:
    known = [{"x": "1", "c": "a"}, {"x": "3", "c": "b"}, {"x": "", "c": "a"}, {"x": "NA", "c": None}]
    encoder = RowEncoder.learn(known, ["x", "c"])
    assert encoder.features == ["x", "x missing", "c=a", "c=b"]
    found = encoder.encode([{"x": "1", "c": "b"}, {"x": "", "c": "z"}, {"x": "5", "c": ""}])
    assert found.tolist() == [[-1, 0, 0, 1], [0, 1, 0, 0], [3, 0, 0, 0]]
    assert RowEncoder.from_state_dict(encoder.state_dict()).encode(known).equal(encoder.encode(known))
    numbers_as_names = RowEncoder.learn([{"x": 1}, {"x": 2}], ["x"], categorical=["x"])
    assert numbers_as_names.features == ["x=1", "x=2"]
    assert RowEncoder.learn([{"x": 1, "y": 0}, {"x": 1, "y": 1}], ["x", "y"]).features == ["y"]  # constant


def test_a_split_has_no_part_in_what_is_learned_from_training(file: Path, tmp_path: Path) -> None:
    """Rows of test tasks may be anything: features of training tasks are the same."""
    first = ready(tables(file))
    changed = [row | {"x": -5.0, "kind": "new"} if row["task"] in first.tasks["test"] else row for row in rows()]
    second = ready(tables(write(tmp_path / "changed.csv", changed)))
    assert second.state_dict() == first.state_dict()
    assert_same(at(first.dataset("train"), 0), at(second.dataset("train"), 0))
    assert (at(second.dataset("test"), 0).support.x[..., 1:] == 0).all()


def test_small_tasks_are_refused_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = write(tmp_path / "table.csv", rows()[:-6])  # the last task has 6 rows
    with pytest.raises(ConfigError, match=r"k_shot=3 \+ n_query=4 rows .*but 1 of \d tasks have fewer, the smallest 6"):
        ready(tables(path))
    data = ready(tables(path, skip_small=True))
    assert sum(map(len, data.tasks.values())) == 9
    counted = "skip_small leaves out 1 of 10 tasks, which have not 7 rows, and 6 of 114 rows."
    assert [record.getMessage() for record in caplog.records].count(counted) == 1
    classes = ready(tables(path, target="side", n_way=2, k_shot=1, n_query=3, skip_small=True))
    assert sum(map(len, classes.tasks.values())) == 9  # of its 6 rows each class has 3
    assert "leaves out 1 of 10 tasks, which have not 2 classes of 4 rows, and 6 of 114 rows." in caplog.text
    with pytest.raises(DataError, match=r"none of the 10 tasks of .* has 34 rows \(k_shot \+ n_query of each\)"):
        ready(tables(path, skip_small=True, k_shot=30))


def test_classes_are_played_where_the_way_is_two_or_more(file: Path) -> None:
    data = ready(tables(file, target="side", inputs=["x", "kind"], n_way=2, k_shot=1, n_query=3))
    episode = at(data.dataset("test"), 0)
    assert episode.support.y.dtype == torch.int64 and episode.query.y.shape == (6,)
    # The parity of a row is its kind, which is its class here: examples of a label have the same kind.
    kind = torch.cat([episode.support.x, episode.query.x])[:, 1:].argmax(1)
    label = torch.cat([episode.support.y, episode.query.y])
    assert len({*zip(kind.tolist(), label.tolist(), strict=True)}) == 2


def test_a_checkpoint_keeps_the_scales(file: Path, tmp_path: Path) -> None:
    """Tested on other tables, a module gets inputs on the scale of its training."""
    other = write(tmp_path / "other.csv", [row | {"x": row["x"] * 7} for row in rows()])
    trained, tested = ready(tables(file)), ready(tables(other))
    before = at(tested.dataset("test"), 0).support.x[:, 0]
    tested.load_state_dict(json.loads(json.dumps(trained.state_dict())))
    after = at(tested.dataset("test"), 0).support.x[:, 0]
    scale, own = trained.encoding.inputs.scales["x"], ready(tables(other)).encoding.inputs.scales["x"]
    torch.testing.assert_close(after * scale.std + scale.mean, before * own.std + own.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("module", "changes"),
    [
        (lambda: CommonMean(MLP(in_features=3, hidden=())), {}),
        (lambda: MAML(MLP(in_features=3), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE()), {}),
        (lambda: ProtoNet(MLP(in_features=3)), {"target": "side", "n_way": 2, "n_query": 3}),
    ],
)
def test_algorithms_train_on_tables(module: Any, changes: dict[str, Any], file: Path) -> None:
    data = tables(file, **changes)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", inference_mode=False, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(made := module(), datamodule=data)
    (scores,) = trainer.test(made, datamodule=data, verbose=False)
    assert ("test/r2" in scores) == ("target" not in changes)


def test_r2_is_one_minus_the_error_over_the_variance() -> None:
    targets = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [4.0], [4.0]], [[4.0], [4.0], [4.0]]])
    preds = torch.tensor([[[1.0], [2.0], [4.0]], [[4.0], [4.0], [4.0]], [[4.0], [4.0], [5.0]]])
    assert EpisodicR2.per_episode(preds, targets).tolist() == [0.5, 1.0, 0.0]


def test_all_tasks_may_be_for_the_test(file: Path, tmp_path: Path) -> None:
    """Of what was trained on other tables, whose scales and categories hold, though these have others."""
    other = [row | {"x": row["x"] * 7, "kind": "new" if i % 3 else row["kind"]} for i, row in enumerate(rows())]
    trained, all_for_test = ready(tables(file)), ClassSplit(fractions=(0.0, 0.0, 1.0))
    data = tables(write(tmp_path / "other.csv", other), split=all_for_test)
    with pytest.raises(ConfigError, match=r"other\.csv has no tasks for meta-training, from which .*--ckpt_path"):
        data.prepare_data()
    data.restore(json.loads(json.dumps(trained.state_dict())))
    data.prepare_data()
    data.setup("test")
    assert data.tasks == {"train": [], "val": [], "test": TASKS}
    scale = trained.encoding.inputs.scales["x"]
    x = at(data.dataset("test"), 0).support.x
    assert x.shape[1] == 3 and ((x[:, 0] * scale.std + scale.mean) / 7).max() < 10
    with pytest.raises(ConfigError, match=r"has no tasks for train: split\.fractions=\[0\.0, 0\.0, 1\.0\]"):
        data.load_split("train")


def test_all_tasks_may_be_for_the_test_of_a_checkpoint(file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """On the command line; other tables have more categories, which changes nothing about what an input is."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "other.csv", [row | {"kind": f"k{i % 5}"} for i, row in enumerate(rows())])
    Path("tiny.yaml").write_text(TINY)
    main(["fit", "--config", "tiny.yaml", "--test_after_fit", "false"])
    test = ["test", "--config", "tiny.yaml", "--ckpt_path", "best", "--data.path", "other.csv"]
    cli = main([*test, "--data.split.fractions", "[0,0,1]"])
    assert cli.datamodule.encoding.inputs.categories == {"kind": ["even", "odd"]}
    assert {*cli.datamodule.sources} == {"test"} and len(cli.datamodule.tasks["test"]) == 10


def test_columns_parted_by_semicolons_have_decimal_commas(file: Path, tmp_path: Path) -> None:
    """As a spreadsheet writes them in most of Europe; a word with a comma stays one."""
    text = file.read_text().replace(",", ";").replace(".", ",").replace("odd", '"o,d"')
    (other := tmp_path / "other.csv").write_text(text)
    ours, theirs = ready(tables(file)), ready(tables(other))
    assert_same(at(ours.dataset("test"), 1), at(theirs.dataset("test"), 1))
    assert theirs.encoding.inputs.categories == {"kind": ["even", "o,d"]}
    (points := tmp_path / "points.csv").write_text(file.read_text().replace(",", ";"))
    assert_same(at(ours.dataset("test"), 1), at(ready(tables(points)).dataset("test"), 1))
    (both := tmp_path / "both.csv").write_text("task;x;kind;y\na;1,5;u;2\nb;3;u;1.250\n")
    with pytest.raises(DataError, match=r"line 3: of 1,5 and 1\.250 one has a decimal comma and the other .*one way\."):
        ready(tables(both))


# ---- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"target": "z"}, {}, r"line 2 has no column 'z'; its columns are task, x, kind, y, side\.$"),
        ({"inputs": ["x", "y"]}, {}, r"inputs=\['x', 'y'\] have the target 'y' itself; leave it out"),
        ({}, {"y": "high"}, r"line 2: y is 'high', but with n_way=1 it must be a finite number; for classes"),
        ({}, {"y": "inf"}, r"line 2: y is 'inf'"),
        ({}, {"y": ""}, r"line 2 must have a value of y and task\."),
        ({"k_shot": 30}, {}, r"k_shot=30 \+ n_query=4 rows are needed of every task, but 5 of 5 tasks have fewer"),
        ({"task": None}, {}, r"is not a folder with a table for each task; .*--data\.task COLUMN"),
        ({"split": ClassSplit()}, {}, r"the 10 tasks of .* are not split"),
        ({"train": ShapeOverride(n_way=2)}, {}, r"n_way is \[1, 2\] in different splits: targets are either"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(settings: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = rows()
    table[0] |= changes
    path = write(tmp_path / "table.csv", table)
    with pytest.raises(UserError, match=message):
        ready(tables(path, **settings))


def test_cells_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv is missing; it must be a table, or a folder"):
        ready(tables(tmp_path / "nowhere.csv"))
    with pytest.raises(ConfigError, match=r"table\.xlsx: a table ends in one of .*\.parquet"):
        (tmp_path / "table.xlsx").touch()
        ready(tables(tmp_path / "table.xlsx"))
    (long := tmp_path / "long.csv").write_text("task,x,kind,y\na,1,2,3,4,5\n")
    with pytest.raises(DataError, match=r"line 2 has more cells than the 4 columns"):
        ready(tables(long))
    names = [row | {"kind": f"id {i}"} for i, row in enumerate(rows(30))]
    with pytest.raises(ConfigError, match=r"column 'kind' has 150 different values that are no numbers"):
        ready(tables(write(tmp_path / "names.csv", names)))


def test_arrays_are_tables_too(file: Path) -> None:
    """The same episodes as of the file with the same rows."""
    table = rows()
    x = np.array([[row["x"], row["kind"]] for row in table], dtype=object)
    arrays = ArrayTables(
        x, [row["y"] for row in table], [row["task"] for row in table], ["x", "kind"], split=HALVES, k_shot=3, n_query=4
    )
    assert_same(ready(arrays).dataset("train")[5], ready(tables(file)).dataset("train")[5])
    with pytest.raises(ConfigError, match=r"shapes \(120, 2\), \(3,\), \(120,\)"):
        ArrayTables(x, [1, 2, 3], np.zeros(120))
    with pytest.raises(ConfigError, match=r"names has x more than once"):
        ArrayTables(x, np.zeros(120), np.zeros(120), ["x", "x"])
    for y, message in (("a", "with n_way=1, y must be finite"), (np.inf, "must be finite"), (np.nan, "y has 1 gaps")):
        with pytest.raises(ConfigError, match=message):
            ArrayTables(x, [y] + [1] * 119, np.zeros(120))
    endless = np.ones((120, 2))
    endless[7, 1] = np.inf
    with pytest.raises(ConfigError, match="x has 1 infinite values, the first in row 7, kind; leave such rows out"):
        ArrayTables(endless, np.zeros(120), np.zeros(120), ["x", "kind"])
    with pytest.raises(ConfigError, match="task has 1 gaps, the first in row 3; leave such rows out"):
        ArrayTables(x, np.zeros(120), np.where(np.arange(120) == 3, np.nan, 1.0))
    with pytest.raises(ConfigError, match="2 inputs, but there are 1 names"):
        ArrayTables(x, np.zeros(120), np.zeros(120), ["x"])


def test_tables_of_scikit_learn_are_cut_along_a_column() -> None:
    from sklearn import datasets

    data = ready(SklearnTables(split=HALVES, k_shot=5, n_query=5))
    bmi = np.sort(datasets.load_diabetes().data[:, 2])
    sizes = [len(data.rows[name]) for name in sorted(data.rows)]
    assert sum(sizes) == 442 and {*sizes} == {22, 23}
    assert [row["bmi"] for name in sorted(data.rows) for row in data.rows[name]] == bmi.tolist()
    classes = ready(SklearnTables("breast_cancer", "mean radius", 4, split=HALVES, n_way=2, k_shot=1, n_query=1))
    assert classes.dataset("train")[0].support.y.tolist() in ([0, 1], [1, 0])
    with pytest.raises(ConfigError, match=r"by=weight: wine has no such column; it has alcohol"):
        SklearnTables("wine", "weight")
    with pytest.raises(ConfigError, match="table='olives' must be one of diabetes"):
        SklearnTables("olives")  # type: ignore[arg-type]


def test_school_is_read(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    (tmp_path / "school").mkdir()
    cells = {"X": np.empty((1, 10), object), "Y": np.empty((1, 10), object)}
    for k in range(10):
        cells["X"][0, k], cells["Y"][0, k] = np.arange(22 * 2).reshape(22, 2) + k, np.arange(22.0)[:, None]
    scipy_io.savemat(tmp_path / "school" / "school.mat", cells)
    data = ready(School(root=str(tmp_path)))
    assert data.encoding.inputs.features == ["x0", "x1"]
    assert sum(map(len, data.tasks.values())) == 10
    (tmp_path / "school" / "school.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"is not school\.mat of MALSAR"):
        ready(School(root=str(tmp_path)))


def test_tables_that_would_be_misread_are_refused(tmp_path: Path) -> None:
    (twice := tmp_path / "twice.csv").write_text("task,x,x,y\na,1,2,3\n")
    with pytest.raises(DataError, match=r"line 1 names the column 'x' more than once"):
        ready(tables(twice))
    (folder := tmp_path / "tasks").mkdir()
    for task in TASKS:
        name = "X" if task == "t7" else "x"
        write(folder / f"lab.{task}.csv", [{name: row["x"], "y": row["y"]} for row in rows() if row["task"] == task])
    with pytest.raises(DataError, match=r"lab\.t7\.csv and .*lab\.t0\.csv do not have the same columns: X, x\."):
        ready(tables(folder, task=None, inputs=None))
    (folder / "lab.t7.csv").unlink()
    data = ready(tables(folder, task=None, inputs=None))
    assert sorted(name for names in data.tasks.values() for name in names) == [f"lab.t{k}" for k in range(10) if k != 7]


def test_columns_are_those_of_all_rows_and_spaces_do_not_count(tmp_path: Path) -> None:
    table = [dict(row) for row in rows()]
    del table[0]["x"]
    table[1]["kind"], table[3]["task"] = " odd ", "t0 "
    data = ready(
        tables(write(tmp_path / "table.jsonl", table), inputs=None, split=ClassSplit(fractions=(0.8, 0.1, 0.1)))
    )
    assert {"x", "kind=even", "kind=odd"} <= {*data.encoding.inputs.features}
    assert not any(" odd" in name for name in data.encoding.inputs.features)
    assert sum(map(len, data.tasks.values())) == 10


def test_regression_and_classes_are_not_mixed_up(file: Path) -> None:
    trainer = pl.Trainer(max_steps=1, inference_mode=False, accelerator="cpu", logger=False, enable_checkpointing=False)
    linear = MLP(in_features=3, hidden=())
    with pytest.raises(ConfigError, match=r"CommonMean predicts numbers, but the targets of Tables are classes"):
        trainer.fit(CommonMean(linear), datamodule=tables(file, target="side", n_way=2, k_shot=1, n_query=3))
    with pytest.raises(ConfigError, match=r"ProtoNet measures accuracy, but the targets of Tables are numbers"):
        trainer.fit(ProtoNet(linear), datamodule=tables(file))


def test_a_cell_with_several_categories_has_the_features_of_all() -> None:
    rows = [{"genre": ["b", "a"]}, {"genre": "a"}, {"genre": None}, {"genre": ("c", "b")}]
    encoder = RowEncoder.learn(rows, ["genre"])
    assert encoder.features == ["genre=a", "genre=b", "genre=c"]
    assert encoder.encode([*rows, {"genre": ["c", "new"]}]).tolist() == [
        [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1],
    ]  # fmt: skip
    assert encoder.unseen([{"genre": ["c", "new"]}, {"genre": "a"}]) == {"genre": ["new"]}
