"""`--data FILE` and `--model FILE`: whatever is said on the command line wins, and what becomes of the rest is said."""

from itertools import permutations
from pathlib import Path

import pytest
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.composition import in_order
from tests.cli.test_trainer import fails, tiny  # noqa: F401 - a fixture
from tests.conftest import Blobs

OTHERS = "class_path: tests.cli.test_exchange.Others\ninit_args: {n_way: 5, k_shot: 2, n_query: 3, val_episodes: 6}\n"
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


class Others(Blobs):
    """Other data of the same shape."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--data.n_way 5 --data d.yaml --config c.yaml", "--config c.yaml --data d.yaml --data.n_way 5"),
        ("--data.n_way=5 --data=d.yaml", "--data=d.yaml --data.n_way=5"),
        ("--data.init_args.n_way 5 --data.class_path Blobs", "--data.class_path Blobs --data.init_args.n_way 5"),
        (
            "--model.backbone.hidden 3 --model.backbone B --model M",
            "--model M --model.backbone B --model.backbone.hidden 3",
        ),
        ("--data.n_way 5 --data.n_way 6 --data d.yaml", "--data d.yaml --data.n_way 5 --data.n_way 6"),
        (
            "--trainer.max_steps 3 --config a.yaml --config b.yaml",
            "--config a.yaml --config b.yaml --trainer.max_steps 3",
        ),
        ("--trainer.callbacks+ A --trainer.callbacks.a 1 --trainer.callbacks+ B", None),
        ("--data.list+ A --data.list.a 1 --data.list+ B --data.list.b -2", None),
        ("--name x --trainer.fast_dev_run --seed_everything 3", None),
        ("", None),
    ],
)
def test_the_whole_comes_before_its_parts_and_nothing_else_moves(given: str, expected: str | None) -> None:
    assert in_order(given.split()) == (given if expected is None else expected).split()


@pytest.fixture
def others(tiny: Path) -> list[str]:  # noqa: F811
    """The command that exchanges the data of the small experiment."""
    Path("others.yaml").write_text(OTHERS)
    content = yaml.safe_load(tiny.read_text())
    content["data"]["init_args"]["train"] = {"n_query": 1}
    tiny.write_text(yaml.safe_dump(content, sort_keys=False))
    return ["--config", str(tiny)]


def test_explicit_options_win_wherever_they_stand(others: list[str]) -> None:
    """The same run, for any order."""
    exchange = ["--data", "others.yaml"]
    sizes = ["--data.n_way", "4", "--data.train.k_shot", "1"]
    for parts in permutations([others, exchange, sizes]):
        arguments = [word for part in parts for word in part]
        cli = main(["fit", *arguments, "--trainer.fast_dev_run", "true"])
        shape = cli.datamodule.shapes["train"]
        assert (type(cli.datamodule).__name__, shape.n_way, shape.k_shot, shape.n_query) == ("Others", 4, 1, 1)
        assert cli.datamodule.val_episodes == 6


def test_an_option_that_the_new_class_does_not_have_is_refused_wherever_it_stands(
    others: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for options in permutations([["--model", "ProtoNet"], ["--model.inner_lr", "1"]]):
        arguments = [word for option in options for word in option]
        assert "'inner_lr' is not accepted" in fails(["fit", *others, *arguments], capsys)


def test_settings_that_an_exchange_keeps_and_drops_are_said(
    others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", "others.yaml", "--data.test_episodes", "8", "--trainer.fast_dev_run", "true"]
    main(["fit", *others, *given])
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [
        "note: --data others.yaml: of the experiment's settings it keeps steps_per_epoch=2, train.n_query=1.",
        "note: --data others.yaml: of the experiment's settings it drops n_way=3 (now 5), n_query=2 (now 3), "
        "val_episodes=5 (now 6).",
    ]
    main(["fit", *others, "--model", "ProtoNet", "--trainer.fast_dev_run", "true"])
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [
        "note: --model ProtoNet: of the experiment's settings it keeps backbone=Conv4, backbone.image_size=16, "
        "backbone.hidden=6.",
        "note: --model ProtoNet: of the experiment's settings it drops inner_lr=0.1.",
    ]
    main(["fit", *others, "--trainer.fast_dev_run", "true"])
    assert "note: " not in capsys.readouterr().err
