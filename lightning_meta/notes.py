"""What the command line says on the way: notes of ours, each once and by one process, and fewer of others'.

Modules log theirs to `logging.getLogger(__name__)`. Results go to standard output, notes to standard error.
"""

import logging
import sys
import warnings

from pytorch_lightning.utilities import rank_zero_only

# Beginnings of messages of Lightning that are not for the user of this project.
DROPPED = {
    "pytorch_lightning.utilities.rank_zero": (
        "💡 Tip", "TPU available: False", "Trainer already configured with model summary callbacks",
    ),
    "pytorch_lightning.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
}  # fmt: skip
CLEAR = "\r\x1b[K"  # on a terminal: the line of the progress


class Notes(logging.Handler):
    """Prints records of the first process, `note: ...` or `warning: ...`, each text once in a command."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{'note' if record.levelno < logging.WARNING else record.levelname.lower()}: {record.getMessage()}"
        if getattr(rank_zero_only, "rank", 0) == 0 and text not in self.said:
            self.said.add(text)
            print(f"{CLEAR if sys.stderr.isatty() else ''}{text}", file=sys.stderr, flush=True)


class Others(logging.Filter):
    """Drops messages of Lightning, and makes room for its others where the progress stands on a terminal."""

    def __init__(self, dropped: tuple[str, ...]) -> None:
        super().__init__()
        self.dropped = dropped

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(self.dropped):
            return False
        if sys.stderr.isatty():
            sys.stderr.write(CLEAR)
        return True


def set_up() -> None:
    """Begin a command: nothing has been said yet."""
    logger = logging.getLogger("lightning_meta")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, Notes)] + [Notes()]
    for name, beginnings in DROPPED.items():
        others = logging.getLogger(name)
        others.filters = [one for one in others.filters if not isinstance(one, Others)] + [Others(beginnings)]
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # inside Lightning, under torch 2.15
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # our epoch metrics are summed over ranks already
