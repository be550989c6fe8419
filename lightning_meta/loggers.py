"""Weights & Biases without surprises: offline by itself where it could not upload, never a prompt, never a hang.

And a folder for each run, also for runs that start together.
"""

import os
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from ssl import SSLError
from typing import Any, Literal
from urllib.parse import urlparse

import torch
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from lightning_meta.extras import need

CONNECT_TIMEOUT, ANSWER_TIMEOUT = 3.0, 10.0  # seconds; wandb itself would try for minutes
RUN_ID = "wandb_run_id"  # in checkpoints: the run that they were saved in


class OwnFolderCSVLogger(CSVLogger):
    """`CSVLogger` that takes its folder `version_<n>` when it chooses it.

    Lightning's makes it later, so that two runs of an experiment that start at once choose the same.
    """

    def _get_next_version(self) -> int:
        version = super()._get_next_version()
        if getattr(rank_zero_only, "rank", 0) != 0:
            return version
        try:
            Path(self.root_dir, f"version_{version}").mkdir(parents=True)
        except FileExistsError:
            return self._get_next_version()
        return version


class OfflineFirstWandbLogger(WandbLogger):
    """`WandbLogger` that decides by itself whether to upload.

    Online when the server answers, and `WANDB_API_KEY` is set or `WANDB_MODE` is `online`; otherwise the run is written
    to `save_dir/wandb/` and can be uploaded later by `wandb sync`. Artifacts and the
    images of tables wait in `save_dir/wandb/artifacts/`; W&B would put them in the home folder (`WANDB_DATA_DIR`).

    Args:
        name: of the run; `-seed<n>` is added where the training has a seed. On the command line: the experiment's.
        save_dir: where the folder `wandb/` is made.
        project: on the server; `WANDB_PROJECT` overrules the default.
        group: runs that belong together. On the command line: algorithm, data, way and shot, so that a group's runs
            differ in their seeds.
        tags: On the command line: data, way and shot.
        log_model: keep checkpoints as artifacts: the best and the last one at the end of training (true), or each when
            it is saved (`all`).
        resume: what to do when a run of this id is there already, see `wandb.init`.
        **kwargs: of `WandbLogger`, such as `id`.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = "runs",
        project: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        log_model: Literal["all"] | bool = False,
        resume: str = "allow",
        **kwargs: Any,
    ) -> None:
        project = project or os.environ.get("WANDB_PROJECT", "lightning_meta")
        offline = _must_be_offline()
        os.environ.setdefault("WANDB_DATA_DIR", str(Path(save_dir, "wandb").absolute()))
        seed = os.environ.get("PL_GLOBAL_SEED")
        super().__init__(
            name=f"{name}-seed{seed}" if name and seed else name,
            save_dir=save_dir,
            project=project,
            offline=offline,
            group=group,
            tags=list(tags) if tags is not None else None,
            log_model=log_model and not offline,
            resume=resume,
            **kwargs,
        )
        self._log_model = log_model  # Lightning refuses it offline, where W&B can do it

    def continue_run_of(self, checkpoint: Path) -> None:
        """Log to the run that `checkpoint` was saved in. An id that was given, also by `WANDB_RUN_ID`, goes first.

        Offline this makes a second folder with the same id: give both to `wandb sync`.
        """
        if self.version is None and "WANDB_RUN_ID" not in os.environ:
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            self._id = self._wandb_init["id"] = saved.get(RUN_ID)


class TrackioLogger(Logger):
    """Metrics and settings in Trackio: a dashboard in the browser, on this machine, without an account.

    `TRACKIO_DIR=runs/trackio trackio show` opens it. Runs are named as in W&B, and grouped by algorithm and data.

    Args:
        name: of the run. On the command line: the experiment's, and the training seed.
        save_dir: where the folder `trackio/` is made (`TRACKIO_DIR`).
        project: to which the runs belong.
        group: runs that belong together. On the command line: as in W&B.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = "runs",
        project: str = "lightning_meta",
        group: str | None = None,
    ) -> None:
        super().__init__()
        os.environ.setdefault("TRACKIO_DIR", str(Path(save_dir, "trackio").absolute()))
        self.trackio = need("trackio", "TrackioLogger")
        self._name, self._project, self._group = name, project, group
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def version(self) -> None:
        return None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._run is None:
            self._run = self.trackio.init(
                project=self._project, name=self._name, group=self._group, config=self._config, resume="allow",
                embed=False,
            )  # fmt: skip
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings of the run; they come before its first metrics."""
        self._config |= dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def _must_be_offline() -> bool:
    mode = os.environ.get("WANDB_MODE")
    if mode not in (None, "", "online") or not (mode or os.environ.get("WANDB_API_KEY")):
        return mode != "disabled"
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    connection = (HTTPConnection if url.scheme == "http" else HTTPSConnection)(
        str(url.hostname), url.port, timeout=CONNECT_TIMEOUT
    )
    try:
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT)
        connection.request("HEAD", url.path or "/")
        connection.getresponse()
    except SSLError:
        pass  # an answer too: wandb may know a certificate that Python does not
    except (OSError, HTTPException) as error:
        rank_zero_info(f"W&B: {url.hostname} does not answer ({error}); this run is written offline.")
        return True
    finally:
        connection.close()
    return False
