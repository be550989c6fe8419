"""Episodes are a pure function of (seed, split, index), whoever draws them; every image names its class and example."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.core import Episode
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.datamodules import EpisodicDataModule, ImageCompletion, Sinusoid
from lightning_meta.datamodules.base import ShapeOverride
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.episodes import EpisodeDataset, EpisodeLoader
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, EXAMPLES, blobs

ROOT = Path(__file__).parents[2]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def numbered_bank(sizes: Sequence[int]) -> ClassBank:
    """Images of two pixels: the number of the class and of the example."""
    images = torch.tensor([[c, e] for c, size in enumerate(sizes) for e in range(size)], dtype=torch.uint8)
    sizes_array = np.array(sizes)
    return ClassBank(images.view(-1, 1, 1, 2), np.cumsum(sizes_array) - sizes_array, sizes_array)


class Numbered(EpisodicDataModule):
    """The same 30 classes of 20 examples in every split."""

    def load_source(self, split: Split) -> ClassBank:
        return numbered_bank([20] * 30)


def ready(module: EpisodicDataModule) -> EpisodicDataModule:
    module.setup("fit")
    module.setup("test")
    return module


def numbered(**overrides: Any) -> EpisodicDataModule:
    settings: dict[str, Any] = dict(n_way=4, k_shot=2, n_query=3, meta_batch_size=6, steps_per_epoch=3, val_episodes=7)
    return ready(Numbered(**(settings | overrides)))


def on_rank(module: EpisodicDataModule, rank: int, world_size: int, max_steps: int = -1) -> EpisodicDataModule:
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world_size, max_steps=max_steps, accumulate_grad_batches=1,
        limit_train_batches=1.0, overfit_batches=0.0,
    )  # fmt: skip
    return module


def identities(x: Tensor) -> list[tuple[int, int]]:
    """(class, example) of each image `(B, 1, 1, 2)`."""
    return [(c, e) for c, e in (x.flatten(1) * 255).round().int().tolist()]


def assert_same(a: Any, b: Any) -> None:
    leaves_a, leaves_b = tree_leaves(a), tree_leaves(b)
    assert len(leaves_a) == len(leaves_b) > 0
    for one, other in zip(leaves_a, leaves_b, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def differ(a: Episode, b: Episode) -> bool:
    return not torch.equal(a.support.x, b.support.x)


def at(tasks: Episode, t: int) -> Episode:
    return tree_map(lambda leaf: leaf[t], tasks)


# ---- purity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_an_episode_is_the_same_alone_in_a_meta_batch_and_in_any_order(split: Split) -> None:
    dataset = numbered().dataset(split)
    ids = [5, 0, 1_000_000, 3]
    together, backwards = dataset.__getitems__(ids), numbered().dataset(split).__getitems__(ids[::-1])
    for position, index in enumerate(ids):
        assert_same(dataset[index], at(together, position))
        assert_same(dataset[index], at(backwards, -1 - position))


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"])
def test_workers_change_nothing(loader: str) -> None:
    def batches(workers: int) -> list[Episode]:
        module = numbered(num_workers=workers, test_episodes=11, eval_meta_batch_size=3)
        return list(getattr(module, loader)())

    assert_same(batches(0), batches(2))


DRAWN: dict[str, Callable[[], EpisodicDataModule]] = {
    "classes": numbered,
    "new classes": lambda: ready(blobs(task_augmentation=["mix", "rotate"])),
    "waves": lambda: ready(Sinusoid()),
    "pixels": lambda: ready(ImageCompletion(blobs(), k_shot=10, n_query=5)),
}


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize("make", DRAWN.values(), ids=[*DRAWN])
def test_meta_batches_drawn_together_are_those_drawn_one_by_one(
    make: Callable[[], EpisodicDataModule], as_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make()
    if as_stream:
        module.needs = frozenset({"stream"})
    dataset, draws = module.dataset("train"), []
    draw = type(dataset.source).draw
    monkeypatch.setattr(
        type(dataset.source), "draw", lambda self, keys, shape: draws.append(len(keys)) or draw(self, keys, shape)
    )
    monkeypatch.setattr("lightning_meta.datamodules.episodes.DRAWN_AT_ONCE", 7)
    batches = [[5, 6, 7], [100, 2, 11], [3, 4, 5], [1]]
    together = list(dataset.batches(batches))
    assert draws == [6, 4]
    assert len(together) == len(batches)
    for tasks, ids in zip(together, batches, strict=True):
        assert_same(tasks, dataset.__getitems__(ids))


def test_loaders_hand_out_the_episodes_of_their_split_in_order() -> None:
    module = numbered(test_episodes=11, eval_meta_batch_size=3)
    for split, count, size in (("train", 18, 6), ("val", 7, 3), ("test", 11, 3)):
        loader = getattr(module, f"{split}_dataloader")()
        batches = list(loader)
        assert len(loader) == len(batches) == -(-count // size)
        played = [at(batch, t) for batch in batches for t in range(len(batch.query.y))]
        assert_same(played, [module.dataset(split)[i] for i in range(count)])


def test_another_process_draws_the_same_episodes() -> None:
    code = """
