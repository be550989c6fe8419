"""`python -m lightning_meta fit|validate|test`: LightningCLI with the checks that experiments need."""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from inspect import signature
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn, cast

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ModelSummary, ProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

import lightning_meta.algorithms
import lightning_meta.backbones
import lightning_meta.datamodules  # noqa: F401 - imported for short names: `--model MAML`
from lightning_meta import checkpoints, notes
from lightning_meta.allocator import keep_freed_memory
from lightning_meta.callbacks import ReplayStep
from lightning_meta.cli.composition import Exchange, around_networks, class_name, compose, exchanges, in_order
from lightning_meta.cli.names import experiment_of, models_of, suggestion, with_paths
from lightning_meta.cli.resume import continues, reopen
from lightning_meta.cli.usage import PROGRAM, TRAINER, command_help, explain
from lightning_meta.datamodules.base import TaskDataModule
from lightning_meta.datamodules.rows import ReadsRows
from lightning_meta.errors import (
    HINT,
    ConfigError,
    in_one_line,
    reason,
    refused_in_construction,
    refuses_settings,
    require_at_least,
)
from lightning_meta.extras import check
from lightning_meta.loggers import RUN_ID, OfflineFirstWandbLogger, TrackioLogger
from lightning_meta.modules import EmbeddingModule, MetaModule
from lightning_meta.provenance import Provenance
from lightning_meta.run_folders import RUNS, trained_folder

log = logging.getLogger(__name__)
COMMANDS = tuple(TRAINER)  # `predict` is for the images of a user: lightning_meta/cli/predict.py
# Switches of the Trainer, and the callbacks that they turn off.
SWITCHES = {
    "enable_checkpointing": ModelCheckpoint,
    "enable_progress_bar": ProgressBar,
    "enable_model_summary": ModelSummary,
}
# Of loggers.
PACKAGES = {MLFlowLogger: "mlflow", TensorBoardLogger: "tensorboard", TrackioLogger: "trackio"}
# data.<key> -> model.<key> or model.backbone.<key>: set once, on the data.
PROCESSES_PER_CORE = 4  # at most; each holds the libraries and its data in memory
LINKED = ("n_way", "k_shot", "vocabulary", "length", "bands")


class ComposingParser(LightningArgumentParser):
    """Reads `--config` files with references and dotted keys (see `composition`), by path or by name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with one line in place of jsonargparse's many, and without the hundred lines of usage above it."""
        if not self.exit_on_error:
            super().error(message, ex)
        command = next((word for word in (self.prog.split()[-1], *sys.argv[1:2]) if word in COMMANDS), "")
        options = [option for action in self._actions for option in action.option_strings]
        sys.stderr.write(f"error: {explain(message, command and f'{command} ', options)}\n")
        sys.exit(2)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """What is asked for most first, and the Trainer's fifty options last."""
        command = self.prog.split()[-1]
        if command not in COMMANDS:
            return super().format_help(*args, **kwargs)
        trainer = [group for group in self._action_groups if any("trainer." in a.dest for a in group._group_actions)]
        self._action_groups = [group for group in self._action_groups if group not in trainer] + trainer
        _, _, options = super().format_help(*args, **kwargs).partition("\noptions:\n")
        return f"{command_help(command)}\noptions:\n{options}"

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Any:
        before, options = split_command(with_paths(sys.argv[1:] if args is None else args))
        return super().parse_args([*before, *in_order(around_networks(options))], *others, **kwargs)

    def parse_path(self, cfg_path: Any, **kwargs: Any) -> Namespace:
        return self.parse_string(yaml.safe_dump(compose(Path(str(cfg_path))), sort_keys=False), str(cfg_path), **kwargs)


