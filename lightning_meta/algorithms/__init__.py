"""One file per algorithm: the paper and the deviations from it at the top, then two hooks for one task."""

from lightning_meta.algorithms.gradient.anil import ANIL
from lightning_meta.algorithms.gradient.boil import BOIL
from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.algorithms.gradient.meta_sgd import MetaSGD
from lightning_meta.algorithms.metric.protonet import ProtoNet

__all__ = ["ANIL", "BOIL", "MAML", "MetaSGD", "ProtoNet"]
