"""The option `--seeds 0,1,2` of `fit`: what it says is checked at once; `group` trains, for which it imports torch."""

import os
from collections.abc import Sequence
from importlib import import_module

from lightning_meta.cli.composition import Option, options_of
from lightning_meta.errors import UsageError

OPTION = "--seeds"
# Options of `fit` that are each seed's own.
OWN = ("seed_everything", "ckpt_path", "replay")


def main(words: Sequence[str]) -> None:
    numbers, rest = split(words)
    import_module("lightning_meta.cli.group").run(numbers, rest)


def split(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds, and the command without them."""
    if "LOCAL_RANK" in os.environ:
        raise UsageError(
            f"{OPTION} starts processes itself, and torchrun has started several of it; give it to python, and the "
            "number of devices to the Trainer: --trainer.devices N --trainer.strategy ddp."
        )
    asked: list[Option] = []
    rest: list[Option] = []
    for option in options_of(words):
        (asked if option.words[0].startswith(OPTION) and option.key == OPTION[2:] else rest).append(option)
    if own := [option for option in rest if option.key in OWN]:
        raise UsageError(f"--{own[0].key} is each seed's own; leave it out where {OPTION} is given.")
    return numbers_of(asked[-1].value), [word for option in rest for word in option.words]


def numbers_of(value: str) -> list[int]:
    """Seeds as they are given, `0,1,2`. Raises `UsageError`."""
    given = value.split(",")
    numbers = [int(number) for number in given if number.isdecimal() and int(number) < 2**32]
    if len(set(numbers)) < len(given):
        raise UsageError(
            f"{OPTION} {value}: give different whole numbers from 0 to {2**32 - 1} with commas between: {OPTION} 0,1,2"
        )
    return numbers
