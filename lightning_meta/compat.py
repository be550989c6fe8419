"""Private names of torch, Lightning and torchmetrics that are used here, and nowhere else without a line here.

`tests/test_compat.py` fails when one of them goes or changes its form.
"""

from jsonargparse._parameter_resolvers import get_signature_parameters
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNormBase
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_structure, tree_unflatten

__all__ = [
    "BatchNormBase",
    "InstanceNormBase",
    "NormBase",
    "TransformType",
    "get_interpreter_stack",
    "get_signature_parameters",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_structure",
    "tree_unflatten",
]

# Methods that a class here overrides or calls: who has them, and with which arguments.
METHODS = {
    "pytorch_lightning.cli.LightningCLI": {
        # Overridden, so that a checkpoint's hyper-parameters do not silently win over the command.
        "_parse_ckpt_path": "(self)",
        "_set_seed": "(self)",
        "_instantiate_trainer": "(self, config, callbacks)",
        "_run_subcommand": "(self, subcommand)",
    },
    "pytorch_lightning.callbacks.ModelCheckpoint": {
        "_save_checkpoint": "(self, trainer, filepath)",
        "_update_best_and_save": "(self, current, trainer, monitor_candidates)",
        "_should_skip_saving_checkpoint": "(self, trainer)",
    },
    "pytorch_lightning.loggers.CSVLogger": {"_get_next_version": "(self)"},
    "torchmetrics.Metric": {"_apply": "(self, fn, exclude_state='')"},
}
# Attributes of objects that the Trainer holds, by the path to them.
ATTRIBUTES = (
    "fit_loop.epoch_loop._batches_that_stepped",  # set after a resume: Lightning counts one too many
    "strategy._layer_sync",  # says whether the Trainer was asked for sync_batchnorm
    "_logger_connector",
)