class SaveConfig(SaveConfigCallback):
    """Save the resolved config in the run's folder; W&B receives it too; both with the git commit.

    Whoever uses the config of a training again begins anew, in a folder of its own. Checkpoints receive the id of the
    W&B run, for `fit --ckpt_path` to go on with it.

    Attributes:
        origin: of the weights that come out.
        begun_from: the checkpoint where a training goes on.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.origin = Provenance.of_this_process()
        self.begun_from: Path | None = None
        self.config = self.config.clone()
        if not self.config.trainer.logger and Path(str(self.config.trainer.default_root_dir)).parent == Path(
            RUNS, str(self.config.name)
        ):
            self.config.trainer.default_root_dir = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or not (trainer.loggers or trainer.checkpoint_callbacks):  # of a replay nothing is kept
            return
        path = Path(str(trainer.log_dir), self.config_filename)  # every rank must ask for the folder
        if trainer.strategy.broadcast(path.exists() and not self.overwrite):
            raise ConfigError(
                f"{path.parent} has a run in it already ({path.name} is there); give --trainer.default_root_dir "
                "another folder, or leave it out."
            )
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:
            begun = f"# begun from: {self.begun_from}\n" if self.begun_from else ""
            path.write_text(f"# git commit: {self.origin.git_commit}\n{begun}{path.read_text()}")

    def begin_from(self, checkpoint: Path, origin: Provenance) -> None:
        self.begun_from, self.origin = checkpoint, origin.continued(self.origin)
        self.config.ckpt_path = None

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        config["git_commit"] = self.origin.git_commit
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(config, allow_val_change=True)
            elif not isinstance(logger, CSVLogger):  # which has the file itself
                logger.log_hyperparams(config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, OfflineFirstWandbLogger):
                checkpoint[RUN_ID] = logger.version


class MetaCLI(LightningCLI):
    """Adds to LightningCLI: values linked without silent overrides, run names, and a test at the end of `fit`."""

    of_data: Any = None  # what a checkpoint has of its data module

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in COMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the experiment (default: of its config file)."
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="After fit, test the best checkpoint on the test episodes.",
        )
        parser.add_argument(
            "--replay",
            type=NonNegativeInt | None,
            default=None,
            help="Train up to this global step, print the loss of each of its episodes, and end; writes nothing.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        dropped = _DroppedArguments()
        for subparser in self._subcommand_parsers.values():
            subparser.logger = dropped.logger
        super().parse_arguments(parser, args)
        command = self.config["subcommand"]
        config = self.config[command]
        final = yaml.safe_load(self._parser(command).dump(config, skip_none=False))
        files = [Path(str(file)) for file in config.config or []]
        words = with_paths(sys.argv[1:] if args is None else args if isinstance(args, list) else [])
        made = exchanges(split_command(words)[1], files, final)
        for note in (*(note for exchange in made for note in exchange.notes), *dropped.but_of(made)):
            log.info(note)

    def _parse_ckpt_path(self) -> None:
        """Let the command line say what the model is.

        Lightning would replace explicit settings, such as `--model.eval_inner_steps 10`, by those in the checkpoint.
        """

    def _set_seed(self) -> None:
        self._check_seed()
        super()._set_seed()

    def _check_seed(self) -> None:
        seed = self.config[self.subcommand].seed_everything
        if seed is not None and not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything={seed} must be between 0 and {2**32 - 1}.")

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            refused = refused_in_construction(error)
            if refused is None:
                raise
            raise refused from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Without the callbacks that the Trainer's switches turn off, and with our words for what it refuses."""
        off = tuple(kind for switch, kind in SWITCHES.items() if config.get(switch) is False)
        given = config.get("callbacks") or []
        kept = [one for one in (given if isinstance(given, list) else [given]) if not isinstance(one, off)]
        try:
            trainer = super()._instantiate_trainer({**config, "callbacks": kept}, callbacks)
        except Exception as error:
            if not refuses_settings(error):
                raise
            raise trainer_refuses(config, reason(error)) from error
        most = PROCESSES_PER_CORE * (cores := os.cpu_count() or 1)
        if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
            raise ConfigError(
                f"trainer.devices={trainer.num_devices} would start as many processes on {cores} CPU cores; take at "
                f"most {most} (one per core is fastest)."
            )
        return trainer

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        strategy = str(config.trainer.strategy)
        if strategy.startswith(("fsdp", "deepspeed")):  # the module refuses them too, but few machines come so far
            raise ConfigError(
                f"trainer.strategy={strategy} shards parameters, which a functional inner loop cannot see whole; take "
                "ddp."
            )
        model, data = (resolve_name(config[part].class_path) for part in ("model", "data"))
        model.check_data(data)
        link_values(config)
        name_run(config)
        if config.get("ckpt_path"):
            borrows = self.subcommand != "fit" and issubclass(model, EmbeddingModule)
            config.ckpt_path = find_checkpoint(config, "last" if self.subcommand == "fit" else "best", borrows)
            if borrows:
                checkpoint = checkpoints.read(Path(config.ckpt_path))
                if other := model.another(checkpoint):
                    log.info("the backbone is that of %s, %s.", config.ckpt_path, other)
            else:
                checkpoint = checkpoints.read_of(Path(config.ckpt_path), config.model.class_path)
            if self.subcommand == "fit" and "optimizer_states" not in checkpoint:
                raise ConfigError(
                    f"checkpoint {config.ckpt_path} holds weights alone (save_weights_only), so that training cannot "
                    "go on from it; test it, or take another checkpoint."
                )
            self.start, self.origin = checkpoint["global_step"], Provenance.from_checkpoint(checkpoint)
            self.of_data = checkpoint.get(data.__qualname__)
            if self.origin.seed not in (None, config.seed_everything):
                if config.seed_everything:
                    log.info("the seed is that of the checkpoint's training, %s.", self.origin.seed)
                config.seed_everything = self.origin.seed
                self._set_seed()

    def before_test(self) -> None:
        """What a checkpoint has of the data is there before they are set up: it decides what an input is."""
        data: Any = self.datamodule
        if self.of_data is not None and isinstance(data, ReadsRows):
            data.restore(self.of_data)
            log.info("Scales, categories or vocabulary are those of the checkpoint.")
        self.after_test()

    def after_test(self) -> None:
        if not self.config[self.subcommand].ckpt_path and any(p.requires_grad for p in self.model.parameters()):
            print(
                f"warning: {self.subcommand} without --ckpt_path: the model has the weights that it starts with, none "
                "that were trained. For those of the experiment's newest run: --ckpt_path best",
                file=sys.stderr,
            )

    before_validate, after_validate = before_test, after_test

    def before_fit(self) -> None:
        """A resumed training goes on with its W&B run and in its folder; a replay writes nothing."""
        # Here it is said once, before other processes are started and a folder is made.
        self.datamodule.share_of(self.trainer.num_devices * self.trainer.num_nodes)
        self.datamodule.test_after_fit = self.config[self.subcommand].test_after_fit
        checkpoint, replay = (self.config[self.subcommand][key] for key in ("ckpt_path", "replay"))
        if checkpoint and replay is None:
            for callback in self._saving:
                callback.begin_from(Path(checkpoint), self.origin)
            self._go_on_in_folder(Path(checkpoint))
        if replay is not None:
            self.trainer.loggers = []
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks")
            callbacks = [c for c in self.trainer.callbacks if not isinstance(c, ModelCheckpoint)]  # type: ignore[attr-defined]
            self.trainer.callbacks = [*callbacks, ReplayStep(replay)]  # type: ignore[attr-defined]

    def _go_on_in_folder(self, checkpoint: Path) -> None:
        config = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False))
        for logger in self.trainer.loggers:
            if isinstance(logger, CSVLogger) and continues(checkpoint, logger, config):
                logger._version = cast(Path, checkpoints.run_of(checkpoint)).name
                reopen(logger, self.start)
                for wandb in self.trainer.loggers:
                    if isinstance(wandb, OfflineFirstWandbLogger):
                        wandb.continue_run_of(checkpoint)
                for callback in self._saving:
                    callback.overwrite, callback.begun_from = True, None

    @property
    def _saving(self) -> list[SaveConfig]:
        """One, or none in a dry run."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, SaveConfig)]  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        if self.config[self.subcommand].test_after_fit and not self.trainer.interrupted:
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line up to `fit`, and the options after it."""
    start = next((place + 1 for place, word in enumerate(words) if word in COMMANDS), len(words))
    return [*words[:start]], [*words[start:]]


