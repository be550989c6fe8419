"""`reproduce` with stand-ins for trainings: what runs beside what, what stops it, and what it then says."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lightning_meta.errors import UsageError
from lightning_meta.reproduce.command import main
from lightning_meta.reproduce.runs import find_runs
from lightning_meta.signals import STOP_SIGNALS
from tests.conftest import write_checkpoint
from tests.reproduce.test_runs import CONFIG, RESULT

# In place of `python -m lightning_meta`: notes how it was called and plays what the text of the experiment says.
STAND_IN = """
import json, os, shlex, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
given = dict(zip(words[1::2], words[2::2]))
name = Path(given["--config"]).stem
called = {"name": name, "words": words, "threads": os.environ["OMP_NUM_THREADS"]}
with open("calls", "a") as calls:
    calls.write(json.dumps(called | {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\\n")
play = Path(given["--config"]).read_text().splitlines()[0]
if "waits" in play and words[0] == "fit":
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(0 if "tests" in play else 143))
    if "signal" in play:
        os.kill(os.getppid(), int(play.split()[-1]))
    time.sleep(60)
if "fails" in play and words[0] in play:
    print("Traceback ...\\nerror: it broke.\\nmore")
    sys.exit(3)
run = Path(given["--trainer.logger.save_dir"], name, "version_1")
run.mkdir(parents=True, exist_ok=True)
command = shlex.join(["python", "-m", "lightning_meta", *words])
result = json.loads(Path("result.json").read_text()) | {"experiment": name, "command": command}
if "--data.k_shot" in given:
    result["k_shot"] = int(given["--data.k_shot"])
(run / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lightning_meta").mkdir()
    (tmp_path / "lightning_meta/__main__.py").write_text(STAND_IN)
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(folder: Path, name: str, play: str = "works", header: str = "") -> None:
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / f"experiments/{name}.yaml").write_text(f"# {play}\n{header}{CONFIG}")


def checkpoints(folder: Path, name: str, step: int) -> None:
    """Those of a training that has come to that step."""
    place = folder / "runs/reproduce" / name / "version_0/checkpoints"
    write_checkpoint(place / f"best-step={step}.ckpt", step, score=0.9)
    write_checkpoint(place / "last.ckpt", step)


def reproduce(*words: str) -> int:
    """Its exit status."""
    with pytest.raises(SystemExit) as end:
        main(["--experiments", "experiments", "--devices", "cpu", *words])
    return end.value.code


def calls(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_a_failure_does_not_stop_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, play in {"a": "works", "b": "fit fails", "c": "works"}.items():
        experiment(folder, name, play)
    assert reproduce() == 1
    said = capsys.readouterr().out
    assert "b FAILED: ended with status 3: error: it broke. (runs/reproduce/b/log.txt)" in said
    assert said.endswith("2 of 3 have their results. Left: b.\n")
    assert sorted(path.stem for path in (folder / "experiments/results").iterdir()) == ["a", "c"]
    assert "| `a` |" in said
    assert "| `c` |" in said
    experiment(folder, "b")
    assert reproduce() == 0
    assert [call["name"] for call in calls(folder)] == ["a", "b", "c", "b"], "what has its result is not run again"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_handed_on_and_nothing_more_is_started(
    number: signal.Signals, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = signal.signal(number, signal.default_int_handler)  # a process in the background may ignore it
    experiment(folder, "a", f"waits signal {number.value}")
    experiment(folder, "b")
    try:
        assert reproduce() == 128 + number
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, former)
    assert [call["name"] for call in calls(folder)] == ["a"]
    said = capsys.readouterr().out
    assert f"{number.name}: 1 running, which save and stop" in said
    assert "a stopped at step 0 of 4" in said


def test_one_that_is_stopped_in_its_test_has_not_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning ends a test that is asked to stop as if it were done, but there is no result."""
    experiment(folder, "a", "waits and tests")
    assert reproduce("--hours", "0.0005") == 75
    said = capsys.readouterr().out
    assert "a stopped at step 0 of 4" in said and "FAILED" not in said


def test_hours_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abc":
        experiment(folder, name, "waits")
    assert reproduce("--jobs", "2", "--hours", "0.0005") == 75
    assert sorted(call["name"] for call in calls(folder)) == ["a", "b"]
    assert "time is up: 2 running" in capsys.readouterr().out


def test_further_tests_follow_the_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    also = "# Also:     --data.k_shot 5\n# Also:     more: --data.k_shot 50\n"
    checkpoints(folder, "a", 4)
    experiment(folder, "a", "test fails", also)
    assert reproduce() == 1
    assert [(call["name"], call["words"][0]) for call in calls(folder)] == [("a", "fit"), ("a", "test"), ("a", "test")]
    assert "a_k_shot_5 FAILED" in capsys.readouterr().out
    main(["--experiments", "experiments", "--list"])
    assert "a           done   4 / 4              k_shot_5, more" in capsys.readouterr().out
    experiment(folder, "a", "works", also)
    assert reproduce() == 0
    assert [call["words"][0] for call in calls(folder)[3:]] == ["test", "test"]
    shots = [json.loads(path.read_text())["k_shot"] for path in sorted((folder / "experiments/results").iterdir())]
    assert shots == [1, 5, 50]
    assert capsys.readouterr().out.count("| `a` |") == 3


def test_a_score_that_is_no_number_is_no_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "result.json").write_text(json.dumps(RESULT | {"acc": float("nan")}))
    experiment(folder, "a")
    assert reproduce() == 1
    assert "a FAILED: the acc of a is nan, so it is no result. (runs/reproduce/a/log.txt)" in capsys.readouterr().out
    assert not (folder / "experiments/results").exists()


def test_a_training_that_fails_is_not_tested_further(folder: Path) -> None:
    checkpoints(folder, "a", 2)
    experiment(folder, "a", "fit fails", "# Also:     --data.k_shot 5\n")
    assert reproduce() == 1
    assert [call["words"][0] for call in calls(folder)] == ["fit"]


def test_partial_tests_what_there_is_and_never_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("done", "half", "new"):
        experiment(folder, name, header="# Also:     --data.k_shot 5\n" if name == "half" else "")
    assert reproduce("done") == 0
    checkpoints(folder, "half", 3)
    (folder / "result.json").write_text(json.dumps(RESULT | {"trained_steps": 3}))
    assert reproduce("--partial") == 75
    tried = [(call["name"], call["words"][0], "--data.k_shot" in call["words"]) for call in calls(folder)]
    assert tried == [("done", "fit", False), ("half", "test", False), ("half", "test", True)]
    said = capsys.readouterr().out
    assert "half 3 of 4 steps: experiments/results/half.json" in said
    assert said.count("| `half` |") == said.count("| 3 of 4 |") == 2
    assert said.endswith("1 of 3 have their results. Left: half, new.\n")
    (folder / "result.json").write_text(json.dumps(RESULT))
    assert reproduce() == 0
    assert json.loads((folder / "experiments/results/half.json").read_text())["trained_steps"] == 4


def test_what_another_process_trains_is_left_to_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment(folder, "a")
    (run,) = find_runs([], Path("experiments"), Path("runs/reproduce"), Path("experiments/results"), [0], [])
    with run.lock():
        assert reproduce() == 75
        assert "a is left to the process that trains it" in capsys.readouterr().out
        main(["--experiments", "experiments", "--list"])
        assert "a           running" in capsys.readouterr().out
    assert not (folder / "calls").exists()


def test_jobs_share_the_cores_and_the_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    for name in "ab":
        experiment(folder, name)
    for options in (["--jobs", "12"], ["--jobs", "5"], ["--jobs", "5", "--threads", "7"]):
        assert reproduce("--devices", "1,0", "--results", "".join(options).strip("-"), *options) == 0
    assert [call["threads"] for call in calls(folder)] == ["1", "1", "3", "3", "7", "7"]
    assert sorted((call["name"], call["gpu"]) for call in calls(folder)) == [("a", "GPU-b")] * 3 + [("b", "GPU-a")] * 3


def test_the_results_of_the_recipes_are_for_the_recipes(folder: Path) -> None:
    """Settings after -- that make another training ask for a name; those that do not, such as a shorter one, do not."""
    experiment(folder, "a")
    variant = ["--", "--data.n_way", "20"]
    with pytest.raises(Exception, match=r"--data.n_way 5 -> 20 makes it another training .*; name it with --suffix"):
        reproduce(*variant)
    (folder / "result.json").write_text(json.dumps(RESULT | {"n_way": 20}))
    assert reproduce("--suffix", "20_way", *variant) == 0
    assert reproduce("--results", "others", "--runs", "runs/others", *variant) == 0
    results = [*Path("experiments/results").iterdir(), *Path("others").iterdir()]
    assert results == [Path("experiments/results/a_20_way.json"), Path("others/a.json")]
    (folder / "result.json").write_text(json.dumps(RESULT | {"trained_steps": 2}))
    assert reproduce("--", "--trainer.max_steps", "2") == 0
    assert json.loads(Path("experiments/results/a.json").read_text())["trained_steps"] == 2
    (folder / "result.json").write_text(json.dumps(RESULT))
    assert reproduce() == 0, "the short one is not the recipe's"


@pytest.mark.parametrize("seeds", ["a", "0,0", "-1", "0,"])
def test_seeds_that_are_none_are_refused(seeds: str) -> None:
    with pytest.raises(UsageError, match=rf"--seeds {seeds}: give different whole numbers from 0 to 4294967295"):
        main([f"--seeds={seeds}", "--list"])
