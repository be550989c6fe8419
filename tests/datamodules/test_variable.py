"""Variable tasks: their numbers follow the stated distributions, and an episode is the same whoever draws it.

Meta-Dataset's sampling is compared with the paper's section 3.2 written down once more, one episode at a time and with
another generator.
"""

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_meta import reports
from lightning_meta.algorithms import MAML, MANN, MutualExclusivenessMAML, ProtoNet, RelationNet
from lightning_meta.callbacks import EpisodeTable
from lightning_meta.core import Episode, count_tasks
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import choose_each, episode_keys, whole
from lightning_meta.datamodules import ClassificationDataModule, MetaDatasetTasks, UniformTasks, VariableTasks
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule
from tests.algorithms.cases import ALGORITHMS
from tests.conftest import CLASSES, EXAMPLES, SIZE, blobs, conv4
from tests.datamodules.test_episodes import assert_same, identities, numbered_bank, on_rank, ready

SIZES = [6, 9, 12, 12, 20, 20, 30, 40]  # examples of the classes


class Ragged(ClassificationDataModule):
    """Classes of different sizes, the same in every split; an image says its class and number."""

    def load_source(self, split: Split) -> ClassBank:
        return numbered_bank(SIZES)


UNIFORM = UniformTasks(n_way=(3, 6), k_shot=(1, 3), n_query=(2, 3))
META_DATASET = MetaDatasetTasks(min_way=3, max_query=4, max_support=40, max_shot=8)
BOTH = pytest.mark.parametrize("tasks", [UNIFORM, META_DATASET], ids=["uniform", "meta-dataset"])


def ragged(tasks: VariableTasks = UNIFORM, **overrides: Any) -> Any:
    sizes: dict[str, Any] = dict(meta_batch_size=4, steps_per_epoch=3, val_episodes=5, test_episodes=11)
    return ready(Ragged(variable=tasks, **(sizes | overrides)))


def drawn(tasks: VariableTasks, count: int) -> list[Episode]:
    return ragged(tasks).dataset("train").__getitems__(range(count))


def chi_square(counts: Counter, outcomes: int) -> None:
    """All outcomes equally likely, at a level of about 1e-4."""
    expected = counts.total() / outcomes
    assert len(counts) == outcomes
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = outcomes - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5 + 5


# ---- draws ----------------------------------------------------------------------------------------------------------


def test_sets_of_different_sizes_are_uniform_and_do_not_depend_on_their_neighbours() -> None:
    keys = episode_keys(0, 0, range(6000))
    sizes = np.arange(6000) % 3 + 1
    together = choose_each(keys, 4, sizes)
    assert together.shape == (6000, 3)
    for size in (1, 2, 3):
        of_size = together[sizes == size]
        assert (of_size[:, size:] == -1).all()
        counts = Counter(map(tuple, of_size[:, :size].tolist()))
        chi_square(counts, len([*permutations(range(4), size)]))
        np.testing.assert_array_equal(of_size[:, :size], choose_each(keys[sizes == size], 4, size))
    assert choose_each(keys[:9], 3, 0).shape == (9, 0)


def test_whole_numbers_are_uniform_with_both_ends() -> None:
    chi_square(Counter(whole(episode_keys(1, 0, range(5000)), 5, 20).tolist()), 16)


def test_uniform_tasks_draw_each_number_equally_often() -> None:
    episodes = drawn(UNIFORM, 3000)
    ways = Counter(len(episode.support.y.unique()) for episode in episodes)
    chi_square(ways, 4)
    shots = Counter(count for episode in episodes for count in episode.support.y[0].bincount().tolist())
    chi_square(shots, 3)
    queries = [episode.query.y[0].bincount().tolist() for episode in episodes]
    assert all(len({*of_classes}) == 1 for of_classes in queries)
    chi_square(Counter(of_classes[0] for of_classes in queries), 2)
    of_two = Counter(tuple(episode.support.y[0].bincount().tolist()[:2]) for episode in episodes)
    chi_square(of_two, 9)  # classes draw for themselves


def test_balanced_tasks_have_one_number_of_shots_in_an_episode() -> None:
    episodes = drawn(UniformTasks(n_way=(3, 6), k_shot=(1, 3), n_query=(2, 3), balanced=True), 600)
    shots = [{*episode.support.y[0].bincount().tolist()} for episode in episodes]
    assert all(len(of_episode) == 1 for of_episode in shots)
    chi_square(Counter(map(tuple, shots)), 3)