def link_values(config: Namespace) -> None:
    """Fill model arguments that the data decide. A different explicit value is an error, never overridden silently."""
    data, model = config.data.init_args, config.model.init_args
    require_at_least(1, **{f"data.{key}": data[key] for key in LINKED if key in data})
    backbone = model.get("backbone.init_args") or Namespace()
    for place, arguments in {"model": model, "model.backbone": backbone}.items():
        for key in LINKED:
            if key not in arguments or key not in data:
                continue
            if arguments[key] not in (None, data[key]):
                raise ConfigError(
                    f"{place}.{key}={arguments[key]}, but data.{key}={data[key]}; set data.{key} alone, the model "
                    "follows it."
                )
            arguments[key] = data[key]


def trainer_refuses(config: dict[str, Any], message: str) -> ConfigError:
    """What the Trainer says of its settings, with the names of those that it may mean: all that it speaks of."""
    defaults = {name: parameter.default for name, parameter in signature(Trainer).parameters.items()}
    spoken = set(re.findall(r"\w+", message))
    meant = {
        name: value
        for name, value in config.items()
        if isinstance(value, int | float | str) and value != defaults.get(name) and (name in spoken or value in spoken)
    }
    named = ", ".join(f"trainer.{name}={value}" for name, value in meant.items())
    here = torch.accelerator.current_accelerator(check_available=True)
    remedy = f" This machine has: {here.type + ', ' if here else ''}cpu." if "accelerator" in meant else ""
    return ConfigError(f"the Trainer refuses {named or 'its settings'}: {message}{remedy} {HINT}")


