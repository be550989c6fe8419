"""The Lightning seam: the only modules that know the Trainer."""

from lightning_meta.modules.architecture_search import ArchitectureModule, ChildrenModule, SelectionModule
from lightning_meta.modules.base import MetaModule
from lightning_meta.modules.batched import BatchedModule
from lightning_meta.modules.bilevel import BilevelModule
from lightning_meta.modules.carried import CarriedModule
from lightning_meta.modules.embedding import EmbeddingModule
from lightning_meta.modules.episodic import EpisodicModule
from lightning_meta.modules.fixed_way import FixedWayModule
from lightning_meta.modules.imitation import ImitationModule
from lightning_meta.modules.inner_loop import InnerLoopModule
from lightning_meta.modules.learned_rates import LearnedRates
from lightning_meta.modules.naming import NamingModule
from lightning_meta.modules.pretrained import PretrainedModule, TransductiveModule
from lightning_meta.modules.rollout import RolloutModule
from lightning_meta.modules.separation import SeparationModule
from lightning_meta.modules.stream import StreamModule
from lightning_meta.modules.stream_actor import StreamActorModule
from lightning_meta.modules.stream_classifier import StreamClassifierModule
from lightning_meta.modules.tabular import TabularModule
from lightning_meta.modules.taught import TaughtModule
from lightning_meta.modules.truncated import TruncatedModule

__all__ = [
    "ArchitectureModule",
    "BatchedModule",
    "BilevelModule",
    "CarriedModule",
    "ChildrenModule",
    "EmbeddingModule",
    "EpisodicModule",
    "FixedWayModule",
    "ImitationModule",
    "InnerLoopModule",
    "LearnedRates",
    "MetaModule",
    "NamingModule",
    "PretrainedModule",
    "RolloutModule",
    "SelectionModule",
    "SeparationModule",
    "StreamActorModule",
    "StreamClassifierModule",
    "StreamModule",
    "TabularModule",
    "TaughtModule",
    "TransductiveModule",
    "TruncatedModule",
]
