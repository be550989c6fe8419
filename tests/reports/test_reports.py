"""All reports together: which runs they apply to, and how they are chosen."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch.nn import functional as F

from lightning_meta import callbacks, reports
from lightning_meta.algorithms import (
    ANML,
    BMAML,
    DADA,
    DARTS,
    FIGR,
    GPICL,
    KIP,
    MAML,
    MAMLRL,
    PFN,
    PLATIPUS,
    RL2,
    ActiveLearning,
    ConditionalNeuralProcess,
    DeltaNet,
    DynamicEvaluation,
    Hyperparameters,
    InContextRegression,
    LSTMLearner,
    LSTMOptimizer,
    MetaPseudoLabels,
    MetaTasNet,
    MetaWeightNet,
    ModelFree,
    NeuralStatistician,
    ProtoDetection,
    ProtoNet,
    ProtoSegmentation,
    TabPFN,
    VariBAD,
)
from lightning_meta.backbones import MLP
from lightning_meta.callbacks import EpisodeTable, RunSummary, Throughput
from lightning_meta.datamodules import (
    Arrivals,
    Chorales,
    Circles,
    GaussianProcess,
    ImageCompletion,
    LinearFunctions,
    QuadraticOptimizees,
    Quadratics,
    TabularPrior,
    TwoMoons,
)
from lightning_meta.errors import ConfigError
from lightning_meta.metrics import EpisodicMSE
from lightning_meta.worlds import Continuous, Discrete, Grid, TwoStep
from tests.algorithms.bilevel_cases import cell, held_out, network
from tests.algorithms.rollout_cases import arms, navigation, rollouts
from tests.algorithms.test_figr import SMALL as PLAYERS
from tests.algorithms.test_g_matching import matching
from tests.algorithms.test_meta_asr import asr
from tests.algorithms.test_meta_nmt import nmt
from tests.algorithms.test_neural_statistician import SMALL as STATISTICIAN
from tests.algorithms.test_proto_segmentation import maps
from tests.algorithms.test_token_protonet import maml_tagger
from tests.conftest import (
    SIZE,
    babble,
    blobs,
    chorales,
    ciphers,
    conv4,
    made_up_entities,
    next_tokens,
    rule_graph,
    scenes,
    sinusoids,
    switched_ciphers,
    topics,
)
from tests.datamodules.test_projected import projected
from tests.reports.conftest import run_test

LEARNED_FROM = {"acc_from_support", "acc_from_generated", "acc_from_both", "acc_gained"}
FEW = {"val_episodes": 2, "test_episodes": 3, "eval_meta_batch_size": 2}


def sine_maml() -> MAML:
    return MAML(MLP(hidden=(8,)), n_way=1, inner_lr=0.01, loss_fn=F.mse_loss, metric=EpisodicMSE())


def cnp(x_size: int) -> ConditionalNeuralProcess:
    return ConditionalNeuralProcess(x_size=x_size, width=8, layers=1)


def begun(module: Any) -> Any:
    """With an inner training at its beginning, as a checkpoint would bring it."""
    data = held_out()
    data.setup("fit")
    module.carried = module.begin(data.dataset("train").__getitems__([0]))
    return module


def chosen() -> ActiveLearning:
    """With labels that were chosen, as a checkpoint would bring them."""
    module, data = ActiveLearning(network(), 4, start=3, per_round=2, labels=5, inner_steps=2), held_out()
    data.setup("fit")
    module.pool = data.learned_from()
    started = module.begin(data.dataset("train").__getitems__([0, 2**40]))
    module.carried = started._replace(state=started.state | {"order": torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])})
    return module


def searched() -> DARTS:
    """With a search and an inner training behind it, as a checkpoint would bring them."""
    module, data = DARTS(cell(), 4), held_out()
    data.setup("fit")
    module.carried = module.begin(data.dataset("train").__getitems__([0]))
    module.path = [module.operations().detach()]
    return module


def moons() -> TwoMoons:
    return TwoMoons(support_per_class=9, val_per_class=2, test_per_class=3, **FEW)


def taught() -> MetaPseudoLabels:
    """With a student at its beginning."""
    module = MetaPseudoLabels(MLP(2, (8,)), 2)
    module.carried = module.begin(moons().dataset("train").__getitems__([0]))
    return module


# What is drawn, and logged beside the hooks' own numbers.
RUNS: dict[str, tuple[Callable[[], Any], Callable[[], Any], set[str], set[str]]] = {
    "MAML on images": (
        lambda: MAML(conv4(), n_way=3), blobs,
        {"adaptation_curve", "calibration", "episode_0", "episode_1", "layer_similarity"}, {"ece"},
    ),
    "MAML on three queries": (
        lambda: MAML(conv4(), n_way=3), lambda: blobs(n_query=1, test_episodes=1),
        {"adaptation_curve", "calibration", "episode_0"}, {"ece"},
    ),
    "ProtoNet on tasks that arrive": (
        lambda: ProtoNet(conv4()), lambda: blobs(arrivals=Arrivals(learned_at=0.9)),
        {"calibration", "embedding", "episode_0", "episode_1", "examples_needed"},
        {"ece", "examples_needed", "learned"},
    ),
    "a stream of classes": (
        lambda: ANML(conv4(None), conv4(None, hidden=4), n_way=3), blobs,
        {
            "accuracy_by_age", "adaptation_curve", "calibration", "embedding", "episode_0", "episode_1",
            "layer_similarity",
        },
        {"ece"},
    ),
    "BMAML on circles": (
        lambda: BMAML(MLP(2, (4,)), n_way=2, particles=2), lambda: Circles(n_query=3, **FEW),
        {"adaptation_curve", "ambiguous_tasks", "calibration"}, {"ece"},
    ),
    "PLATIPUS on images": (
        lambda: PLATIPUS(conv4(), n_way=3, draws=2), blobs,
        {"adaptation_curve", "calibration", "episode_0", "episode_1"}, {"ece"},
    ),
    "pairs of a graph": (matching, rule_graph, set(), set()),
    "a tagger": (maml_tagger, made_up_entities, {"adaptation_curve"}, set()),
    "a translator": (nmt, ciphers, {"adaptation_curve", "translations"}, set()),
    "pieces of music": (
        lambda: MAML(**next_tokens(vocabulary=64, length=4)),
        lambda: Chorales(pieces=[1, 1, 2], bars=1, k_shot=2, n_query=2, length=4, **FEW),
        {"adaptation_curve", "continuations"}, set(),
    ),
    "documents": (
        lambda: DynamicEvaluation(**next_tokens()), topics, {"adaptation_curve"}, set(),
    ),
    "sentences that switch languages": (
        lambda: MAML(**next_tokens(vocabulary=19, length=9)), switched_ciphers,
        {"adaptation_curve", "layer_similarity"}, set(),
    ),
    "ProtoNet on images": (
        lambda: ProtoNet(conv4()), blobs, {"calibration", "embedding", "episode_0", "episode_1"}, {"ece"},
    ),
    "DeltaNet on images": (
        lambda: DeltaNet(conv4(), n_way=3, width=8, layers=1, heads=2, factor=2), blobs,
        {"accuracy_by_age", "calibration", "embedding", "episode_0", "episode_1"}, {"ece"},
    ),
    "MAML on sine waves": (sine_maml, sinusoids, {"adaptation_curve", "layer_similarity", "sine_fits"}, set()),
    "CNP on Gaussian processes": (
        lambda: cnp(1), lambda: GaussianProcess(k_shot=4, n_query=5, **FEW), {"process_fits"},
        {"gp_log_likelihood", "gp_averaged_log_likelihood", "gp_averaged_normal_log_likelihood"},
    ),
    "PFN on Gaussian processes": (
        lambda: PFN(width=8, depth=1, heads=2), lambda: GaussianProcess(k_shot=4, n_query=5, **FEW), {"process_fits"},
        {"gp_log_likelihood", "gp_averaged_log_likelihood", "gp_averaged_normal_log_likelihood"},
    ),
    "in-context regression": (
        lambda: InContextRegression(x_size=5, width=8, depth=1, heads=2), lambda: LinearFunctions(k_shot=4, **FEW),
        {"error_over_examples"}, {"least_squares_mse", "nearest_neighbours_mse", "averaging_mse"},
    ),
    "tables": (
        lambda: TabPFN(features=3, width=8, depth=1, heads=2), lambda: TabularPrior(n_way=3, features=3, **FEW),
        {"calibration", "table_boundaries"}, {"ece"},
    ),
    "stream of projected images": (
        lambda: GPICL(16, n_way=12, width=8, depth=1, heads=2), lambda: projected(tasks=2),
        {"accuracy_over_examples", "calibration"}, {"ece", "trained_tasks_acc"},
    ),
    "CNP on sine waves": (lambda: cnp(1), sinusoids, set(), set()),
    "CNP on images": (
        lambda: cnp(2), lambda: ImageCompletion(blobs(), k_shot=20, n_query=5, **FEW), {"completions"}, set(),
    ),
    "LSTM on quadratics": (
        lambda: LSTMLearner(hidden=8), lambda: Quadratics(k_shot=10, **FEW), {"sequence_error"}, set(),
    ),
    "LSTM on sine waves": (lambda: LSTMLearner(in_features=1, hidden=8), sinusoids, set(), set()),
    "weights of examples": (
        lambda: begun(MetaWeightNet(network(), 4, hidden=5)), held_out, {"example_weights"}, set(),
    ),
    "search for an architecture": (searched, held_out, {"architecture_path"}, set()),
    "labels that are chosen": (chosen, lambda: held_out(meta_batch_size=2), {"label_curve"}, set()),
    "learned decays": (lambda: begun(Hyperparameters(network(), 4)), held_out, {"decay_map"}, set()),
    "one decay": (lambda: begun(Hyperparameters(network(), 4, per="network")), held_out, set(), set()),
    "learned augmentation": (
        lambda: begun(DADA(network(), 4)), lambda: held_out(moved={"rotate": 30.0}),
        {"augmentation", "augmented_images"}, set(),
    ),
    "pseudo labels in the plane": (taught, moons, {"decision_boundary"}, set()),
    "learned images": (
        lambda: KIP(in_shape=(1, SIZE, SIZE), n_classes=4), held_out, {"learned_images"}, set(),
    ),
    "beliefs in a grid": (
        lambda: VariBAD(9, Grid.actions, pays_above=0.0, hidden=6), lambda: rollouts(Grid(3, 4)),
        {"belief_map", "return_by_round"}, set(),
    ),
    "walks": (
        lambda: MAMLRL(2, Continuous(2), hidden=[4]), navigation, {"return_by_round", "walks"}, set(),
    ),
    "two steps": (
        ModelFree, lambda: rollouts(TwoStep(4), rounds=0), {"stay_probability"},
        {"stay_interaction", "stay_reward", "stay_transition"},
    ),
    "arms": (lambda: RL2(1, Discrete(3), hidden=4), arms, {"regret"}, set()),
    "masks": (lambda: ProtoSegmentation(maps()), lambda: scenes("masks"), {"scene_gallery"}, set()),
    "mixtures": (lambda: MetaTasNet(window=64, channels=4, hidden=4, blocks=1), chorales, {"separation"}, set()),
    "speech": (asr, babble, {"adaptation_curve", "transcripts"}, set()),
    "boxes": (lambda: ProtoDetection(maps()), lambda: scenes("boxes"), {"scene_gallery"}, set()),
    "likelihoods of images": (
        lambda: NeuralStatistician(**STATISTICIAN), blobs,
        {"episode_0", "episode_1", "generated_images", "learned_from_generated"}, LEARNED_FROM,
    ),
    "likelihoods of one class": (
        lambda: NeuralStatistician(**STATISTICIAN), lambda: blobs(n_way=1),
        {"episode_0", "episode_1", "generated_images"}, set(),
    ),
    "networks that generate": (
        lambda: FIGR(**PLAYERS), blobs,
        {"adaptation_curve", "calibration", "episode_0", "episode_1", "generated_images", "learned_from_generated"},
        {"ece"} | LEARNED_FROM,
    ),
    "learned optimizer": (
        lambda: LSTMOptimizer(hidden=4), lambda: QuadraticOptimizees(dimension=3, unroll_steps=3, **FEW),
        {"learning_curves"},
        {f"{kind}_{name}" for kind in ("below",) for name in ("sgd", "nag", "rmsprop", "adam")}
        | {f"{name}_{kind}" for kind in ("lr", "final_loss") for name in ("sgd", "nag", "rmsprop", "adam")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_what_applies_is_drawn_and_logged_and_nothing_else(run: str, tmp_path: Path) -> None:
    make, data, pictures, logs = RUNS[run]
    module, report = make(), reports.TestReport()
    plain = run_test(tmp_path / "plain", module, data())
    logged = run_test(tmp_path, module, data(), report)
    drawn = {path.stem: path for path in report.paths}
    assert drawn.keys() == pictures
    assert all(path == tmp_path / "pictures" / f"{name}.png" and path.stat().st_size for name, path in drawn.items())
    assert {name.removeprefix("test/").removesuffix("_ci95") for name in logged.keys() - plain.keys()} == logs


def test_every_report_is_found_and_applies_to_one_of_the_runs() -> None:
    files = Path(reports.__file__).parent.glob("*.py")
    written = {name for file in files for name in re.findall(r"^class (\w+)\(Report\)", file.read_text(), re.MULTILINE)}
    assert set(reports.REPORTS) == written
    drawn = set.union(*(pictures for _, _, pictures, _ in RUNS.values()))
    files_of = {
        "EmbeddingMap": {"embedding"}, "EpisodeGallery": {"episode_0", "episode_1"},
        "LearnedAugmentation": {"augmentation", "augmented_images"},
    }  # fmt: skip
    snake = {name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in written - {"SupportUse"}}
    assert set.union(*(files_of.get(name, {file}) for name, file in snake.items())) == drawn


def test_reports_are_chosen_by_name(tmp_path: Path) -> None:
    def drawn(**chosen: Any) -> list[str]:
        report = reports.TestReport(**chosen)
        run_test(tmp_path, ProtoNet(conv4()), blobs(), report)
        return [path.stem for path in report.paths]

    assert drawn(only=["EmbeddingMap", "SineFits"]) == ["embedding"]
    assert drawn(skip=["EpisodeGallery"]) == ["calibration", "embedding"]
    assert drawn(only=[]) == []
    assert not (tmp_path / "support_use.csv").exists()
    drawn(only=["SupportUse"])
    assert (tmp_path / "support_use.csv").exists()
    with pytest.raises(
        ConfigError, match=r"no report SineFit; there are .*, AdaptationCurve, .* Did you mean SineFits\?"
    ):
        reports.TestReport(skip=["SineFit"])


COUNTS = [
    (name, argument)
    for name, report in reports.REPORTS.items()
    for argument, parameter in inspect.signature(report).parameters.items()
    if isinstance(parameter.default, int)
]


@pytest.mark.parametrize(("name", "argument"), COUNTS)
def test_no_number_of_a_report_is_negative(name: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"\b{argument}=-5 must be at least [01]\.$"):
        reports.REPORTS[name](**{argument: -5})


def test_numbers_within_a_list_of_a_report_are_none_that_cannot_be() -> None:
    uncounted = {"AccuracyByAge", "DecayMap", "ExamplesNeeded", "LabelCurve", "StayProbability"}
    assert {name for name, _ in COUNTS} == set(reports.REPORTS) - uncounted
    with pytest.raises(ConfigError, match=r"Completions\.pixels=0 must be at least 1"):
        reports.Completions(pixels=[10, 0])
    with pytest.raises(ConfigError, match=r"steps=-1 must be at least 0"):
        reports.SineFits(steps=[0, -1])


def test_the_last_choice_of_reports_counts(tmp_path: Path) -> None:
    first, last = reports.TestReport(), reports.TestReport(only=["Calibration"])
    run_test(tmp_path, ProtoNet(conv4()), blobs(), first, EpisodeTable(), last, Throughput())
    assert [path.stem for path in (tmp_path / "pictures").iterdir()] == ["calibration"]
    assert (first.paths, last.paths) == ([], [tmp_path / "pictures/calibration.png"])


def test_a_report_with_arguments_of_its_own_is_made_once(tmp_path: Path) -> None:
    wandb = create_autospec(WandbLogger, instance=True)
    loggers = [CSVLogger(tmp_path, name="", version=""), wandb]
    own, report = reports.EpisodeGallery(episodes=1), reports.TestReport(only=["EmbeddingMap", "EpisodeGallery"])
    run_test(tmp_path, ProtoNet(conv4()), blobs(), report, own, logger=loggers)
    assert [path.stem for path in report.paths] == ["embedding"]
    assert [path.stem for path in own.paths] == ["episode_0"]
    sent = {call.kwargs["key"]: call.kwargs["images"] for call in wandb.log_image.call_args_list}
    assert sent == {f"test/{path.stem}": [str(path)] for path in (*report.paths, *own.paths)}
    assert wandb.log_image.call_count == 2


@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
def test_the_summary_knows_of_all_wherever_it_stands(
    last: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others: list[pl.Callback] = [EpisodeTable(), reports.TestReport(only=["EmbeddingMap"]), reports.Calibration()]
    run_test(tmp_path, ProtoNet(conv4()), blobs(), *([*others, RunSummary()] if last else [RunSummary(), *others]))
    assert json.loads((tmp_path / "result.json").read_text())["episodes_digest"]
    printed = capsys.readouterr().out
    assert f"{tmp_path}/pictures/ (embedding.png, calibration.png)" in printed
    assert f"{tmp_path}/test_episodes.csv" in printed


def test_configs_of_older_runs_name_reports_among_the_callbacks() -> None:
    for name, report in reports.REPORTS.items():
        assert getattr(callbacks, name) is report
    assert not hasattr(callbacks, "SineFitz")
    with pytest.raises(ImportError, match=r"lightning_meta\.reports\.Report"):
        from lightning_meta.callbacks import Pictures  # noqa: F401
