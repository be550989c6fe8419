"""A trained meta-learner in use: `predict` on folders of images, the Python API, and tests on other data."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from torch import Tensor

from lightning_meta.algorithms import MAML, ProtoNet, RelationNet
from lightning_meta.checkpoints import best_or_last
from lightning_meta.cli import main, predict
from lightning_meta.cli.predict import (
    Task,
    check,
    doubt,
    load_run,
    probabilities,
    read_task,
    trained_run,
    treatment,
)
from lightning_meta.core import Batch, TaskOutput
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules import CIFARFS, Glyphs, ImageFolder, Omniglot
from lightning_meta.datamodules.images.omniglot import shrink
from lightning_meta.errors import ConfigError, UserError
from lightning_meta.modules import EpisodicModule, StreamModule
from tests.conftest import SIZE, blobs, conv4

ROOT = Path(__file__).parents[2]
LEVELS = {"black": 10, "grey": 120, "white": 245}  # of flat images
EXPERIMENT = """
trainer:
  accelerator: cpu
  max_steps: 2
  max_epochs: -1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: runs, name: ""}}
  callbacks:
    - class_path: lightning_meta.callbacks.EpisodicCheckpoint
    - class_path: lightning_meta.callbacks.RunSummary
data:
  class_path: lightning_meta.datamodules.ImageFolder
  init_args:
    root: train
    image_size: 16
    channels: 1
    split: {fractions: [0.34, 0.33, 0.33]}
    n_way: 2
    k_shot: 2
    n_query: 2
    steps_per_epoch: 2
    val_episodes: 2
    test_episodes: 3
model:
  class_path: lightning_meta.algorithms.MAML
  init_args:
    backbone: {class_path: lightning_meta.backbones.Conv4, init_args: {image_size: 16, hidden: 6}}
    inner_lr: 0.4
    eval_inner_steps: 5
"""
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def save(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 24), level).save(path)
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images of six flat grey levels, a run of MAML, one of ProtoNet, and the folders of a user."""
    folder = tmp_path_factory.mktemp("predict")
    for level in range(0, 240, 40):
        for index in range(4):
            save(folder / f"train/{level}/{index}.png", level + index)
    for name, level in LEVELS.items():
        for index in range(1 + list(LEVELS).index(name)):  # 1, 2 and 3 images
            save(folder / f"three/{name}/{index}.png", level + index)
            if name != "grey":
                save(folder / f"two/{name}/{index}.png", level + index)
    for name in ("black", "white"):
        for index in range(2):
            save(folder / f"query/{name}_{index}.png", LEVELS[name] + 3 + index)
    (folder / "query/notes.txt").write_text("not an image")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit = ["fit", "--config", "experiment.yaml", "--test_after_fit", "false", "--name"]
        main([*fit, "maml"])
        main([*fit, "protonet", "--model", "ProtoNet", "--model.backbone.norm", "inductive"])
    return folder