import hashlib
from torch.utils._pytree import tree_leaves
from tests.conftest import blobs
data = blobs(seed=11)
data.setup("test")
leaves = tree_leaves(data.dataset("test").__getitems__([4, 0, 123456]))
print(hashlib.sha256(b"".join(leaf.numpy().tobytes() for leaf in leaves)).hexdigest())
"""
    here: dict[str, Any] = {}
    exec(code.replace("print(", "digest = ("), here)
    elsewhere = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == here["digest"]


def test_global_random_state_is_neither_read_nor_advanced() -> None:
    dataset = numbered().dataset("train")
    torch.manual_seed(1)
    np.random.seed(1)
    first, torch_after, numpy_after = dataset[0], torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    assert (torch.rand(1), np.random.rand()) == (torch_after, numpy_after)
    assert_same(first, dataset[0])


def test_splits_and_seeds_and_indices_give_different_episodes() -> None:
    """All splits have the same classes here, so only the streams of random numbers tell them apart."""
    episodes = [numbered(seed=s).dataset(split)[i] for s in (0, 1) for split in SPLITS for i in (0, 1)]
    for i, one in enumerate(episodes):
        assert all(differ(one, other) for other in episodes[:i])


def test_the_largest_seed_works() -> None:
    assert differ(numbered(seed=2**63 - 1).dataset("train")[0], numbered().dataset("train")[0])


# ---- labels and examples --------------------------------------------------------------------------------------------


def test_labels_belong_to_classes_and_support_and_query_share_no_example() -> None:
    tasks = numbered().dataset("train").__getitems__(range(300))
    for t in range(300):
        support, query = at(tasks, t)
        seen: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for batch, per_class in ((support, 2), (query, 3)):
            assert torch.bincount(batch.y, minlength=4).tolist() == [per_class] * 4
            for label, identity in zip(batch.y.tolist(), identities(batch.x), strict=True):
                seen[label].append(identity)
        classes = [{c for c, _ in found} for found in seen.values()]
        assert all(len(found) == 1 for found in classes), "a label stands for more than one class"
        assert len(set.union(*classes)) == 4, "a class has more than one label"
        assert all(len(set(found)) == 5 for found in seen.values()), "an example occurs twice"


def test_the_label_of_a_class_is_permuted_between_episodes() -> None:
    """Else a network could learn the labels by heart. Each of 4 labels is expected 3000 * 4 / 30 / 4 = 100 times."""
    support = numbered().dataset("train").__getitems__(range(3000)).support
    counts = np.zeros((30, 4), dtype=int)
    for (c, _), label in zip(identities(support.x.flatten(0, 1)), support.y.flatten().tolist(), strict=True):
        counts[c, label] += 1
    assert np.abs(counts / 2 - 100).max() < 55  # two support examples; 5.5 standard deviations of 10


def test_every_example_of_a_class_is_used() -> None:
    tasks = numbered().dataset("train").__getitems__(range(1000))
    for batch in tasks:
        assert len(set(identities(batch.x.flatten(0, 1)))) == 30 * 20


def test_images_are_between_zero_and_one_and_labels_are_int64() -> None:
    bank = ClassBank.from_classes(
        torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1, 1).expand(3, 4, 1, 1, 1)
    )
    support, query = bank.sample(np.arange(50, dtype=np.uint64), EpisodeShape(n_way=3, k_shot=1, n_query=2))
    assert support.x.unique().tolist() == query.x.unique().tolist() == pytest.approx([0, 0.2, 1])
    assert support.x.dtype == torch.float32
    assert support.y.dtype == query.y.dtype == torch.int64


def test_classes_of_unequal_size_give_all_their_examples_and_no_others() -> None:
    sizes = [3, 9, 4, 30]
    bank, shape = numbered_bank(sizes), EpisodeShape(n_way=3, k_shot=1, n_query=2)
    tasks = EpisodeDataset(bank, shape, 0, "train").__getitems__(range(2000))
    expected = {(c, e) for c, size in enumerate(sizes) for e in range(size)}
    assert {*identities(tasks.support.x.flatten(0, 1)), *identities(tasks.query.x.flatten(0, 1))} == expected


def test_from_classes_keeps_classes_apart() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(4, 3, 1, 1, 2)
    bank = ClassBank.from_classes(images)
    for c in range(4):
        rows = slice(bank.first[c], bank.first[c] + bank.size[c])
        assert torch.equal(bank.inputs[rows], images[c])


# ---- shapes ---------------------------------------------------------------------------------------------------------


def test_every_split_has_its_own_shape() -> None:
    module = numbered(train=ShapeOverride(n_way=10, n_query=1), test=ShapeOverride(k_shot=5))
    expected = {"train": (10, 2, 1), "val": (4, 2, 3), "test": (4, 5, 3)}
    for split, (n_way, k_shot, n_query) in expected.items():
        assert module.shapes[split] == (n_way, k_shot, n_query)
        episode = module.dataset(split)[0]
        assert episode.support.x.shape == (n_way * k_shot, 1, 1, 2)
        assert episode.query.x.shape == (n_way * n_query, 1, 1, 2)
        assert sorted(episode.query.y.unique().tolist()) == list(range(n_way))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_too_few_classes_name_both_numbers_and_the_split_before_training(split: str) -> None:
    with pytest.raises(ConfigError, match=rf"{split} episodes .* n_way=20\b.*\b{CLASSES} .*: data\.{split}\.n_way\.\)"):
        blobs(**{split: ShapeOverride(n_way=20)}).setup("fit")
    with pytest.raises(ConfigError, match=r"take a larger split\.$"):
        blobs(n_way=20).setup("fit")


def test_too_few_examples_name_all_numbers() -> None:
    with pytest.raises(ConfigError, match=rf"k_shot=2 \+ n_query={EXAMPLES - 1}\b.*\b{EXAMPLES};"):
        ready(blobs(n_query=EXAMPLES - 1)).train_dataloader()
    ready(blobs(n_query=EXAMPLES - 2)).train_dataloader()
    with pytest.raises(ConfigError, match=r"smallest class has 3\b"):
        numbered_bank([9, 3, 9]).check(EpisodeShape(2, 2, 2))


@pytest.mark.parametrize("name", ["n_way", "k_shot", "n_query", "meta_batch_size", "steps_per_epoch", "val_episodes"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        blobs(**{name: 0})


@pytest.mark.parametrize("name", ["n_way", "k_shot", "n_query"])
def test_counts_below_one_in_an_override_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="train"):
        blobs(train=ShapeOverride(**{name: 0}))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        ready(blobs(seed=-1)).train_dataloader()


def test_on_device_and_workers_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r"num_workers=2"):
        blobs(on_device=True, num_workers=2)


# ---- ranks ----------------------------------------------------------------------------------------------------------


def visited(loader: EpisodeLoader) -> list[int]:
    return [i for batch in range(len(loader)) for i in loader.ids_of_batch(batch)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("episodes", [1, 2, 7, 20, 21, 101])
def test_ranks_share_frozen_episodes_without_repetition_or_padding(world_size: int, episodes: int) -> None:
    module = numbered(val_episodes=episodes, test_episodes=episodes, eval_meta_batch_size=4)
    for loader in ("val_dataloader", "test_dataloader", "predict_dataloader"):
        shares = [visited(getattr(on_rank(module, rank, world_size), loader)()) for rank in range(world_size)]
        assert sorted(i for share in shares for i in share) == list(range(episodes))
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
        assert all(len(batch) > 0 for batch in shares[:episodes])


def test_frozen_loaders_of_ranks_yield_the_episodes_of_their_ids() -> None:
    module = numbered(test_episodes=11, eval_meta_batch_size=2)
    for rank in range(3):
        loader = on_rank(module, rank, 3).test_dataloader()
        played = [at(batch, t) for batch in loader for t in range(len(batch.query.y))]
        assert_same(played, [module.dataset("test")[i] for i in visited(loader)])


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_meta_batches_of_all_ranks_make_up_the_single_process_one(world_size: int) -> None:
    module = numbered()
    alone = list(module.train_dataloader())
    shares = [list(on_rank(module, rank, world_size).train_dataloader()) for rank in range(world_size)]
    for batch, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert all(len(part.query.y) == 6 // world_size for part in parts)
        assert_same(tree_map(lambda *leaves: torch.cat(leaves), *parts), batch)


@pytest.mark.parametrize("world_size", [4, 5, 7])
def test_meta_batch_size_must_be_a_multiple_of_the_world_size(world_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"meta_batch_size=6\b.*\b{world_size} devices"):
        on_rank(numbered(), 0, world_size).train_dataloader()


def test_an_epoch_is_no_longer_than_the_training() -> None:
    assert len(on_rank(numbered(), 0, 1, max_steps=2).train_dataloader()) == 2
    assert len(on_rank(numbered(), 0, 1, max_steps=99).train_dataloader()) == 3


# ---- the loader's state ---------------------------------------------------------------------------------------------


def play(loader: EpisodeLoader, batches: int) -> list[Episode]:
    """That many meta-batches, over as many epochs as it takes."""
    found: list[Episode] = []
    while len(found) < batches:
        for batch in loader:
            found.append(batch)
            if len(found) == batches:
                break
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_loader_resumes_where_it_stopped(workers: int, stop: int) -> None:
    """Epochs have 3 meta-batches, so stops 1, 2 and 4 are in the middle of one. Workers have drawn ahead by then."""
    uninterrupted = play(numbered().train_dataloader(), 8)
    stopped, resumed = (numbered(num_workers=workers).train_dataloader() for _ in range(2))
    play(stopped, stop)
    state = stopped.state_dict()
    resumed.load_state_dict(state)
    assert_same(play(resumed, 8 - stop), uninterrupted[stop:])
    assert state == stopped.state_dict(), "the state that was saved must not follow the loader"


def test_steps_after_the_last_validation_are_pointed_out() -> None:
    with pytest.warns(UserWarning, match=r"last 3 of max_steps=11 steps .* the 4 of an epoch divide"):
        on_rank(numbered(steps_per_epoch=4), 0, 1, max_steps=11).train_dataloader()


def test_a_loader_does_not_run_dry_before_the_epoch_ends() -> None:
    """Wherever it was resumed, and whatever epochs were before. (The Trainer counts where an epoch ends.)"""
    loader, whole = (numbered().train_dataloader() for _ in range(2))
    expected = play(whole, 10)
    loader.load_state_dict({"position": 4})
    assert_same([*loader, *loader], expected[4:10])


def test_training_goes_on_with_new_episodes_and_evaluation_starts_again() -> None:
    module = numbered(eval_meta_batch_size=3)
    train, val = module.train_dataloader(), module.val_dataloader()
    first, second = list(train), list(train)
    assert all(differ(a, b) for a in first for b in second)
    next(iter(val))
    assert_same(list(val), list(val))


# ---- sinusoid -------------------------------------------------------------------------------------------------------


def sine_fit(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Amplitude, phase and largest residual of the least-squares fit of `y = a sin x + b cos x`."""
    basis = torch.cat([x.double().sin(), x.double().cos()], dim=1)
    a, b = solution = torch.linalg.lstsq(basis, y.double()).solution.flatten()
    residual = (basis @ solution - y.flatten()).abs().max()
    return torch.hypot(a, b).item(), torch.atan2(-b, a).item(), residual.item()


