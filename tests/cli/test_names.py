"""Names stand where paths do; what there is can be listed; a mistyped name is answered with what was meant."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_meta import algorithms, backbones, datamodules
from lightning_meta.__main__ import TOOLS
from lightning_meta.__main__ import main as command
from lightning_meta.cli import main
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import (
    KINDS,
    by_name,
    configs,
    entries,
    exported,
    found,
    named,
    run_folder,
    runs_like,
    suggestion,
    with_paths,
)
from lightning_meta.cli.names import main as list_names
from lightning_meta.cli.usage import TRAINER
from lightning_meta.errors import ConfigError, UsageError
from tests.cli.test_messages import line
from tests.cli.test_trainer import ROOT, tiny  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")

# ---- names in place of paths ----------------------------------------------------------------------------------------


def test_names_stand_where_paths_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = "fit --config maml_glyphs_5w1s --model protonet --data=omniglot --trainer.logger csv --name maml"
    paths = {
        " maml_glyphs_5w1s": " configs/experiment/initialize/maml_glyphs_5w1s.yaml",
        "protonet": "configs/model/protonet.yaml",
        "omniglot": "configs/data/omniglot.yaml",
        "csv": "configs/logger/csv.yaml",
    }
    expected = words
    for name, path in paths.items():
        expected = expected.replace(name, path)
    assert with_paths(words.split()) == expected.split()
    assert with_paths(["--model.help", "fomaml"]) == ["--model.help", "lightning_meta.algorithms.MAML"]
    others = "test --model MAML --data tests.conftest.Blobs --config runs/x/config.yaml --trainer.logger false"
    assert with_paths(others.split()) == others.split()


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_paths(["--model", "maml"]) == ["--model", str(ROOT / "configs/model/maml.yaml")], "of the clone"
    Path("maml").touch()
    assert with_paths(["--model", "maml"]) == ["--model", "maml"]


def test_the_place_where_an_experiment_once_was_leads_to_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results and notes of users say the old place."""
    monkeypatch.chdir(ROOT)
    old, new = "configs/experiment/maml_sinusoid_5s.yaml", "configs/experiment/initialize/maml_sinusoid_5s.yaml"
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--config={old}", "--print_config"])
    assert end.value.code == 0
    said = capsys.readouterr()
    assert yaml.safe_load(said.out)["data"]["class_path"].endswith(".Sinusoid")
    assert said.err.splitlines() == [f"note: {old} is now {new}; 'maml_sinusoid_5s' works everywhere."]
    assert found("experiment", str(ROOT / old)) == Path(new)
    assert "is now" in capsys.readouterr().err
    others = [["--model", "configs/experiment/maml_sinusoid_5s.yaml"], ["--config", "mine/maml_sinusoid_5s.yaml"]]
    for words in (*others, ["--config", new], ["--config", old.replace("5s", "7s")]):
        assert with_paths(words) == words
    assert capsys.readouterr().err == ""


