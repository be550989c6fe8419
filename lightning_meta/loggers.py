"""Weights & Biases without surprises: offline by itself where it could not upload, never a prompt, never a hang."""

import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info

CONNECT_TIMEOUT = 3.0  # seconds; wandb itself would try for 40 s


class OfflineFirstWandbLogger(WandbLogger):
    """`WandbLogger` that decides by itself whether to upload.

    Online when `WANDB_API_KEY` is set and the server answers; otherwise the run is written to `save_dir/wandb/` and
    can be uploaded later by `wandb sync`. `WANDB_MODE` (online, offline, disabled) overrules this.

    Args:
        name: of the run. On the command line: the experiment's.
        save_dir: where the folder `wandb/` is made.
        project: on the server; `WANDB_PROJECT` overrules the default.
        group: runs that belong together. On the command line: the algorithm.
        tags: On the command line: data, way and shot.
        **kwargs: of `WandbLogger`, such as `id` and `resume` to continue a run, or `log_model` to upload checkpoints.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = "runs",
        project: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        project = project or os.environ.get("WANDB_PROJECT", "lightning_meta")
        offline = _must_be_offline()
        if offline and kwargs.get("log_model"):
            rank_zero_info("W&B is offline: checkpoints stay in the run's folder (log_model is ignored).")
            kwargs["log_model"] = False
        super().__init__(
            name=name,
            save_dir=save_dir,
            project=project,
            offline=offline,
            group=group,
            tags=list(tags) if tags is not None else None,
            **kwargs,
        )


def _must_be_offline() -> bool:
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode in ("offline", "dryrun")
    if not os.environ.get("WANDB_API_KEY"):
        return True
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        with socket.create_connection(
            (url.hostname, url.port or (80 if url.scheme == "http" else 443)), timeout=CONNECT_TIMEOUT
        ):
            return False
    except OSError as error:
        rank_zero_info(f"W&B: {url.hostname} does not answer ({error}); this run is written offline.")
        return True
