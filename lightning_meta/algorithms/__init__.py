"""One file per algorithm: the paper and the deviations from it at the top, then two hooks for one task."""

from lightning_meta.algorithms.gradient.anil import ANIL
from lightning_meta.algorithms.gradient.baseline import Baseline
from lightning_meta.algorithms.gradient.baseline_nearest_neighbour import BaselineNearestNeighbour
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
from lightning_meta.algorithms.memory.attentive_neural_process import AttentiveNeuralProcess
from lightning_meta.algorithms.memory.cnp import ConditionalNeuralProcess
from lightning_meta.algorithms.memory.cnp_classifier import CNPClassifier
from lightning_meta.algorithms.memory.hochreiter import LSTMLearner
from lightning_meta.algorithms.memory.mann import MANN
from lightning_meta.algorithms.memory.meta_net import MetaNet
from lightning_meta.algorithms.memory.neural_process import NeuralProcess
from lightning_meta.algorithms.memory.snail import SNAIL
from lightning_meta.algorithms.metric.matching_net import FullContextMatchingNet, MatchingNet
from lightning_meta.algorithms.metric.metaoptnet import MetaOptNet
from lightning_meta.algorithms.metric.protonet import ProtoNet
from lightning_meta.algorithms.metric.r2d2 import R2D2
from lightning_meta.algorithms.metric.relation_net import RelationNet
from lightning_meta.algorithms.metric.siamese import Siamese
from lightning_meta.algorithms.optimizer.lstm_optimizer import LSTMOptimizer
from lightning_meta.algorithms.optimizer.meta_lstm import MetaLSTM

__all__ = [
    "ANIL",
    "BOIL",
    "IMAML",
    "KFO",
    "LEO",
    "MAML",
    "MANN",
    "MRMAML",
    "R2D2",
    "SNAIL",
    "AttentiveNeuralProcess",
    "Baseline",
    "BaselineNearestNeighbour",
    "BaselinePlusPlus",
    "CNPClassifier",
    "ConditionalNeuralProcess",
    "FullContextMatchingNet",
    "LSTMLearner",
    "LSTMOptimizer",
    "MAMLPlusPlus",
    "MatchingNet",
    "MetaCurvature",
    "MetaLSTM",
    "MetaNet",
    "MetaOptNet",
    "MetaSGD",
    "MutualExclusivenessMAML",
    "NeuralProcess",
    "ProtoNet",
    "RelationNet",
    "Reptile",
    "Siamese",
]
