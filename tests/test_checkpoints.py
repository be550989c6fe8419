"""Which checkpoint: the best and the last one are told by what files hold, wherever they are and however named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_meta import checkpoints
from lightning_meta.callbacks import EpisodicCheckpoint
from lightning_meta.errors import ConfigError
from tests.conftest import write_checkpoint as write
from tests.modules.test_resume import fit

MODEL = "lightning_meta.algorithms.MAML"


@pytest.mark.parametrize(("mode", "best"), [("max", "b.ckpt"), ("min", "c.ckpt")])
def test_the_best_is_that_with_the_best_score_whatever_its_name_and_date(mode: str, best: str, tmp_path: Path) -> None:
    for name, step, score in (("a", 10, 0.5), ("sub/b", 20, 0.9), ("c", 30, 0.1), ("last", 40, None)):
        write(tmp_path / f"{name}.ckpt", step, score, mode=mode)
    write(tmp_path / "diverged.ckpt", 50, float("nan"), mode=mode)
    found = checkpoints.below(tmp_path)
    assert [one.step for one in found] == [10, 20, 30, 40, 50]
    assert checkpoints.best(found).path.name == best
    assert checkpoints.best_or_last(tmp_path).name == best


def test_of_equal_scores_the_earlier_is_the_best(tmp_path: Path) -> None:
    for step in (30, 10, 20):
        write(tmp_path / f"{step}.ckpt", step, 0.5)
    assert checkpoints.best(checkpoints.below(tmp_path)).step == 10


def test_scores_of_different_things_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt", 1, 0.9)
    write(tmp_path / "b.ckpt", 2, 2.5, monitor="val/loss", mode="min")
    write(tmp_path / "c.ckpt", 3, 2.0, monitor="val/loss", mode="min")
    assert checkpoints.best(checkpoints.below(tmp_path)).path.name == "c.ckpt"


def test_the_last_is_that_which_was_saved_last_even_where_files_have_been_copied(tmp_path: Path) -> None:
    """Copies have the date of the copy. Of two of the same moment it is the one that is not there for its score."""
    for step in (3, 1, 2):
        write(tmp_path / f"{step}.ckpt", step)
    write(tmp_path / "best.ckpt", 3, 0.5)
    assert checkpoints.last(checkpoints.below(tmp_path)).path.name == "3.ckpt"


def test_without_scores_a_run_has_its_last_one_and_without_any_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no checkpoint"):
        checkpoints.best_or_last(tmp_path)
    write(tmp_path / "checkpoints/last.ckpt", 2)
    assert checkpoints.best_or_last(tmp_path).name == "last.ckpt"


def test_damaged_ones_are_left_out_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "good.ckpt", 2, 0.5)
    (tmp_path / "bad.ckpt").write_bytes(b"PK" + bytes(40))
    with pytest.warns(UserWarning, match=r"bad.ckpt \(42 bytes\) cannot be read"):
        assert [one.path.name for one in checkpoints.below(tmp_path)] == ["good.ckpt"]


def test_checkpoints_that_say_nothing_of_scores_are_read_as_they_were(tmp_path: Path) -> None:
    """Those of Lightning's own callback, and of this project's before it wrote scores."""
    for name, step, score in (("best-step=2", 2, 0.7), ("last", 4, 0.7)):
        state = {"monitor": "val/acc", "current_score": torch.tensor(score)}
        checkpoint = {"state_dict": {}, "global_step": step, "callbacks": {"ModelCheckpoint{...}": state}}
        torch.save(checkpoint, tmp_path / f"{name}.ckpt")
    found = checkpoints.below(tmp_path)
    assert checkpoints.best(found).step == 2
    assert checkpoints.best(found).mode == "max"
    assert checkpoints.last(found).step == 4


# ---- of an experiment -----------------------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Three runs: the first has the best score of all, the second is another model's, the third is the newest."""
    runs = {"version_0": (MODEL, (1, 2)), "version_1": ("ProtoNet", (7, 8)), "renamed": (MODEL, (3, 4))}
    for run, (model, steps) in runs.items():
        for step in steps:
            write(tmp_path / run / "checkpoints" / f"step={step}.ckpt", step, 1 / step, model=model)
        write(tmp_path / run / "checkpoints" / "last.ckpt", steps[-1], time=steps[-1] + 0.5, model=model)
        (tmp_path / run / "config.yaml").touch()
    return tmp_path


