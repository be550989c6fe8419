"""One file per algorithm: the paper and the deviations from it at the top, then two hooks for one task."""

from lightning_meta.algorithms.baselines.baseline import Baseline
from lightning_meta.algorithms.baselines.baseline_nearest_neighbour import BaselineNearestNeighbour
from lightning_meta.algorithms.baselines.baseline_plus_plus import BaselinePlusPlus
from lightning_meta.algorithms.compare.matching_net import FullContextMatchingNet, MatchingNet
from lightning_meta.algorithms.compare.metaoptnet import MetaOptNet
from lightning_meta.algorithms.compare.protonet import ProtoNet
from lightning_meta.algorithms.compare.r2d2 import R2D2
from lightning_meta.algorithms.compare.relation_net import RelationNet
from lightning_meta.algorithms.compare.siamese import Siamese
from lightning_meta.algorithms.initialize.anil import ANIL
from lightning_meta.algorithms.initialize.boil import BOIL
from lightning_meta.algorithms.initialize.imaml import IMAML
from lightning_meta.algorithms.initialize.kfo import KFO
from lightning_meta.algorithms.initialize.leo import LEO
from lightning_meta.algorithms.initialize.maml import MAML
from lightning_meta.algorithms.initialize.maml_plus_plus import MAMLPlusPlus
from lightning_meta.algorithms.initialize.meta_curvature import MetaCurvature
from lightning_meta.algorithms.initialize.meta_sgd import MetaSGD
from lightning_meta.algorithms.initialize.mr_maml import MRMAML
from lightning_meta.algorithms.initialize.mutual_exclusiveness import MutualExclusivenessMAML
from lightning_meta.algorithms.initialize.reptile import Reptile
from lightning_meta.algorithms.memory.hochreiter import LSTMLearner
from lightning_meta.algorithms.memory.mann import MANN
from lightning_meta.algorithms.memory.meta_net import MetaNet
from lightning_meta.algorithms.memory.snail import SNAIL
from lightning_meta.algorithms.optimizers.lstm_optimizer import LSTMOptimizer
from lightning_meta.algorithms.optimizers.meta_lstm import MetaLSTM
from lightning_meta.algorithms.processes.attentive_neural_process import AttentiveNeuralProcess
from lightning_meta.algorithms.processes.cnp import ConditionalNeuralProcess
from lightning_meta.algorithms.processes.cnp_classifier import CNPClassifier
from lightning_meta.algorithms.processes.neural_process import NeuralProcess

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