def test_a_name_is_that_of_one_file(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.yaml").touch()
    assert by_name(tmp_path) == {"a": tmp_path / "a/a.yaml", "b": tmp_path / "b/b.yaml"}
    (tmp_path / "b/a.yaml").touch()
    with pytest.raises(ConfigError, match=r"a/a\.yaml and .*b/a\.yaml have one name; rename one"):
        by_name(tmp_path)


def test_a_run_by_names_is_that_by_paths(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    by_name = {"experiment": "maml_sinusoid_5s", "model": "reptile", "data": "sinusoid_with_identity"}
    by_path = [str(configs(folder)[name]) for folder, name in by_name.items()]
    printed = []
    for config, model, data in (by_name.values(), by_path):
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", config, "--model", model, "--data", data, "--print_config"])
        assert end.value.code == 0
        printed.append(yaml.safe_load(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["model"]["class_path"] == compose(ROOT / "configs/model/reptile.yaml")["class_path"]


def test_checkpoints_of_runs_by_name_and_the_command_that_results_state(
    tiny: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["fit", "--config", str(tiny), "--test_after_fit", "false", "--trainer.max_steps", "2"])
    words = ["test", "--config", str(tiny), "--trainer.logger", "csv", "--ckpt_path", "tiny"]
    monkeypatch.setattr("sys.argv", ["lightning_meta", *words])
    cli = main(words)
    assert Path(cli.trainer.ckpt_path) == Path("runs/tiny/version_0/checkpoints/best-step=2.ckpt")
    result = json.loads(Path("runs/tiny/version_1/result.json").read_text())
    assert str(ROOT / "configs/logger/csv.yaml") in result["command"], "so that others may read what was run"
    cli = main(["fit", "--config", str(tiny), "--ckpt_path", "runs/tiny/version_0", "--test_after_fit", "false"])
    assert Path(cli.trainer.ckpt_path) == Path("runs/tiny/version_0/checkpoints/last.ckpt")
    assert "Did you mean tiny?" in line(["test", "--config", str(tiny), "--ckpt_path", "tinny"], capsys)


def test_the_newest_run_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for version in (2, 9, 10, 11):
        folder = Path(f"runs/mine/version_{version}")
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        if version < 11:
            (folder / "result.json").touch()
    assert run_folder(Path("mine"), "result.json") == run_folder(Path("runs/mine"), "result.json")
    assert run_folder(Path("mine"), "result.json") == Path("runs/mine/version_10")
    assert run_folder(Path("mine")) == Path("runs/mine/version_11")
    assert run_folder(Path("runs/mine/version_2")) == Path("runs/mine/version_2")
    assert run_folder(Path("theirs")) == Path("theirs")
    again = tmp_path / "runs/reproduce/theirs/version_0"
    again.mkdir(parents=True)
    (again / "config.yaml").touch()
    assert run_folder(Path("theirs")) == Path("runs/reproduce/theirs/version_0")


# ---- what was meant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model protonett", ["model=protonett", "Did you mean protonet", "list algorithms"]),
        ("--model PROTONET", ["Did you mean protonet"]),
        ("--model models/protonet.yml.yaml", ["models/protonet.yml.yaml", "protonet"]),
        ("--data omniglott", ["data=omniglott", "Did you mean omniglot?"]),
        ("--model.backbone Conv5", ["model.backbone=Conv5", "Did you mean Conv4?", "list backbones"]),
        ("--model.backbone lightning_meta.backbones.Conv5", ["Did you mean Conv4?"]),
        ("--model darts --model.backbone MLP", ["backbone=MLP is not of the kind that DARTS takes", "--model.help"]),
        ("--config maml_glyph_5w1s", ["Did you mean maml_glyphs_5w1s"]),
        ("--config none.yaml", ["config=none.yaml", "list experiments"]),
        ("--trainer.logger wandbb", ["Did you mean wandb?", "csv"]),
        ("--trainer debugg", ["Did you mean debug?", "default"]),
        ("--modle MAML", ["option --modle", "Did you mean --model?"]),
        ("--trainer.max_step 1", ["Did you mean --trainer.max_steps"]),
        ("--trainer.max_stepz 1", ["Did you mean --trainer.max_steps"]),
        ("--model.inner_lrr 1", ["'inner_lrr' is not accepted by MAML", "Did you mean inner_lr?", "--model.help"]),
        ("--model.backbone.normm x", ["model.backbone", "'normm' is not accepted by Conv4", "Did you mean norm?"]),
        ("--data.train.n_wayy 3", ["'train.n_wayy'", "Did you mean train.n_way"]),
        ("--model.inner_lr abc", ["model.inner_lr=abc must be a number"]),
        ("--model.task_mode x", ["model.task_mode=x must be one of auto, vmap, loop"]),
        (
            "--data.variable UniformTasks --data.variable.n_way 5",
            ["data.variable.n_way=5 must be a list, such as [1,5]"],
        ),
        (
            "--model rand_augment --model.ranges {rotate:30}",
            ["model.ranges={rotate:30} must be names with values, such as '{name: 1}', a space behind the colon"],
        ),
        (
            "--trainer.callbacks+ lightning_meta.reports.SupportUs",
            ["lightning_meta.reports.SupportUs", "Did you mean lightning_meta.reports.SupportUse?"],
        ),
        ("--model.optimizer torch.optim.AdamX", ["model.optimizer=torch.optim.AdamX: ", "mean torch.optim.Adam"]),
        ("--trainer.precision x", ["trainer.precision=x", "bf16-mixed"]),
        ("--replay=-1", ["replay=-1 must be >=0"]),
        ("--trainer.logger pytorch_lightning.loggers.TensorBoardLogger", ["save_dir", "--trainer.logger.save_dir"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_typo_is_answered_with_what_was_meant(
    tiny: Path,  # noqa: F811
    options: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    message = line(["fit", "--config", str(tiny), *options.split()], capsys)
    for text in expected:
        assert text in message


def test_a_command_without_an_experiment_says_that(capsys: pytest.CaptureFixture[str]) -> None:
    message = line(["fit"], capsys)
    assert "fit needs an experiment" in message
    assert "--config maml_glyphs_5w1s" in message
    assert "maml_glyphs_5w1s" in configs("experiment")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train"], "no command 'train'. Did you mean fit?"),
        (["fti"], "Did you mean fit?"),
        (["compair", "x"], "Did you mean compare?"),
        (["benchmark", "sped"], "no benchmark 'sped'. Did you mean speed?"),
    ],
)
def test_unknown_commands(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)) as error:
        command(words)
    assert error.value.status == 2


def test_nothing_is_suggested_for_what_is_like_nothing() -> None:
    assert suggestion("xyzzy", ["protonet", "maml"]) == ""
    with pytest.raises(ConfigError, match=r"no name of one in configs/model\. Did you mean protonet\?"):
        found("model", "protonett")


# ---- the list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [algorithms, backbones, datamodules])
def test_classes_are_read_as_python_imports_them(package: object) -> None:
    """Without importing them, which is tested against importing them."""
    name = package.__name__.rpartition(".")[-1]  # type: ignore[attr-defined]
    assert set(exported(name)) == {one for one in package.__all__ if isinstance(getattr(package, one), type)}  # type: ignore[attr-defined]
    for one, source in exported(name).items():
        cls = getattr(package, one)
        assert (
            cls.__module__ == ".".join(["lightning_meta", *source.file.relative_to(ROOT / "lightning_meta").parts])[:-3]
        )
        assert (cls.__doc__ or "").split("\n")[0] == source.of_class.split("\n")[0]


def test_every_config_is_listed_with_family_and_paper(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {entry.name: entry for entry in entries("algorithms")}
    assert set(listed) == {path.stem for path in (ROOT / "configs/model").glob("*.yaml")}
    assert listed["protonet"][:3] == ("protonet", "Snell et al. 2017, arXiv:1703.05175", "Learning to compare")
    assert listed["fomaml"].paper == "Finn et al. 2017, arXiv:1703.03400"
    for entry in listed.values():
        assert entry.family
        assert re.search(r"\w+ (et al\. )?\d{4}", entry.paper), entry.name
        assert entry.what
    assert {e.name for e in entries("experiments")} == {p.stem for p in (ROOT / "configs/experiment").rglob("*.yaml")}
    assert {"Conv4", "ResNet12", "MLP"} <= {entry.name for entry in entries("backbones")} <= set(backbones.__all__)
    assert not {"Backbone", "FittedBackbone", "EpisodicBatchNorm2d"} & {entry.name for entry in entries("backbones")}
    list_names([])
    lines = capsys.readouterr().out.splitlines()
    assert len([text for text in lines if text.startswith("  ")]) == sum(len([*entries(kind)]) for kind in KINDS)


def test_a_pattern_chooses_from_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    list_names(["protonet*"])
    names = [text.split()[0] for text in capsys.readouterr().out.splitlines() if text.startswith("  ")]
    assert names[0] == "protonet"
    assert len(names) == 1 + len([name for name in named("experiments") if name.startswith("protonet")])
    with pytest.raises(ConfigError, match=r"nothing is named protonett\. Did you mean protonet"):
        list_names(["protonett"])
    with pytest.raises(ConfigError, match=r"nothing is named nonsense\..* Kinds: algorithms, .*lightning_meta list"):
        list_names(["nonsense"])


def test_sweeps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    list_names(["sweeps"])
    title, *lines = capsys.readouterr().out.splitlines()
    files = sorted(path.stem for path in (ROOT / "configs/sweep").glob("*.yaml"))
    assert title == f"sweeps ({len(files)})"
    assert [text.split()[0] for text in lines] == files
    assert all(len(text.split()) > 5 for text in lines), "each says what it varies"


# ---- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINER)
def test_help_begins_with_what_is_changed_most_and_ends_with_the_trainer(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m lightning_meta {name} --config NAME")
    (loggers,) = re.findall(r"--trainer\.logger NAME +(.+)", text)
    assert set(re.split(r", | or ", loggers)) == {path.stem for path in (ROOT / "configs/logger").glob("*.yaml")}
    places = [
        text.index(part)
        for part in (TRAINER[name], "\n  --config NAME", "--model NAME", "--data NAME", "--trainer.max_steps N",
                     "\n  --model.help", "\n  --data.help", "\n  --trainer.accelerator ACCELERATOR")
    ]  # fmt: skip
    assert places == sorted(places)
    options = re.findall(r"^  (--[\w.]+)", text[places[-1] :], re.MULTILINE)
    assert len(options) > 30
    assert all(option.startswith("--trainer.") for option in options)


def test_every_command_has_help_in_one_style(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage first, then a sentence that says what it is for."""
    for words in [*TOOLS, ("benchmark",)]:
        try:
            command([*words, "--help"])
        except SystemExit as end:
            assert end.code == 0
        usage, what, *_ = re.split(r"\n\n", capsys.readouterr().out)
        assert usage.startswith(f"usage: python -m lightning_meta {' '.join(words)} ")
        assert what.rstrip().endswith((".", "?"))
        assert what[0].isupper()


def test_the_list_and_unknown_commands_import_no_torch() -> None:
    code = (
        "import sys; from lightning_meta.__main__ import main; main(['list']); main(['benchmark']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_a_mistyped_run_is_answered_with_the_runs_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("maml_glyphs_5w1s/version_0", "reproduce/cavia_glyphs_5w1s/version_3"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.yaml").touch()
    assert runs_like(Path("runs/maml_glyph_5w1s")).startswith(" Did you mean maml_glyphs_5w1s")
    assert "cavia_glyphs_5w1s" in runs_like(Path("cavia_glyphs_5w5s"))
    assert runs_like(Path("photos")) == ""
