"""The SLURM scripts, played by stand-ins for its programs: they stop in time, are queued again, and go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.modules.test_resume import ROOT, assert_equal, write_config

SRUN = """#!/bin/bash
# As many processes as there are tasks, each told its number; the largest exit status.
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do
    wait "$pid"
    code=$?
    largest=$((code > largest ? code : largest))
done
exit "$largest"
"""


SCONTROL = """#!/bin/bash
echo "$@" >> requeued
"""
# Ends with the status that the file `status` has; without one it waits for a signal, as `reproduce` does.
PYTHON = """#!/bin/bash
trap 'sleep 0.2; touch saved; exit 138' USR1
echo "$SLURM_JOB_NAME: $@" >> called
[ -f status ] && exit "$(cat status)"
while true; do sleep 0.05; done
"""


def write_programs(folder: Path, **programs: str) -> str:
    """`PATH` with the stand-ins in front."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.slow
def test_the_script_queues_the_job_again_and_goes_on_exactly(tmp_path: Path) -> None:
    programs = write_programs(tmp_path / "bin", srun=SRUN, scontrol=SCONTROL)

    def sbatch(job: int, *kill: int) -> int:
        config = write_config(tmp_path, "job", 2, *kill)
        environment = os.environ | {
            "PATH": programs, "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": str(job), "SLURM_JOB_NAME": "slurm.sbatch", "SLURM_NNODES": "1",
            "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1",
        }  # fmt: skip
        with (tmp_path / "log.txt").open("a") as log:
            script = ["bash", str(ROOT / "configs/launch/slurm.sbatch"), str(config), "--seed_everything", "3"]
            return subprocess.run(script, env=environment, cwd=tmp_path, stdout=log, stderr=log, timeout=800).returncode

    assert sbatch(101) == 0, (tmp_path / "log.txt").read_text()
    assert sbatch(102, 17, signal.SIGUSR1) == 128 + signal.SIGUSR1, (tmp_path / "log.txt").read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 102\n"
    runs = [tmp_path / "runs" / f"job-{job}" / "version_0" for job in (101, 102)]
    assert torch.load(runs[1] / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 18
    assert sbatch(102) == 0, (tmp_path / "log.txt").read_text()
    assert (tmp_path / "requeued").read_text() == "requeue 102\n", "no more"
    whole, resumed = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in runs)
    assert_equal(resumed["state_dict"], whole["state_dict"])
    assert_equal(resumed["optimizer_states"], whole["optimizer_states"])
    assert (runs[0] / "metrics.csv").read_text() == (runs[1] / "metrics.csv").read_text()
    assert not list(tmp_path.rglob("hpc*"))


def test_each_job_of_the_array_reproduces_one_experiment(tmp_path: Path) -> None:
    for place in ("compare/other", "initialize/maml_a", "memory/maml_b"):
        file = tmp_path / f"configs/experiment/{place}.yaml"
        file.parent.mkdir(parents=True)
        file.touch()
    environment = os.environ | {
        "PATH": write_programs(tmp_path / "bin", python=PYTHON, scontrol=SCONTROL), "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_JOB_NAME": "reproduce.sbatch",
    }  # fmt: skip

    def job(index: int) -> subprocess.Popen[bytes]:
        script = ["bash", str(ROOT / "configs/launch/reproduce.sbatch"), "maml_*", "--hours", "3"]
        return subprocess.Popen(script, env=environment | {"SLURM_ARRAY_TASK_ID": str(index)}, cwd=tmp_path)

    def lines(file: str) -> list[str]:
        return (tmp_path / file).read_text().splitlines() if (tmp_path / file).exists() else []

    for status in (0, 1, 75):
        (tmp_path / "status").write_text(str(status))
        assert job(1).wait(30) == status
    assert lines("called") == 3 * ["interactive: -m lightning_meta reproduce maml_b --hours 3"]
    assert job(2).wait(30) == 0
    assert len(lines("called")) == 3, "there is no third experiment of the pattern"
    assert lines("requeued") == []

    (tmp_path / "status").unlink()
    process = job(0)
    while len(lines("called")) < 4:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 138
    assert (tmp_path / "saved").exists(), "the script waits for that"
    assert lines("called")[-1] == "interactive: -m lightning_meta reproduce maml_a --hours 3"
    assert lines("requeued") == ["requeue 7_0"]