@pytest.fixture
def at_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def classify(run: str, support: str, *options: str) -> None:
    predict.main([f"runs/{run}/version_0", "--support", support, "--query", "query", *options])


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def flat(level: int) -> Tensor:
    return torch.full((1, 1, 16, 16), level / 255)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_protonet_writes_its_predictions_for_more_classes_than_in_training(
    at_work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify("protonet", "three", "--out", "answer")
    rows = table("answer/predictions.csv")
    names = ["black_0", "black_1", "white_0", "white_1"]
    assert [(row["file"], row["predicted"]) for row in rows] == [(f"{n}.png", n.split("_")[0]) for n in names]
    # The same by the definition: softmax of minus the squared distances to class means, of 1, 2 and 3 images.
    module = ProtoNet.load_from_checkpoint(next(Path("runs/protonet").rglob("best-*.ckpt")))
    support = Batch(
        torch.cat([flat(level + index) for c, level in enumerate(LEVELS.values()) for index in range(1 + c)]),
        torch.tensor([0, 1, 1, 2, 2, 2]),
    )
    statistics = module.adapt(support).statistics
    features = torch.func.functional_call(module.backbone, statistics, (support.x,))
    means = torch.stack([features[support.y == c].mean(0) for c in range(3)])
    for row, level in zip(rows, (13, 14, 248, 249), strict=True):
        query = torch.func.functional_call(module.backbone, statistics, (flat(level),))
        expected = (-(query - means).square().sum(1)).softmax(0)
        assert float(row["probability"]) == pytest.approx(expected.max().item(), abs=1e-4)
        assert LEVELS[row["predicted"]] == list(LEVELS.values())[int(expected.argmax())]
    assert Path("answer/predictions.png").stat().st_size > 5000
    text = capsys.readouterr().out
    assert "3 classes, from 1 to 3 images" in text and "inductive" in text and "given together" not in text


def test_maml_writes_into_the_run_and_says_that_queries_are_normalised_together(
    at_work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify("maml", "two")
    rows = table("runs/maml/version_0/predictions/predictions.csv")
    assert [row["predicted"] for row in rows] == ["black", "black", "white", "white"]
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)
    printed = capsys.readouterr().out
    assert "a prediction depends on which query images are given together" in printed
    assert "2 classes, from 1 to 3 images each" in printed
    for name in ("black", "white"):
        save(at_work / f"even/{name}/0.png", LEVELS[name])
    classify("maml", "even", "--out", "answer")
    assert "2 classes, 1 image each" in capsys.readouterr().out


def test_inverting_the_images_exchanges_dark_and_light(at_work: Path) -> None:
    module, data, _ = load_run(Path("runs/maml/version_0"))
    given, inverted = (read_task(Path("two"), Path("query"), data, invert) for invert in (False, True))
    assert not module.training
    torch.testing.assert_close(inverted.query, 1 - given.query)
    torch.testing.assert_close(inverted.support.x[0], 1 - flat(10)[0])


def test_maml_refuses_another_number_of_classes(at_work: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 classes \(black, grey, white\).*n_way=2 outputs.*ProtoNet"):
        classify("maml", "three")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda _: {"run": "runs"}, ["runs has no config.yaml"]),
        (lambda _: {"run": "nowhere"}, ["nowhere does not exist"]),
        (lambda _: {"support": "none"}, ["none is no folder", "--support"]),
        (lambda _: {"query": "none"}, ["none is no folder", "--query"]),
        (lambda _: {"query": "two"}, ["two has no images"]),
        (lambda folder: (folder / "s/empty").mkdir(parents=True), ["s/empty has no images"]),
        (lambda folder: (folder / "s/broken").mkdir() or (folder / "s/broken/0.png").write_text("?"), ["0.png cannot"]),
        (lambda folder: {"support": str(folder / "s/black")}, ["0 class folders"]),
        (lambda _: {"ckpt_path": "none.ckpt"}, ["none.ckpt does not exist"]),
        (lambda _: {"ckpt_path": str(next(Path("runs/maml").rglob("best-*.ckpt")))}, ["MAML", "ProtoNet"]),
    ],
    ids=[
        "run",
        "no run",
        "support",
        "query",
        "query without images",
        "empty",
        "broken",
        "no classes",
        "checkpoint",
        "other",
    ],
)
def test_wrong_input_is_one_clear_error(
    at_work: Path, tmp_path: Path, change: Callable[[Path], dict[str, str] | None], facts: list[str]
) -> None:
    save(tmp_path / "s/black/0.png", 10)
    save(tmp_path / "s/white/0.png", 245)
    options = {"run": "runs/protonet/version_0", "support": str(tmp_path / "s"), "query": "query"}
    changed = change(tmp_path)
    options |= changed if isinstance(changed, dict) else {}
    run = options.pop("run")
    with pytest.raises(UserError) as error:
        predict.main([run, *(word for name, value in options.items() for word in (f"--{name}", value))])
    assert all(fact in str(error.value) for fact in facts), error.value


