"""Small, seeded episodes and networks shared by the tests."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.backbones import Conv4, NextToken, TokenLSTM
from lightning_meta.core import Batch, Episode, TaskOutput
from lightning_meta.core.episode import EpisodeShape, Split
from lightning_meta.core.sampling import episode_keys
from lightning_meta.core.sentences import nats_per_token
from lightning_meta.datamodules import (
    Babble,
    Ciphers,
    ClassificationDataModule,
    MadeUpEntities,
    RuleGraph,
    Scenes,
    Sinusoid,
    SwitchedCiphers,
    Topics,
    VoiceMixtures,
)
from lightning_meta.datamodules.audio.chorales import draw_chorale
from lightning_meta.datamodules.audio.midi import passage_of, write_midi
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.images import image_folder
from lightning_meta.datamodules.sequences import midi_folder
from lightning_meta.datamodules.sequences.midi_events import Ticks
from lightning_meta.metrics import EpisodicNatsPerToken
from lightning_meta.modules import EpisodicModule

Make = Callable[[], EpisodicModule]
CLASSES, EXAMPLES, SIZE = 12, 12, 16
needs_learn2learn = pytest.mark.skipif(find_spec("learn2learn") is None, reason="learn2learn is not installed")


class Blobs(ClassificationDataModule):
    """Synthetic images: each class is a fixed random pattern, each example the pattern under noise."""

    def load_source(self, split: Split) -> ClassBank:
        generator = torch.Generator().manual_seed({"train": 1, "val": 2, "test": 3}[split])
        patterns = torch.rand(CLASSES, 1, 1, SIZE, SIZE, generator=generator)
        noise = torch.rand(CLASSES, EXAMPLES, 1, SIZE, SIZE, generator=generator)
        return ClassBank.from_classes(((0.6 * patterns + 0.4 * noise) * 255).to(torch.uint8))


def blobs(**overrides: Any) -> Blobs:
    """3-way 2-shot episodes, quick to play."""
    settings = dict(n_way=3, k_shot=2, n_query=2, meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return Blobs(**(settings | overrides))


def conv4(norm: str = "transductive", **overrides: Any) -> Conv4:
    return Conv4(**(dict(image_size=SIZE, hidden=6, norm=norm) | overrides))


def smooth(network: nn.Module) -> nn.Module:
    """Replace ReLU and max-pooling, whose kinks spoil finite differences, by tanh and average pooling."""
    for name, child in network.named_children():
        if isinstance(child, nn.ReLU):
            setattr(network, name, nn.Tanh())
        elif isinstance(child, nn.MaxPool2d):
            setattr(network, name, nn.AvgPool2d(2))
        else:
            smooth(child)
    return network


def random_episodes(n_tasks: int = 3, n_way: int = 3, k_shot: int = 2, n_query: int = 2) -> Episode:
    """Random float64 images with labels in random order."""
    generator = torch.Generator().manual_seed(0)

    def batch(per_class: int) -> Batch:
        x = torch.rand(n_tasks, n_way * per_class, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
        labels = torch.arange(n_way).repeat(per_class)
        y = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(n_tasks)])
        return Batch(x, y)

    return Episode(batch(k_shot), batch(n_query))


def feature_episodes(n_way: int = 3, k_shot: int = 2, n_query: int = 5, width: int = 8, noise: float = 0.5) -> Episode:
    """Three tasks of random float64 features, no less than zero, that scatter around their classes; mixed labels."""
    generator = torch.Generator().manual_seed(0)
    centers_TNW = torch.rand(3, n_way, width, generator=generator, dtype=torch.float64)

    def batch(per_class: int) -> Batch:
        labels = torch.arange(n_way).repeat(per_class)
        y = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(3)])
        scatter = torch.randn(3, len(labels), width, generator=generator, dtype=torch.float64)
        return Batch((centers_TNW[torch.arange(3)[:, None], y] + noise * scatter).relu(), y)

    return Episode(batch(k_shot), batch(n_query))


def sinusoids() -> Sinusoid:
    """As many episodes as in `blobs`, quick to play."""
    return Sinusoid(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)


def random_functions(n_tasks: int = 3, k_shot: int = 6, n_query: int = 4) -> Episode:
    """Random float64 values at random places."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(n_tasks, points, 1) for points in (k_shot, k_shot, n_query, n_query)]
    draws = [2 * torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return Episode(Batch(*draws[:2]), Batch(*draws[2:]))


def ciphers(**overrides: Any) -> Ciphers:
    """As many episodes as in `blobs`, of languages of 8 words."""
    settings: dict[str, Any] = dict(k_shot=5, n_query=3, vocabulary=11, train_languages=20, val_languages=3)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return Ciphers(**(settings | overrides))


def random_sentences(n_tasks: int = 3, k_shot: int = 5, n_query: int = 4) -> Episode:
    """Of languages of 8 words, no longer than 8."""
    source = ciphers().load_source("train")
    return source.sample(episode_keys(0, 0, range(n_tasks)), EpisodeShape(1, k_shot, n_query))


def rule_graph(**overrides: Any) -> RuleGraph:
    """As many episodes as in `blobs`, of a graph with 60 ids."""
    settings: dict[str, Any] = dict(n_query=3, vocabulary=60, candidates=6, types=3, properties=3, values=2)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return RuleGraph(**(settings | overrides))


def random_pairs(n_tasks: int = 3, k_shot: int = 2, n_query: int = 3) -> Episode:
    """Pairs of a graph with 60 ids, and others among 6 candidates."""
    source = rule_graph().load_source("train")
    return source.sample(episode_keys(0, 0, range(n_tasks)), EpisodeShape(1, k_shot, n_query))


def babble(**overrides: Any) -> Babble:
    """As many episodes as in `blobs`, of strings of one to three of three words; two speakers in those of queries."""
    settings: dict[str, Any] = dict(
        vocabulary=4, shortest=2, longest=3, query_speakers=2, seconds=0.5, step=0.05, bands=6
    )
    settings |= dict(k_shot=4, n_query=3, train_speakers=5, val_speakers=2, test_speakers=3, takes=2)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return Babble(**(settings | overrides))


def random_strings(n_tasks: int = 3, k_shot: int = 5, n_query: int = 4) -> Episode:
    """Strings of two or three of three words, in float64."""
    source = babble().load_source("train")
    source = replace(source, spectra=source.spectra.double())
    return source.sample(episode_keys(0, 0, range(n_tasks)), EpisodeShape(1, k_shot, n_query))


def made_up_entities(**overrides: Any) -> MadeUpEntities:
    """As many episodes as in `blobs`, of short lists of languages."""
    settings: dict[str, Any] = dict(k_shot=4, n_query=3, vocabulary=100, train_languages=20, val_languages=3)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return MadeUpEntities(**(settings | overrides))


def random_tagged(n_tasks: int = 3, k_shot: int = 4, n_query: int = 3) -> Episode:
    """Sentences of made-up languages with the tags of their words."""
    source = made_up_entities().load_source("train")
    return source.sample(episode_keys(0, 0, range(n_tasks)), EpisodeShape(9, k_shot, n_query))


def topics(**overrides: Any) -> Topics:
    """As many episodes as in `blobs`, of documents of 11 words."""
    settings: dict[str, Any] = dict(documents=[20, 3, 3], tokens=60, k_shot=3, n_query=2, vocabulary=14, length=6)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return Topics(**(settings | overrides))


def midi_files(folder: Path, count: int) -> list[str]:
    """Drawn chorales, in folders as Lakh's; their names from `folder` in order."""
    for number, key in enumerate(episode_keys(17, 0, range(count))):
        path = folder / f"{number % 3}" / f"{number}.{'midi' if number % 2 else 'mid'}"
        write_midi(path, passage_of(draw_chorale(key, 8)).voices, ("soprano", "alto", "tenor", "bass"), 0.15)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mid*"))


@pytest.fixture
def midi_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where mido is missing, a reader that is enough for files that we wrote."""
    from tests.datamodules.test_midi import read

    def read_ticks(path: Path) -> Ticks:
        division, tracks = read(path.read_bytes())
        return Ticks([note for _, _, notes in tracks for note in notes], division)

    if find_spec("mido") is None:
        monkeypatch.setattr(midi_folder, "need", lambda *_: None)
        monkeypatch.setattr(midi_folder, "read_ticks", read_ticks)


def switched_ciphers(**overrides: Any) -> SwitchedCiphers:
    """As many episodes as in `blobs`, of languages of 8 words."""
    settings: dict[str, Any] = dict(vocabulary=19, pairs=[20, 3, 3], k_shot=4, n_query=5)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return SwitchedCiphers(**(settings | overrides))


def random_sequences(n_tasks: int = 3, k_shot: int = 3, n_query: int = 4) -> Episode:
    """Of documents of 11 words, in chunks of 6 tokens."""
    source = topics(tokens=60).load_source("train")
    return source.sample(episode_keys(0, 0, range(n_tasks)), EpisodeShape(1, k_shot, n_query))


def next_tokens(kind: type[NextToken] = TokenLSTM, **overrides: Any) -> dict[str, Any]:
    """Settings of a module that predicts tokens, those of `random_sequences` unless told otherwise."""
    backbone = kind(**(dict(vocabulary=14, length=6, width=8) | overrides))
    return {"backbone": backbone, "n_way": 1, "loss_fn": nats_per_token, "metric": EpisodicNatsPerToken()}


def random_masks(n_tasks: int = 3, n_way: int = 3, k_shot: int = 2, n_query: int = 2) -> Episode:
    """Random float64 scenes with a rectangle of a class in each, labelled by masks."""
    scenes = random_boxes(n_tasks, n_way, k_shot, n_query)
    places = torch.arange(2 * SIZE)

    def masked(batch: Batch) -> Batch:
        label, top, left, bottom, right = batch.y[:, :, 0, :, None, None].unbind(2)
        inside = (places[:, None] >= top) & (places[:, None] < bottom) & (places >= left) & (places < right)
        return Batch(batch.x, torch.where(inside, label + 1, 0).long())

    return Episode(*map(masked, scenes))


def random_boxes(n_tasks: int = 3, n_way: int = 3, k_shot: int = 2, n_query: int = 2) -> Episode:
    """Random float64 scenes `(1, 2 SIZE, 2 SIZE)` with one object and one piece of clutter in each."""
    generator = torch.Generator().manual_seed(0)

    def batch(per_class: int) -> Batch:
        size = (n_tasks, n_way * per_class)
        x = torch.rand(*size, 1, 2 * SIZE, 2 * SIZE, generator=generator, dtype=torch.float64)
        labels = torch.arange(n_way).repeat(per_class).expand(size)[..., None]
        corners = torch.randint(SIZE, (*size, 2), generator=generator)
        boxes = torch.cat([labels, corners, corners + torch.randint(4, SIZE, (*size, 2), generator=generator)], -1)
        return Batch(x, torch.stack([boxes, torch.full_like(boxes, -1)], 2).double())

    return Episode(batch(k_shot), batch(n_query))


def scenes(targets: Literal["masks", "boxes"], **overrides: Any) -> Scenes:
    """As many episodes as in `blobs`, of scenes of their images."""
    settings: dict[str, Any] = dict(objects=2, clutter=1, jitter=0, n_way=2, k_shot=1, n_query=2)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return Scenes(blobs(), targets, **(settings | overrides))


def random_mixtures(n_tasks: int = 3, voices: int = 4, k_shot: int = 2, n_query: int = 4) -> Episode:
    """Random float64 voices of different colours and their sums."""
    generator = torch.Generator().manual_seed(0)
    time_L = torch.arange(96, dtype=torch.float64)

    def batch(count: int) -> Batch:
        frequency = torch.rand(n_tasks, 1, voices, 1, generator=generator, dtype=torch.float64)
        phase, level = torch.rand(2, n_tasks, count, voices, 1, generator=generator, dtype=torch.float64)
        y = (0.5 + level) * torch.sin(frequency * time_L + 6 * phase)
        y = y + 0.3 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        return Batch(y.sum(2), y)

    return Episode(batch(k_shot), batch(n_query))


def chorales(**overrides: Any) -> VoiceMixtures:
    """As many episodes as in `blobs`, of three short segments."""
    settings: dict[str, Any] = dict(pieces=[2, 1, 1], seconds=0.6, segments=3, n_query=2)
    settings |= dict(meta_batch_size=4, steps_per_epoch=4, val_episodes=5, test_episodes=7)
    return VoiceMixtures(**(settings | overrides))


def put_in_force(module: nn.Module, out: TaskOutput) -> None:
    """The buffers that the hooks returned, as an outer update does."""
    for name, values in out.buffers.items():
        module.get_buffer(name).copy_(values.mean(0))


def slope_along(module: EpisodicModule, tasks: Episode, directions: dict[str, Tensor], step: float) -> float:
    """Of the query loss as all parameters move in a direction, by central differences."""
    rises = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, value in module.named_parameters():
                value += sign * step * directions[name]
        rises.append(module.play(tasks).loss.mean().item())
        with torch.no_grad():
            for name, value in module.named_parameters():
                value -= sign * step * directions[name]
    return (rises[0] - rises[1]) / (2 * step)


def meta_gradient(module: nn.Module, tasks: Episode) -> dict[str, Tensor]:
    """Gradient of the mean query loss with respect to every parameter of the module."""
    module.zero_grad()
    module.play(tasks).loss.mean().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def autograd_meta_gradient(
    module: nn.Module,
    tasks: Episode,
    steps: int,
    rate: Callable[[str, int], Tensor | float],
    create_graph: bool = True,
    prefix: str = "",
) -> dict[str, Tensor]:
    """The textbook double loop by torch.autograd: no torch.func, no vmap; for transductive normalisation.

    Args:
        module: has a `learner`, whose cross-entropy after adaptation is differentiated.
        tasks: the meta-batch.
        steps: inner steps.
        rate: step size of a parameter in a step, by name and step.
        create_graph: False detaches the inner gradients, which is FOMAML's definition.
        prefix: only parameters of the learner whose names start so are adapted.
    """
    theta = dict(module.learner.named_parameters())
    losses = []
    for t in range(len(tasks.support.x)):
        phi = {name: value for name, value in theta.items() if name.startswith(prefix)}
        for step in range(steps):
            loss = F.cross_entropy(functional_call(module.learner, phi, tasks.support.x[t]), tasks.support.y[t])
            grads = torch.autograd.grad(loss, list(phi.values()), create_graph=create_graph)
            phi = {name: p - rate(name, step) * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(module.learner, phi, tasks.query.x[t]), tasks.query.y[t]))
    module.zero_grad()
    torch.stack(losses).mean().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def write_checkpoint(
    path: Path, step: int, score: float | None = None, weights: Tensor | None = None, **others: Any
) -> Path:
    """A checkpoint as `EpisodicCheckpoint` has them. `others` is what else it says of itself."""
    model = others.pop("model", "lightning_meta.algorithms.MAML")
    state = {"monitor": "val/acc", "mode": "max", "score": score, "time": step} | others
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "state_dict": {} if weights is None else {"weights": weights},
            "global_step": step,
            "hyper_parameters": {"_class_path": model},
            "callbacks": {"EpisodicCheckpoint{...}": state},
        },
        path,
    )
    return path


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def _small_images(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of folders that a test has made go where its other files are."""
    monkeypatch.setattr(image_folder, "SMALL_IMAGES", tmp_path_factory.getbasetemp() / "small_images")


@pytest.fixture
def episodes() -> Episode:
    return random_episodes()