def name_run(config: Namespace) -> None:
    """Give loggers without a name the experiment's; W&B also group and tags. Without loggers, a folder all the same.

    An experiment whose algorithm or data have been exchanged is another one, and gets the name that it would have:
    `protonet_glyphs_5w1s`. W&B's group is algorithm, data, way and shot, `MAML-Omniglot-5w1s`, whose runs differ in
    their seeds.
    """
    data, model = (config[part].class_path.rsplit(".", 1)[-1] for part in ("data", "model"))
    shape = config.data.init_args
    sizes, tags = [], [data.lower()]
    if shape.get("variable"):
        sizes, tags = ["variable"], [*tags, "variable"]
    elif "n_way" in shape:
        sizes = [f"{shape.n_way}w{shape.k_shot}s" if shape.n_way > 1 else f"{shape.k_shot}s"]
        tags += [f"{shape.n_way}-way", f"{shape.k_shot}-shot"]
    file = Path(str(config.config[-1])) if config.config else None
    experiment = compose(file) if file else {}
    renamed = "name" in experiment  # where the file is the config of a run, which has names already
    if config.name in (None, experiment.get("name")):  # not by the command
        exchanged = any(
            part in experiment and class_name(experiment[part]) != name
            for part, name in (("data", data), ("model", model))
        )
        named_so = config.name or (file.stem if file else "run")
        algorithm = file_name(resolve_name(config.model.class_path))
        config.name = "_".join([algorithm, data.lower(), *sizes]) if exchanged else named_so
        renamed = renamed and exchanged
    algorithm = f"FO{model}" if config.model.init_args.get("first_order") else model
    experiment_name, group = experiment_of(config.name), "-".join([algorithm, data, *sizes])
    with_seed = f"{experiment_name}-seed{config.seed_everything}"
    names: dict[type, dict[str, Any]] = {  # of others: the folder; their tags are of other types
        WandbLogger: {"name": experiment_name, "group": group, "tags": tags},  # which adds the seed
        TrackioLogger: {"name": with_seed, "group": group},
        MLFlowLogger: {"experiment_name": group, "run_name": with_seed},
    }
    loggers = config.trainer.logger
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Namespace) and "init_args" in logger:
            cls = resolve_name(logger.class_path)
            if package := next((package for kind, package in PACKAGES.items() if issubclass(cls, kind)), None):
                check(package, cls.__name__)
            given = next((given for kind, given in names.items() if issubclass(cls, kind)), {"name": config.name})
            for key, value in given.items():
                if key in logger.init_args and (renamed or not logger.init_args[key]):
                    logger.init_args[key] = value
    if not loggers and config.trainer.default_root_dir is None:
        folders = (Path(RUNS, config.name, f"version_{number}") for number in count())
        config.trainer.default_root_dir = str(next(folder for folder in folders if not folder.exists()))