def test_last_and_best_are_those_of_the_newest_run_of_the_same_model(experiment: Path) -> None:
    find = checkpoints.find
    assert find("last", experiment, MODEL) == experiment / "renamed/checkpoints/last.ckpt"
    assert find("best", experiment, MODEL) == experiment / "renamed/checkpoints/step=3.ckpt"
    assert find("last", experiment, "ProtoNet") == experiment / "version_1/checkpoints/last.ckpt"
    assert find("best", experiment, "ProtoNet") == experiment / "version_1/checkpoints/step=7.ckpt"


def test_where_there_is_none_of_the_model_those_that_are_there_are_named(experiment: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--ckpt_path last: there are only checkpoints of ProtoNet, {MODEL} in "):
        checkpoints.find("last", experiment, "Reptile")
    with pytest.raises(ConfigError, match=r"there is no checkpoint in .*none/"):
        checkpoints.find("best", experiment / "none", MODEL)


def test_best_needs_a_score(tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt", 3)
    with pytest.raises(ConfigError, match=r"as nothing was validated; take last"):
        checkpoints.find("best", tmp_path, MODEL)


# ---- as trainings leave them ----------------------------------------------------------------------------------------


def scores(folder: Path) -> dict[int, float]:
    return {one.step: one.score for one in checkpoints.below(folder) if one.score is not None}


def test_files_hold_the_scores_of_their_weights(tmp_path: Path) -> None:
    """Three best ones, with the score in their names, which has a slash."""
    keeping = EpisodicCheckpoint(dirpath=tmp_path, monitor="val/loss", filename="{step}-{val/loss:.3f}", save_top_k=3)
    diary = fit(keeping, seed=0, steps=16)
    assert scores(tmp_path) == {step: loss.item() for step, loss in sorted(diary.validations.items(), key=by_loss)[:3]}
    names = [f"step={step}-val_loss={loss:.3f}.ckpt" for step, loss in scores(tmp_path).items()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "last.ckpt"])
    best = checkpoints.best_or_last(tmp_path)
    assert best == Path(keeping.best_model_path)
    assert checkpoints.describe(best).score == min(scores(tmp_path).values())


def by_loss(item: tuple[int, torch.Tensor]) -> float:
    return item[1].item()


@pytest.mark.parametrize("change", [Path.rename, lambda old, new: old], ids=["moved", "in its place"])
def test_a_training_that_goes_on_knows_the_best_so_far(change: Callable[[Path, Path], Path], tmp_path: Path) -> None:
    """The second validation is worse, so the first one's weights must stay the best, under whatever name."""
    (tmp_path / "old").mkdir()
    settings = {"monitor": "val/loss", "mode": "max"}  # losses fall
    diary = fit(EpisodicCheckpoint(dirpath=tmp_path / "old", **settings), seed=0, steps=4)
    folder = change(tmp_path / "old", tmp_path / "new")
    (folder / "best-step=4.ckpt").rename(folder / "precious.ckpt")
    resumed = EpisodicCheckpoint(dirpath=folder, **settings)
    diary.validations |= fit(resumed, seed=0, steps=8, ckpt_path=folder / "last.ckpt").validations
    assert diary.validations[8] < diary.validations[4]
    assert resumed.best_model_path == str(folder / "precious.ckpt")
    assert resumed.best_model_score.item() == pytest.approx(diary.validations[4].item())
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "precious.ckpt"]


def test_a_training_that_goes_on_elsewhere_has_no_best_one_there_yet(tmp_path: Path) -> None:
    fit(EpisodicCheckpoint(dirpath=tmp_path / "old", monitor="val/loss", mode="max"), seed=0, steps=4)
    other = EpisodicCheckpoint(dirpath=tmp_path / "other", monitor="val/loss", mode="max")
    fit(other, seed=0, steps=8, ckpt_path=tmp_path / "old/last.ckpt")
    assert other.best_model_path == str(tmp_path / "other/best-step=8.ckpt")
