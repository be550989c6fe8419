"""One file per algorithm: the paper and the deviations from it at the top, then two hooks for one task."""

from lightning_meta.algorithms.gradient.anil import ANIL
from lightning_meta.algorithms.gradient.baseline import Baseline
from lightning_meta.algorithms.gradient.baseline_plus_plus import BaselinePlusPlus
from lightning_meta.algorithms.gradient.boil import BOIL
from lightning_meta.algorithms.gradient.imaml import IMAML
from lightning_meta.algorithms.gradient.kfo import KFO
from lightning_meta.algorithms.gradient.leo import LEO
from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.algorithms.gradient.maml_plus_plus import MAMLPlusPlus
from lightning_meta.algorithms.gradient.meta_curvature import MetaCurvature
from lightning_meta.algorithms.gradient.meta_sgd import MetaSGD
from lightning_meta.algorithms.gradient.mr_maml import MRMAML
from lightning_meta.algorithms.gradient.mutual_exclusiveness import MutualExclusivenessMAML
from lightning_meta.algorithms.gradient.reptile import Reptile
from lightning_meta.algorithms.metric.protonet import ProtoNet

__all__ = [
    "ANIL",
    "BOIL",
    "IMAML",
    "KFO",
    "LEO",
    "MAML",
    "MRMAML",
    "Baseline",
    "BaselinePlusPlus",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "MutualExclusivenessMAML",
    "ProtoNet",
    "Reptile",
]
