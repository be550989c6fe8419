"""One file per algorithm: the paper and the deviations from it at the top, then two hooks for one task."""

from lightning_meta.algorithms.gradient.anil import ANIL
from lightning_meta.algorithms.gradient.boil import BOIL
from lightning_meta.algorithms.gradient.kfo import KFO
from lightning_meta.algorithms.gradient.leo import LEO
from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.algorithms.gradient.maml_plus_plus import MAMLPlusPlus
from lightning_meta.algorithms.gradient.meta_curvature import MetaCurvature
from lightning_meta.algorithms.gradient.meta_sgd import MetaSGD
from lightning_meta.algorithms.metric.protonet import ProtoNet

__all__ = ["ANIL", "BOIL", "KFO", "LEO", "MAML", "MAMLPlusPlus", "MetaCurvature", "MetaSGD", "ProtoNet"]