def papers(generator: np.random.RandomState, tasks: MetaDatasetTasks) -> tuple[int, int, list[int], list[int]]:
    """Way, queries per class, sizes of the classes and shots of an episode, as section 3.2 says it."""
    way = generator.randint(tasks.min_way, len(SIZES) + 1)
    sizes = generator.permutation(SIZES)[:way]
    queries = min(tasks.max_query, min(size // 2 for size in sizes))
    beta = 1 - generator.rand()  # from (0, 1]
    wanted = sum(int(np.ceil(beta * min(tasks.max_shot, size - queries))) for size in sizes)
    support = min(wanted, tasks.max_support)
    weights = [np.exp(generator.uniform(np.log(0.5), np.log(2))) * size for size in sizes]
    shots = [
        min(int(np.floor(weight / sum(weights) * (support - way))) + 1, size - queries)
        for weight, size in zip(weights, sizes, strict=True)
    ]
    return way, queries, sizes.tolist(), shots


def test_meta_datasets_sampling_is_the_papers() -> None:
    """Ways, queries, sizes of support sets, and shots by the size of a class have the same distributions."""
    count, generator = 3000, np.random.RandomState(0)
    ours: dict[str, list[float]] = {"way": [], "queries": [], "support": [], "largest": [], "small": [], "big": []}
    theirs: dict[str, list[float]] = {name: [] for name in ours}
    for episode in drawn(META_DATASET, count):
        shots, (queries, *_) = episode.support.y[0].bincount(), episode.query.y[0].bincount().tolist()
        classes = [identities(episode.support.x[0][episode.support.y[0] == c][:1])[0][0] for c in range(len(shots))]
        note(ours, queries, [SIZES[c] for c in classes], shots.tolist())
    for _ in range(count):
        _, queries, sizes, shots = papers(generator, META_DATASET)
        note(theirs, queries, sizes, shots)
    for name in ours:
        a, b = np.sort(ours[name]), np.sort(theirs[name])
        at = np.unique(np.concatenate([a, b]))
        gap = np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max()
        assert gap < 2.2 * np.sqrt((len(a) + len(b)) / (len(a) * len(b))), name  # Kolmogorov-Smirnov, level 1e-4


def note(seen: dict[str, list[float]], queries: int, sizes: list[int], shots: list[int]) -> None:
    seen["way"].append(len(shots))
    seen["queries"].append(queries)
    seen["support"].append(sum(shots))
    seen["largest"].append(max(shots))
    seen["small"] += [count for count, size in zip(shots, sizes, strict=True) if size == 9]
    seen["big"] += [count for count, size in zip(shots, sizes, strict=True) if size == 40]


@BOTH
def test_examples_are_of_their_class_and_none_is_there_twice(tasks: VariableTasks) -> None:
    for episode in drawn(tasks, 200):
        examples = [*identities(episode.support.x[0]), *identities(episode.query.x[0])]
        assert len({*examples}) == len(examples)
        labels = [*episode.support.y[0].tolist(), *episode.query.y[0].tolist()]
        of_label = {(label, c) for (c, _), label in zip(examples, labels, strict=True)}
        way = len({*episode.support.y[0].tolist()})
        assert len(of_label) == way == len({c for _, c in of_label})
        assert {y for y, _ in of_label} == set(range(way))
    smallest, largest = ragged(tasks).extremes("train")
    assert smallest.n_way == 3
    assert largest.n_way == (6 if tasks is UNIFORM else 8)


@BOTH
def test_episodes_stay_within_the_extremes(tasks: VariableTasks) -> None:
    smallest, largest = ragged(tasks).extremes("train")
    for episode in drawn(tasks, 500):
        shots, queries = (part.y[0].bincount() for part in episode)
        assert smallest.k_shot <= shots.min()
        assert shots.max() <= largest.k_shot
        assert smallest.n_query <= queries.min()
        assert queries.max() <= largest.n_query
        assert smallest.n_way <= len(shots) <= largest.n_way


# ---- purity ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("as_stream", [False, True])
def test_an_episode_is_the_same_alone_and_in_any_meta_batch(
    tasks: VariableTasks, as_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ragged(tasks)
    module.needs = frozenset({"stream"} if as_stream else ())
    dataset, ids = module.dataset("train"), [5, 0, 1_000_000, 3, 8]
    together, backwards = dataset.__getitems__(ids), dataset.__getitems__(ids[::-1])
    monkeypatch.setattr("lightning_meta.datamodules.episodes.DRAWN_AT_ONCE", 3)
    one_by_one = [episode for batch in dataset.batches([ids[:2], ids[2:4], ids[4:]]) for episode in batch]
    for place, index in enumerate(ids):
        (alone,) = dataset.__getitems__([index])
        assert_same(alone, together[place])
        assert_same(alone, backwards[-1 - place])
        assert_same(alone, one_by_one[place])
        assert_same(dataset[index], Episode(*(type(part)(part.x[0], part.y[0]) for part in alone)))
    if as_stream:
        module.needs = frozenset()
        plain = module.dataset("train").__getitems__(ids)
        orders = [not torch.equal(a.support.y, b.support.y) for a, b in zip(together, plain, strict=True)]
        assert any(orders)
        for a, b in zip(together, plain, strict=True):
            assert sorted(identities(a.support.x[0])) == sorted(identities(b.support.x[0]))
            assert_same(a.query, b.query)


@BOTH
def test_two_ranks_share_the_episodes_and_workers_change_nothing(tasks: VariableTasks) -> None:
    def batches(rank: int, ranks: int, **overrides: Any) -> list[list[Episode]]:
        return list(on_rank(ragged(tasks, **overrides), rank, ranks).test_dataloader())

    alone = [episode for batch in batches(0, 1) for episode in batch]
    shared = [[episode for batch in batches(rank, 2, eval_meta_batch_size=2) for episode in batch] for rank in (0, 1)]
    for number, episode in enumerate(alone):
        assert_same(episode, shared[number % 2][number // 2])
    assert_same(batches(0, 1, num_workers=2), batches(0, 1))


def test_a_resumed_loader_goes_on_with_the_next_episodes() -> None:
    whole_epochs = ragged().train_dataloader()
    expected = [*whole_epochs, *whole_epochs]
    first, second = ragged().train_dataloader(), ragged().train_dataloader()
    stopped = [next(iter(first))]
    second.load_state_dict(first.state_dict())
    assert_same([*stopped, *second], expected[: 1 + len(second)])


def test_turned_classes_are_turned_as_a_whole() -> None:
    """All images of a class by the same quarter turns; without augmentation they are as they are."""
    tasks = UniformTasks(n_way=(3, 6), k_shot=(1, 3), n_query=(1, 3))
    plain, turned = (ready(blobs(variable=tasks, **more)) for more in ({}, {"task_augmentation": ["rotate"]}))
    turns: Counter = Counter()
    for a, b in zip(*(m.dataset("train").__getitems__(range(40)) for m in (plain, turned)), strict=True):
        for c in a.support.y.unique():
            of_class = [torch.cat([part.x[part.y == c] for part in episode]) for episode in (a, b)]
            (turn,) = (k for k in range(4) if torch.equal(torch.rot90(of_class[0], k, (-2, -1)), of_class[1]))
            turns[turn] += 1
    assert len(turns) == 4
    assert_same(*(m.dataset("test").__getitems__(range(5)) for m in (plain, turned)))


def test_splits_may_have_episodes_of_one_shape() -> None:
    module = ragged(n_way=4, k_shot=2, n_query=1, variable_splits=["train"])
    assert module.varies("train")
    assert not module.varies("test")
    assert module.dataset("test").__getitems__([0, 1]).support.y.shape == (2, 8)
    assert module.facts("test") == {"n_way": 4, "k_shot": 2, "n_query": 1}
    assert module.facts("train") == {"n_way": "3-6", "k_shot": "1-3", "n_query": "2-3", "variable": repr(UNIFORM)}
    assert module.describe("train") == "3-6-way 1-3-shot, 2-3 query per class"


# ---- play -----------------------------------------------------------------------------------------------------------


def double(episodes: list[Episode]) -> list[Episode]:
    return [Episode(*(type(part)(part.x.double(), part.y) for part in episode)) for episode in episodes]


def played(tasks: VariableTasks, count: int = 4) -> list[Episode]:
    return double(ready(blobs(variable=tasks)).dataset("train").__getitems__(range(count)))


TASKS = UniformTasks(n_way=(2, 4), k_shot=(1, 4), n_query=(2, 4))
ONE_WAY = UniformTasks(n_way=(3, 3), k_shot=(1, 4), n_query=(2, 4))


def test_protonet_is_that_of_each_episode_alone() -> None:
    """Loss, accuracy and meta-gradient of a meta-batch, against class means and distances written out in float64."""
    module = ProtoNet(conv4("running")).double().eval()
    episodes = played(TASKS, 6)
    values, _ = module.measure(episodes)
    assert len({episode.support.y.shape for episode in episodes}) > 2
    losses, scores = [], []
    for (support_x, support_y), (query_x, query_y) in episodes:
        support_SD, query_QD = module.backbone(support_x[0]), module.backbone(query_x[0])
        means = torch.stack([support_SD[support_y[0] == c].mean(0) for c in range(int(support_y.max()) + 1)])
        logits = -(query_QD[:, None] - means).square().sum(-1)
        losses.append(F.cross_entropy(logits, query_y[0]))
        scores.append((logits.argmax(1) == query_y[0]).double().mean())
    torch.testing.assert_close(values["loss"], torch.stack(losses), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values["acc"], torch.stack(scores), rtol=0, atol=0)
    ours = torch.autograd.grad(values["loss"].mean(), [*module.parameters()])
    theirs = torch.autograd.grad(torch.stack(losses).mean(), [*module.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


NEEDED = {
    "protonet", "matching_net", "matching_net-full-context", "proto_maml", "baseline-nearest-neighbour", "r2d2",
    "metaoptnet-ridge", "baseline", "baseline++", "simple-shot", "rfs", "tim",
}  # fmt: skip


@pytest.mark.parametrize("tasks", [TASKS, ONE_WAY], ids=["ways", "one-way"])
@pytest.mark.parametrize("name", [name for name, make in ALGORITHMS.items() if callable(make)])
def test_an_algorithm_plays_a_list_as_it_plays_each_part_or_says_why_not(name: str, tasks: VariableTasks) -> None:
    torch.manual_seed(0)
    module = ALGORITHMS[name]().double().eval()
    smallest, largest = tasks.limits(np.full(CLASSES, EXAMPLES))
    try:
        for shape in (smallest, largest):
            module.check_task(shape, "test")
        module.check_shots([smallest.k_shot, largest.k_shot])
        module.check_variable("test")
    except ConfigError as error:
        assert name in ("relation_net", "mann", "figr", "dawson") or (name not in NEEDED and tasks is TASKS)
        assert "\n" not in str(error)
        return
    episodes = played(tasks)
    values, others = module.measure(episodes)
    assert count_tasks(episodes) == len(values["loss"]) == len(others["preds"]) == 4
    for place, episode in enumerate(episodes):
        alone, more = module.measure(episode)
        torch.testing.assert_close(alone["loss"][0], values["loss"][place])
        torch.testing.assert_close(more["preds"], others["preds"][place])
        assert more["preds"].argmax(-1).max() <= episode.support.y.max()  # no class that the episode has not


def trainer(**more: Any) -> pl.Trainer:
    return pl.Trainer(
        **dict(accelerator="cpu", max_steps=2, max_epochs=-1, inference_mode=False, num_sanity_val_steps=0,
               logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False) | more,
    )  # fmt: skip


def test_the_result_is_the_mean_of_accuracies_of_episodes(tmp_path: Any) -> None:
    """Not of queries, of which episodes have different numbers; and the table has each episode's."""
    data, module, table = blobs(variable=TASKS, eval_meta_batch_size=3), ProtoNet(conv4("running")), EpisodeTable()
    how = trainer(callbacks=[table], default_root_dir=tmp_path)
    how.fit(module, datamodule=data)
    (result,) = how.test(module, datamodule=data, verbose=False)
    scores = []
    for index in range(7):
        (support, query) = data.dataset("test")[index]
        predicted = module.predict(module.eval().adapt(support), query.x).argmax(-1)
        scores.append((predicted == query.y).double().mean())
    mean = torch.stack(scores).mean().item()
    of_queries = [int(data.dataset("test")[i].query.y.numel()) for i in range(7)]
    assert len({*of_queries}) > 1
    assert result["test/acc"] == pytest.approx(mean)
    interval = 1.96 * torch.stack(scores).std().item() / 7**0.5
    assert result["test/acc_ci95"] == pytest.approx(interval, rel=1e-3)
    assert table.path is not None
    rows = [line.split(",") for line in table.path.read_text().splitlines()[1:]]
    assert [float(row[1]) for row in rows] == pytest.approx([score.item() for score in scores])
    digests = {table.digest}
    for size in (1, 7):
        again = EpisodeTable()
        trainer(callbacks=[again], default_root_dir=tmp_path).test(
            module, datamodule=blobs(variable=TASKS, eval_meta_batch_size=size), verbose=False
        )
        digests.add(again.digest)
    assert len(digests) == 1


def test_episodes_are_drawn_as_pictures_and_nothing_that_needs_one_shape(tmp_path: Any) -> None:
    how = trainer(callbacks=[reports.TestReport()], default_root_dir=tmp_path)
    how.test(ProtoNet(conv4("running")), datamodule=blobs(variable=TASKS), verbose=False)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["episode_0.png", "episode_1.png"]


def test_features_of_a_frozen_backbone_stand_in_for_images(tmp_path: Any) -> None:
    def tested(freeze: bool) -> tuple[float, str | None]:
        torch.manual_seed(0)
        module, table = ProtoNet(conv4("running"), freeze=freeze, feature_folder=str(tmp_path)), EpisodeTable()
        how = trainer(callbacks=[table], default_root_dir=tmp_path)
        (result,) = how.test(module, datamodule=blobs(variable=TASKS), verbose=False)
        return result["test/loss"], table.digest

    (plain, its_digest), (frozen, digest) = tested(False), tested(True)
    assert frozen == pytest.approx(plain, rel=1e-5)
    assert digest == its_digest


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: UniformTasks(n_way=(20, 5)), r"n_way=\[20, 5\] goes from 20 to 5; put the smaller number first"),
        (lambda: UniformTasks(k_shot=(0, 5)), r"k_shot=\[0, 5\].*at least 1"),
        (lambda: MetaDatasetTasks(min_way=9, max_way=8), "min_way=9 is more than max_way=8"),
        (lambda: ragged(MetaDatasetTasks(max_support=7)), "max_support=7 has not one example for each of 8 classes"),
        (lambda: ragged(UniformTasks(n_way=(3, 9), k_shot=(1, 1), n_query=(1, 1))), "up to 9 classes.*split has 8"),
        (lambda: ragged(UniformTasks((3, 6), (1, 4), (1, 3))), r"k_shot=4 \+ n_query=3.*smallest class has 6"),
        (lambda: ragged(MetaDatasetTasks(min_way=9)), "up to 9 classes.*split has 8"),
        (lambda: ragged(MetaDatasetTasks(max_way=12)), "up to 12 classes.*split has 8"),
        (lambda: ragged(labels="fixed"), "labels=fixed.*leave data.variable out"),
        (lambda: ragged(task_augmentation=["mix"]), "leave mix out"),
        (lambda: ragged(variable_splits=["tests"]), r"variable_splits has \['tests'\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said_in_one_line(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_class_of_one_example_is_too_small() -> None:
    with pytest.raises(ConfigError, match="smallest class has 1"):
        MetaDatasetTasks().limits(np.array([1] + [20] * 9))


def fitted(module: EpisodicModule, tasks: VariableTasks, **data: Any) -> None:
    trainer().fit(module, datamodule=blobs(variable=tasks, **data))


def test_algorithms_that_need_one_shape_say_so() -> None:
    with pytest.raises(ConfigError, match=r"4-way, but MAML has n_way=2 outputs.*data\.variable"):
        fitted(MAML(conv4(), n_way=2, inner_steps=1), TASKS)
    with pytest.raises(ConfigError, match="from 1 to 4 examples, but RelationNet"):
        fitted(RelationNet(conv4()), TASKS)
    with pytest.raises(ConfigError, match=r"support sets.*vary.*variable_splits"):
        fitted(MutualExclusivenessMAML(conv4(), n_way=3, inner_steps=1), ONE_WAY)
    with pytest.raises(ConfigError, match="how often each class has been seen, but train episodes vary"):
        fitted(MANN(n_way=3, image_size=SIZE, hidden=10, slots=8, width=6, heads=2), ONE_WAY)
    with pytest.raises(ConfigError, match=r"compile_training=True makes a step for one shape.*vary"):
        fitted(ProtoNet(conv4("running"), compile_training=True), TASKS)
    with pytest.raises(ConfigError, match="n_way=1: among one class"):
        fitted(ProtoNet(conv4("running")), UniformTasks((1, 3), (1, 1), (1, 1)))
    fitted(MAML(conv4(), n_way=3, inner_steps=1), ONE_WAY)  # the shots may differ


def test_shapes_that_are_asked_for_elsewhere_are_possible_ones() -> None:
    """A data set that checks its classes by `shapes` before episodes are drawn must not ask for more than they do."""
    assert ragged(META_DATASET).shapes["train"] == EpisodeShape(3, 1, 1)
    assert ragged(UNIFORM).shapes["test"] == EpisodeShape(3, 3, 3)
