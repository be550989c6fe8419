"""Signals that ask a training to stop. It saves and ends; its helper processes leave that to it."""

import signal

# Ctrl-C; what schedulers send before they kill (SIGTERM most, SIGUSR1 SLURM when asked to); a terminal that goes away.
# Windows has not all of them.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]

# In the environment of a process that another command of ours has started, and starts again to go on with it.
CHILD = "LIGHTNING_META_CHILD"


def leave_signals_to_the_main_process(worker: int) -> None:
    """For the workers of a `DataLoader`: one that ends before the step in progress ends the training without saving.

    Terminals and schedulers send signals to all processes of a group. Workers end when the main process does.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
