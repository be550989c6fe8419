"""The trials of a sweep in Optuna's storage, shared by any number of processes."""

import json
import platform
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_meta.errors import ConfigError
from lightning_meta.extras import need
from lightning_meta.reproduce.runs import lock
from lightning_meta.sweep.file import Parameter, Scalar, Sweep

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

MACHINE = "machine"  # an attribute of trials: who runs it
SPACE, IDENTITY = "sweep", "id"  # attributes of studies: what is swept, and which one it is
OWNER = "study.txt"  # in the folder of a sweep: the identity of the study whose trials are there, and its storage


class Search:
    """The trials of a sweep in their storage, shared by any number of processes.

    Args:
        sweep: what is tried.
        storage: file of the trials.
        limit: how many there are to be in all.
    """

    def __init__(self, sweep: Sweep, storage: Path, limit: int) -> None:
        self.optuna = need("optuna", "sweep")
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

        self.sweep, self.limit = sweep, limit
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self._mutex = JournalFileSymlinkLock(f"{storage}.claim")
        try:
            if storage.exists() and not is_journal(storage):
                raise ConfigError(
                    f"--storage {storage} is another file than a journal of trials, and is left as it is; give a name "
                    "that no file has yet."
                )
            storage.parent.mkdir(parents=True, exist_ok=True)
            self.study: Study = self.optuna.create_study(
                study_name=sweep.name,
                storage=JournalStorage(JournalFileBackend(str(storage))),
                direction="maximize" if sweep.maximize else "minimize",
                pruner=pruner(sweep),
                load_if_exists=True,
            )
        except OSError as error:
            raise ConfigError(
                f"--storage {storage}: {error.strerror}; give a file, in a folder that can be written to."
            ) from error
        with self._alone():
            self._take_folder(storage)

    def _take_folder(self, storage: Path) -> None:
        """Make the sweep's folder this study's. Raises `ConfigError` where the trials in it, or the study, are others.

        For a trial goes on from what is in its folder, and its score is read there.
        """
        folder, known = self.sweep.folder, self.study.user_attrs
        if known.get(SPACE, self.sweep.space) != self.sweep.space:
            raise ConfigError(
                f"{storage} has the trials of another sweep of this name: its parameters, metric or command were "
                f"others. Give {self.sweep.name}.yaml another name."
            )
        identity, owner = known.get(IDENTITY, uuid.uuid4().hex), folder / OWNER
        self.study.set_user_attr(IDENTITY, identity)
        folder.mkdir(parents=True, exist_ok=True)
        if self.trials or not any(folder.glob("trial_*")):
            with suppress(FileExistsError), owner.open("x") as file:
                file.write(f"{identity}\n{storage}\n")
        theirs, _, former = (owner.read_text() if owner.exists() else "").strip().partition("\n")
        if theirs != identity:
            of = f" (of {former})" if former else ""
            raise ConfigError(
                f"{folder} has trials{of} that are not those of {storage}. Give their --storage, move {folder} away, "
                f"or give {self.sweep.name}.yaml another name."
            )
        self.study.set_user_attr(SPACE, self.sweep.space)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process of this storage is here."""
        self._mutex.acquire()
        try:
            yield
        finally:
            self._mutex.release()

    @property
    def trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def states(self, *names: str) -> "list[FrozenTrial]":
        return [trial for trial in self.trials if trial.state.name in names]

    @contextmanager
    def claim(self) -> "Iterator[tuple[Trial, dict[str, Scalar], int] | None]":
        """A trial to run, its values and the file of its lock: one that was left in the middle, or a new one; or None.

        No other process gets it meanwhile.
        """
        with ExitStack() as held:
            with self._alone():
                trial, file = self._left_by_a_process_of_this_machine(held)
                trial, file = (trial, file) if trial else self._new(held)
                values = {name: one.suggest(trial, name) for name, one in self._parameters.items()} if trial else {}
            yield (trial, values, file) if trial else None

    @property
    def _parameters(self) -> dict[str, Parameter]:
        if self.sweep.method != "grid":
            return dict(self.sweep.parameters)
        return {name: Parameter(one.listed(name)) for name, one in self.sweep.parameters.items()}

    def _left_by_a_process_of_this_machine(self, held: ExitStack) -> "tuple[Trial | None, int]":
        for trial in self.states("RUNNING"):
            if trial.user_attrs.get(MACHINE) == platform.node():
                file = held.enter_context(lock(self.folder(trial.number)))
                if file is not None:
                    return self.optuna.trial.Trial(self.study, trial._trial_id), file.fileno()
        return None, -1

    def _new(self, held: ExitStack) -> "tuple[Trial | None, int]":
        number = len(self.trials)
        if number >= self.limit:
            return None, -1
        self.study.sampler = sampler(self.sweep, number)
        trial = self.study.ask()
        trial.set_user_attr(MACHINE, platform.node())
        file = held.enter_context(lock(self.folder(trial.number)))
        assert file is not None, "the number is new"
        return trial, file.fileno()

    def folder(self, number: int) -> Path:
        return self.sweep.folder / f"trial_{number}"


def is_journal(storage: Path) -> bool:
    """Whether a file is one of Optuna's, or empty. Others it would append to."""
    with storage.open("rb") as file:
        first = file.readline()
    try:
        return not first or "op_code" in dict(json.loads(first))
    except (TypeError, ValueError):
        return False


def sampler(sweep: Sweep, number: int) -> "BaseSampler":
    """Of one trial: what it draws depends on its number, so that processes beside each other draw different values."""
    from optuna import samplers

    class Grid(samplers.GridSampler):
        def after_trial(self, *_: Any) -> None:
            """Optuna's stops `Study.optimize` at the end of the grid, and fails where that is not what runs."""

    if sweep.method == "grid":  # the order of the grid is the same for all; Optuna gives trial n the n-th of it
        return Grid({name: [*one.listed(name)] for name, one in sweep.swept.items()}, seed=0)
    return samplers.RandomSampler(seed=number) if sweep.method == "random" else samplers.TPESampler(seed=number)


def pruner(sweep: Sweep) -> Any:
    """W&B's hyperband stops a run at the iterations m, m eta, m eta^2, ... unless it is among the best 1 / eta there.

    That is asynchronous successive halving. Iterations are validations, from 1 on.
    """
    from optuna import pruners

    early = sweep.early_terminate
    if not early:
        return pruners.NopPruner()
    eta = early.get("eta", 3)
    least = early.get("min_iter") or max(1, int(early["max_iter"] / eta ** early["s"]))
    return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=eta)
