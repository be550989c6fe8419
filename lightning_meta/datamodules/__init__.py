"""Episodic data: every data set is a source of tasks on one base."""

from lightning_meta.datamodules.arrivals import Arrivals
from lightning_meta.datamodules.audio.audio_classes import AudioClasses, AudioFiles
from lightning_meta.datamodules.audio.audio_folder import AudioFolder
from lightning_meta.datamodules.audio.babble import Babble
from lightning_meta.datamodules.audio.speech import SpeechDataModule
from lightning_meta.datamodules.audio.spoken_digits import SpokenDigits
from lightning_meta.datamodules.audio.spoken_strings import SpokenStrings
from lightning_meta.datamodules.audio.timbres import Timbres
from lightning_meta.datamodules.audio.voice_mixtures import VoiceMixtures
from lightning_meta.datamodules.base import EpisodicDataModule, TaskDataModule
from lightning_meta.datamodules.bilevel.held_out_domains import HeldOutDomains
from lightning_meta.datamodules.bilevel.held_out_images import HeldOutImages
from lightning_meta.datamodules.bilevel.trials import BilevelDataModule, Trial
from lightning_meta.datamodules.bilevel.two_moons import TwoMoons
from lightning_meta.datamodules.class_split import ClassSplit
from lightning_meta.datamodules.classification import ClassificationDataModule
from lightning_meta.datamodules.functions.circles import Circles
from lightning_meta.datamodules.functions.gaussian_process import GaussianProcess, RBFProcess
from lightning_meta.datamodules.functions.image_completion import ImageCompletion
from lightning_meta.datamodules.functions.linear_functions import LinearFunctions
from lightning_meta.datamodules.functions.quadratics import Quadratics
from lightning_meta.datamodules.functions.sinusoid import Sinusoid
from lightning_meta.datamodules.functions.sinusoid_with_identity import SinusoidWithIdentity
from lightning_meta.datamodules.graphs.graph_data import GraphDataModule
from lightning_meta.datamodules.graphs.graph_folder import GraphFolder
from lightning_meta.datamodules.graphs.rule_graph import RuleGraph
from lightning_meta.datamodules.images.cifar import CIFARFS, FC100
from lightning_meta.datamodules.images.domains import Domains
from lightning_meta.datamodules.images.glyphs import Glyphs
from lightning_meta.datamodules.images.image_folder import ImageFolder
from lightning_meta.datamodules.images.learn2learn_images import Learn2LearnImages
from lightning_meta.datamodules.images.mixed import Mixed
from lightning_meta.datamodules.images.omniglot import Omniglot
from lightning_meta.datamodules.images.projected import ProjectedImages
from lightning_meta.datamodules.images.rotations import Rotations
from lightning_meta.datamodules.images.scenes import Scenes
from lightning_meta.datamodules.images.torchvision_images import CIFAR10, MNIST, MNISTTest, TorchvisionImages
from lightning_meta.datamodules.language.ciphers import Ciphers
from lightning_meta.datamodules.language.made_up_entities import MadeUpEntities
from lightning_meta.datamodules.language.parallel_text import LanguageSplit, ParallelText
from lightning_meta.datamodules.language.switched_ciphers import SwitchedCiphers
from lightning_meta.datamodules.language.tagged_sentences import MasakhaNER, TaggedSentences
from lightning_meta.datamodules.language.tagging import TaggingDataModule
from lightning_meta.datamodules.language.translations import TranslationDataModule
from lightning_meta.datamodules.optimizees.image_optimizees import ImageOptimizees
from lightning_meta.datamodules.optimizees.optimizees import OptimizeeDataModule, QuadraticOptimizees
from lightning_meta.datamodules.recommendation.rating_world import RatingWorld
from lightning_meta.datamodules.recommendation.ratings_table import RatingsTable
from lightning_meta.datamodules.sequences.chorales import Chorales
from lightning_meta.datamodules.sequences.chunks import SequenceDataModule
from lightning_meta.datamodules.sequences.documents import Documents
from lightning_meta.datamodules.sequences.midi_folder import MidiFolder
from lightning_meta.datamodules.sequences.music import MusicDataModule
from lightning_meta.datamodules.sequences.topics import Topics
from lightning_meta.datamodules.tables.array_tables import ArrayTables, SklearnTables
from lightning_meta.datamodules.tables.school import School
from lightning_meta.datamodules.tables.tables import Tables
from lightning_meta.datamodules.tables.tabular_prior import TabularPrior
from lightning_meta.datamodules.text.made_up_relations import MadeUpRelations
from lightning_meta.datamodules.text.relations import FewRel, MarkedTexts
from lightning_meta.datamodules.text.text_classes import CLINC150, CLINC150Domains, HuffPost, TextClasses
from lightning_meta.datamodules.trials.rollouts import Rollouts, RolloutTrial
from lightning_meta.datamodules.unsupervised import (
    AAL,
    UMTRA,
    Autoencoder,
    CACTUs,
    Features,
    OfBackbone,
    OfRun,
    Pixels,
    UnsupervisedTasks,
)
from lightning_meta.datamodules.variable import MetaDatasetTasks, UniformTasks, VariableTasks

__all__ = [
    "AAL",
    "CIFAR10",
    "CIFARFS",
    "CLINC150",
    "FC100",
    "MNIST",
    "UMTRA",
    "ArrayTables",
    "Arrivals",
    "AudioClasses",
    "AudioFiles",
    "AudioFolder",
    "Autoencoder",
    "Babble",
    "BilevelDataModule",
    "CACTUs",
    "CLINC150Domains",
    "Chorales",
    "Ciphers",
    "Circles",
    "ClassSplit",
    "ClassificationDataModule",
    "Documents",
    "Domains",
    "EpisodicDataModule",
    "Features",
    "FewRel",
    "GaussianProcess",
    "Glyphs",
    "GraphDataModule",
    "GraphFolder",
    "HeldOutDomains",
    "HeldOutImages",
    "HuffPost",
    "ImageCompletion",
    "ImageFolder",
    "ImageOptimizees",
    "LanguageSplit",
    "Learn2LearnImages",
    "LinearFunctions",
    "MNISTTest",
    "MadeUpEntities",
    "MadeUpRelations",
    "MarkedTexts",
    "MasakhaNER",
    "MetaDatasetTasks",
    "MidiFolder",
    "Mixed",
    "MusicDataModule",
    "OfBackbone",
    "OfRun",
    "Omniglot",
    "OptimizeeDataModule",
    "ParallelText",
    "Pixels",
    "ProjectedImages",
    "QuadraticOptimizees",
    "Quadratics",
    "RBFProcess",
    "RatingWorld",
    "RatingsTable",
    "RolloutTrial",
    "Rollouts",
    "Rotations",
    "RuleGraph",
    "Scenes",
    "School",
    "SequenceDataModule",
    "Sinusoid",
    "SinusoidWithIdentity",
    "SklearnTables",
    "SpeechDataModule",
    "SpokenDigits",
    "SpokenStrings",
    "SwitchedCiphers",
    "Tables",
    "TabularPrior",
    "TaggedSentences",
    "TaggingDataModule",
    "TaskDataModule",
    "TextClasses",
    "Timbres",
    "Topics",
    "TorchvisionImages",
    "TranslationDataModule",
    "Trial",
    "TwoMoons",
    "UniformTasks",
    "UnsupervisedTasks",
    "VariableTasks",
    "VoiceMixtures",
]