def test_sine_waves_have_the_papers_distribution() -> None:
    """MAML, section 5.1: amplitude in [0.1, 5], phase in [0, pi], x in [-5, 5], all uniform."""
    tasks = ready(Sinusoid(k_shot=10, n_query=20)).dataset("train").__getitems__(range(2000))
    x, y = torch.cat([tasks.support.x, tasks.query.x], 1), torch.cat([tasks.support.y, tasks.query.y], 1)
    amplitudes, phases, residuals = torch.tensor([sine_fit(*task) for task in zip(x, y, strict=True)]).T
    assert residuals.max() < 1e-5
    for values, low, high in ((amplitudes, 0.1, 5.0), (phases, 0.0, np.pi), (x.flatten(), -5.0, 5.0)):
        assert low - 1e-4 <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-4
        standard_error = (high - low) / (12 * len(values)) ** 0.5
        assert abs(values.mean() - (low + high) / 2) < 5 * standard_error
    assert abs(torch.corrcoef(torch.stack([amplitudes, phases]))[0, 1]) < 5 / 2000**0.5


def test_support_and_query_lie_on_the_same_wave() -> None:
    tasks = ready(Sinusoid(k_shot=10, n_query=15)).dataset("test").__getitems__(range(50))
    assert tasks.support.x.shape == tasks.support.y.shape == (50, 10, 1)
    assert tasks.query.x.shape == tasks.query.y.shape == (50, 15, 1)
    for t in range(50):
        (amplitude, phase, _), query = sine_fit(*at(tasks, t).support), at(tasks, t).query
        torch.testing.assert_close(query.y, amplitude * (query.x - phase).sin(), rtol=0, atol=1e-4)


def test_sine_waves_are_pure_and_splits_differ() -> None:
    module = ready(Sinusoid(seed=3))
    for split in SPLITS:
        assert_same(module.dataset(split)[5], at(module.dataset(split).__getitems__([9, 5]), 1))
    waves = [ready(Sinusoid(seed=seed)).dataset(split)[5] for seed in (3, 4) for split in SPLITS]
    assert len({wave.support.x[0].item() for wave in waves}) == 6


def test_more_than_one_way_of_a_sine_wave_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_way must be 1, not 5"):
        ready(Sinusoid(n_way=5)).train_dataloader()