def find_checkpoint(config: Namespace, of_run: str, borrows: bool) -> str:
    """The file that `--ckpt_path` means: a file, `best` or `last`, or a run by folder or name, whose `of_run` it is.

    A run that is named may be another algorithm's if the model `borrows` backbones.
    """
    given, model = str(config.ckpt_path), config.model.class_path
    if given in checkpoints.KEYWORDS:
        folder = folder_of_runs(config)
        if folder is None:
            raise ConfigError(
                f"--ckpt_path {given} is looked for in the CSV logger's folder; without one, name a file."
            )
        return str(checkpoints.find(given, folder, model))
    folder = trained_folder(given)
    if folder is not None:
        return str(checkpoints.find(of_run, folder, model, borrows))
    if not Path(given).is_file():
        runs = [path.name for path in RUNS.glob("*") if path.is_dir()]
        near = suggestion(given, [*checkpoints.KEYWORDS, *runs])
        raise ConfigError(
            f"checkpoint {given} does not exist. Give a file, best, last, or a run by its folder or name.{near}"
        )
    return given


def folder_of_runs(config: Namespace) -> Path | None:
    """Of the experiment: the CSV logger's, or where a run without loggers goes."""
    if not config.trainer.logger:
        return Path(config.trainer.default_root_dir).parent
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
    named = [item.init_args for item in loggers if isinstance(item, Namespace) and "CSVLogger" in item.class_path]
    return Path(named[0].save_dir, named[0].name) if named else None


def file_name(cls: type) -> str:
    """What experiments of an algorithm are called: as its file, `maml_plus_plus`, unless that has several classes.

    Or as its config in `configs/model/`, where only that says what is meant: `covariance_net`, of `CovaMNet`.
    """
    file = cls.__module__.rsplit(".", 1)[-1]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    name, called = file if file.replace("_", "") == words.replace("_", "") else words, models_of(cls)
    return called[0] if len(called) == 1 else name


class _DroppedArguments(logging.Handler):
    """Tells which settings do not exist for a newly chosen class; jsonargparse drops them at debug level only."""

    MARK = "discarding init_args: "

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []
        self.logger = logging.getLogger("lightning_meta.cli.jsonargparse")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False  # every debug message passes here
        self.logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self.MARK in message and message not in self.messages:
            self.messages.append(message)

    def but_of(self, made: list[Exchange]) -> list[str]:
        """What they do not tell themselves: of the collaborators of a data module or a model."""
        told = tuple(f"{exchange.former}' to " for exchange in made)
        return [message for message in self.messages if not any(name in message for name in told)]


def main(args: ArgsType = None) -> Any:
    """Run the command line. Errors a user can mend end it with one message and exit status 1."""
    notes.set_up()
    keep_freed_memory()
    return in_one_line(lambda: _run(args))


class _Resolved(MetaCLI):
    """Reads a command, checks it and fills in what follows from it, but makes and runs nothing."""

    def _set_seed(self) -> None:
        self._check_seed()

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def resolve(words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a command `fit ...` as the `config.yaml` of its run will have it, plain values."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # beside those of the process
        cli = _run([*words], _Resolved)
    return yaml.safe_load(cli._parser(words[0]).dump(cli.config[words[0]], skip_none=False))


def _run(args: ArgsType, kind: type[MetaCLI] = MetaCLI) -> MetaCLI:
    try:
        return kind(
            MetaModule,
            TaskDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=ComposingParser,
            parser_kwargs={"prog": PROGRAM, "allow_abbrev": False},  # half an option is a typo
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            trainer_defaults={"inference_mode": False, "use_distributed_sampler": False},
            args=args,
        )
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # which Lightning makes a 1
            sys.exit(128 + signal.SIGINT)
        raise
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        _, first, *others = map(str.strip, str(error).splitlines())
        raise ConfigError(
            f"the checkpoint was made with other model settings: {first} (and {len(others)} more)"
        ) from error
