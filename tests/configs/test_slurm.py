"""The SLURM script, played by stand-ins for `srun` and `scontrol`: it stops in time, is queued again, and goes on."""

import os
import signal
import subprocess
import sys
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


@pytest.mark.slow
def test_the_script_queues_the_job_again_and_goes_on_exactly(tmp_path: Path) -> None:
    (programs := tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> requeued\n'}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def sbatch(job: int, *kill: int) -> int:
        config = write_config(tmp_path, "job", 2, *kill)
        environment = os.environ | {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
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