def test_all_files_that_cannot_be_read_are_named_at_once(at_work: Path, tmp_path: Path) -> None:
    for name in ("s/black/0.png", "s/white/0.png", "q/good.png"):
        save(tmp_path / name, 10)
    for name in ("s/black/1.png", "s/white/2.jpg", "q/bad.png"):
        (tmp_path / name).write_text("?")
    with pytest.raises(UserError, match=r"^3 images cannot be used: \S*black/1.png .*white/2.jpg .*q/bad.png cannot"):
        predict.main(["runs/protonet/version_0", "--support", f"{tmp_path}/s", "--query", f"{tmp_path}/q"])


def test_what_was_done_to_images_is_said_in_a_line_each(tmp_path: Path) -> None:
    for name, size, mode in (("s/a/0", (20, 20), "L"), ("s/b/0", (20, 24), "1"), ("q/0", (9, 20), "RGB")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(tmp_path / f"{name}.png")
    folders = tmp_path / "s", tmp_path / "q"
    assert treatment(*folders, channels=3, data=Glyphs()) == ["not square, their sides cut off: 2 of 3"]
    (tmp_path / "q/more").mkdir()
    (tmp_path / "s/b/notes.txt").write_text("not an image")
    save(tmp_path / "s/loose.png", 10)
    assert treatment(*folders, channels=1, data=Glyphs()) == [
        "not square, their sides cut off: 2 of 3",
        "in colour, made grey as in training: 1 of 3",
        f"sub-folders passed over: 1 ({tmp_path}/q/more)",
        f"files passed over that are no images: 1 ({tmp_path}/s/b/notes.txt)",
        f"images passed over beside the class folders: 1 ({tmp_path}/s/loose.png)",
    ]


@pytest.mark.parametrize(
    ("protocol", "predicted", "facts"),
    [
        ("transductive", [0, 1, 2, 0, 1, 2], ""),
        ("transductive", [0, 1, 2, 0], "4 query images in place of 6: transductive"),
        ("transductive", [1, 1, 1, 1, 1, 0, 2], "5 of 7 taken for class 1: transductive"),
        ("transductive", [1, 1, 1], "3 query images in place of 6 and 3 of 3 taken for class 1: transductive"),
        ("inductive", [1, 1, 1], ""),
        ("running", [1, 1, 1], ""),
    ],
)
def test_statistics_of_few_or_uneven_queries_are_doubted(protocol: str, predicted: list[int], facts: str) -> None:
    given = task([2, 2, 2], queries=len(predicted))
    warning = doubt(protocol, EpisodeShape(3, 2, 2), given, torch.tensor(predicted))
    assert warning.startswith(facts)
    assert bool(warning) == bool(facts) == ("--model.backbone.norm inductive" in warning)


def test_what_is_to_be_known_of_the_images_is_printed(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classify("maml", "two", "--out", "answer")
    lines = capsys.readouterr().out.splitlines()
    assert "images        not square, their sides cut off: 8 of 8" in lines
    assert "images        files passed over that are no images: 1 (query/notes.txt)" in lines
    assert not any(line.startswith("warning") for line in lines)  # four query images, as in training
    predict.main(["runs/maml/version_0", "--support", "two", "--query", "two/black", "--out", "answer"])
    assert re.search("warning       1 query images in place of 4 and 1 of 1 taken for", capsys.readouterr().out)


def test_a_run_that_does_not_classify_images_is_refused(at_work: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(Path("runs/maml/version_0/config.yaml").read_text())
    config["data"] = {"class_path": "lightning_meta.datamodules.Sinusoid", "init_args": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        ConfigError, match="MAML on Sinusoid; this command is for classes of images, sounds and texts, for tables"
    ):
        load_run(tmp_path, next(Path("runs/maml").rglob("best-*.ckpt")))


# ---- what algorithms need -------------------------------------------------------------------------------------------


def task(shots: list[int], queries: int = 5) -> Task:
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    x = torch.rand(len(labels) + queries, 1, SIZE, SIZE)
    files = [Path(f"{index}.png") for index in range(queries)]
    return Task([f"class {c}" for c in range(len(shots))], Batch(x[queries:], labels), x[:queries], files)


def test_relation_networks_refuse_unequal_shots() -> None:
    module = RelationNet(conv4(halvings=2), hidden=6)
    check(module, task([2, 2, 2]))
    with pytest.raises(ConfigError, match="from 1 to 3 examples"):
        check(module, task([1, 3]))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(1, 28, 28\).*\(1, 16, 16\)"):
        check(ProtoNet(conv4(image_size=28)), task([1, 1]))


@pytest.mark.parametrize("base", [EpisodicModule, StreamModule])
def test_streams_are_read_in_a_random_order_that_repeats(base: type[EpisodicModule]) -> None:
    class Reader(base):  # type: ignore[misc, valid-type]
        def adapt(self, support: Batch) -> Tensor:
            read.append(support)
            return support.y

        def query_loss(self, adapted: Tensor, query: Batch) -> TaskOutput:
            return TaskOutput(torch.zeros(()), torch.zeros(len(query.y), 3))

    read: list[Batch] = []
    given = task([4, 4, 4])
    for _ in range(2):
        probabilities(Reader().eval(), given)
    first, second = (support.y.tolist() for support in read)
    assert first == second
    assert (first == given.support.y.tolist()) == (base is EpisodicModule)
    assert sorted(first) == given.support.y.tolist()
    places = [(given.support.x == x).flatten(1).all(1).nonzero().item() for x in read[0].x]
    assert given.support.y[places].tolist() == first  # images keep their labels


@pytest.mark.parametrize(("norm", "alike"), [("inductive", True), ("transductive", False)])
def test_query_images_are_played_together_where_they_depend_on_each_other(
    norm: str, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 2)
    module, given = ProtoNet(conv4(norm)).eval(), task([1, 2])
    together = probabilities(module, given)
    assert together.shape == (5, 2)
    torch.testing.assert_close(together.sum(1), torch.ones(5))
    whole = module.predict(module.adapt(given.support), given.query)[:, :2]
    torch.testing.assert_close(together, whole)
    parts = [module.predict(module.adapt(given.support), part)[:, :2] for part in given.query.split(2)]
    assert torch.allclose(together, torch.cat(parts), atol=1e-5) == alike


def test_by_name_the_newest_run_with_a_checkpoint_is_taken_or_a_seed_is_asked_for(
    at_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = best_or_last(Path("runs/maml/version_0")).resolve()
    monkeypatch.chdir(tmp_path)

    def run(name: str, *files: str) -> Path:
        folder = Path("runs", name)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").touch()
        for file in files:
            (folder / "checkpoints" / file).symlink_to(trained)
        return folder

    run("mine/version_0", "last.ckpt")
    newest, tested = run("mine/version_10", "last.ckpt"), run("mine/version_11")
    assert trained_run(Path("mine")) == trained_run(Path("runs/mine")) == newest
    assert trained_run(tested) == tested, "as it is named"
    only_tested = run("theirs/version_3")
    assert trained_run(Path("theirs")) == only_tested
    assert trained_run(Path("none")) == Path("none")
    for seed in (10, 2):
        run(f"theirs/seed_{seed}/version_0", "last.ckpt")
    run("theirs/seed_3/version_0")
    with pytest.raises(ConfigError, match=r"^of theirs only seeds .*: runs/theirs/seed_2, runs/theirs/seed_10\.$"):
        predict.main(["theirs", "--support", "two", "--query", "query"])
    assert trained_run(Path("theirs/seed_2")) == Path("runs/theirs/seed_2/version_0")


def test_images_are_made_like_those_of_the_data(tmp_path: Path) -> None:
    drawing = Image.fromarray(np.random.default_rng(0).integers(2, size=(105, 105), dtype=np.uint8) * 255).convert("1")
    drawing.save(tmp_path / "drawing.png")
    made = Omniglot(root=str(tmp_path)).prepare_image(tmp_path / "drawing.png")
    assert torch.equal(made, shrink((tmp_path / "drawing.png").read_bytes()))
    assert torch.equal(made, Glyphs(root=str(tmp_path)).prepare_image(tmp_path / "drawing.png"))
    red = tmp_path / "red.png"
    Image.new("RGB", (40, 50), (200, 10, 20)).save(red)
    assert CIFARFS(root=str(tmp_path)).prepare_image(red).flatten(1).unique(dim=1).T.tolist() == [[200, 10, 20]]
    folder = ImageFolder(root=str(tmp_path), image_size=9, invert=True)
    assert folder.prepare_image(red).shape == (3, 9, 9)
    assert folder.prepare_image(red)[:, 0, 0].tolist() == [55, 245, 235]
    with pytest.raises(ConfigError, match="Blobs does not say"):
        blobs().prepare_image(red)


# ---- from Python ----------------------------------------------------------------------------------------------------


def test_the_lines_of_the_documentation_run_and_agree_with_the_command(at_work: Path) -> None:
    section = (ROOT / "docs/use.md").read_text().split("## Use a trained meta-learner")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    checkpoint = best_or_last(Path("runs/maml/version_0"))
    code, replaced = re.subn(r'"runs/.*?\.ckpt"', repr(str(checkpoint)), code)
    assert replaced == 1
    _, data, _ = load_run(Path("runs/maml/version_0"))
    given = read_task(Path("two"), Path("query"), data)
    names = {"images": given.support.x, "labels": given.support.y, "queries": given.query}
    exec(code, names)
    assert names["probabilities"].argmax(1).tolist() == [0, 0, 1, 1]
    classify("maml", "two", "--out", "answer")
    written = [float(row["probability"]) for row in table("answer/predictions.csv")]
    assert names["probabilities"].max(1).values.tolist() == pytest.approx(written, abs=1e-5)


def test_a_loaded_module_is_in_evaluation_mode_until_it_is_trained_again(at_work: Path) -> None:
    module = MAML.load_from_checkpoint(best_or_last(Path("runs/maml/version_0")))
    assert not module.training
    modes = []
    step = module.training_step
    module.training_step = lambda *batch: modes.append(module.training) or step(*batch)
    pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, inference_mode=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    ).fit(module, datamodule=blobs(n_way=2))  # fmt: skip
    assert modes == [True]
    with pytest.raises(ConfigError, match=r"training mode.*module.eval\(\)"):
        module.train().predict(module.adapt(Batch(flat(0), torch.tensor([0]))), flat(0))


# ---- other data -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_tested_on_other_data(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(best_or_last(Path("runs/protonet/version_0")))
    test = ["test", "--config", "experiment.yaml", "--model", "ProtoNet", "--model.backbone.norm", "inductive"]
    main([*test, "--ckpt_path", checkpoint, "--name", "crossed", "--data", "tests.conftest.Blobs", "--data.n_way", "4"])
    result = json.loads(Path("runs/crossed/version_0/result.json").read_text())
    assert (result["data"], result["trained_on"], result["n_way"]) == ("Blobs", "ImageFolder", 4)
    assert "trained    2 outer steps on ImageFolder" in capsys.readouterr().out


def test_all_classes_of_a_folder_can_be_for_test(at_work: Path) -> None:
    checkpoint = str(best_or_last(Path("runs/maml/version_0")))
    options = ["--config", "experiment.yaml", "--ckpt_path", checkpoint, "--data.split.fractions", "[0,0,1]"]
    cli = main(["test", *options, "--trainer.logger", "false", "--data.invert", "true"])
    assert cli.datamodule.n_classes("test") == 6
    levels = cli.datamodule.sources["test"].inputs.flatten(1)[:, 0]
    assert sorted(levels.tolist()) == sorted(255 - level - index for level in range(0, 240, 40) for index in range(4))
    with pytest.raises(SystemExit, match=r"no classes for train: split.fractions=\[0.0, 0.0, 1.0\]"):
        main(["fit", *options, "--trainer.logger", "false"])
