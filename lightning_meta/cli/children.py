"""A command in a process of its own, to which signals are handed on."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import IO, NamedTuple

from lightning_meta.signals import CHILD, STOP_SIGNALS

# Statuses of a process that was asked to stop: of one that saved, and of one that was not training then.
STOPPED = {status for number in STOP_SIGNALS for status in (128 + number, -number)}
Process = subprocess.Popen[bytes]


class Ended(NamedTuple):
    """How a process ended: its exit status, and the signal that this one has received meanwhile, 0 for none."""

    status: int
    signal: int


def run(
    words: Sequence[str],
    keep_open: Sequence[int] = (),
    watch: Callable[[Process], None] | None = None,
    log: IO[bytes] | None = None,
) -> Ended:
    """Run a command to its end.

    A signal that asks this process to stop goes to the other one, which saves and ends.

    Args:
        words: of the command.
        keep_open: files that it inherits, such as that of a lock.
        watch: called every half second with the process.
        log: where its output goes. None: where that of this process does.
    """
    received: list[int] = []
    # A session of its own, so that Ctrl-C reaches this process alone and comes to it once.
    process = subprocess.Popen(
        [*words], pass_fds=keep_open, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        env=os.environ | {CHILD: "1"},
    )  # fmt: skip

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
    former = {number: signal.signal(number, hand_on) for number in heeded}
    try:
        due = time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            if watch and time.monotonic() >= due:
                watch(process)
                due = time.monotonic() + 0.5
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return Ended(process.returncode, received[-1] if received else 0)
