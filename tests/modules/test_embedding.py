"""One pass of the backbone over a meta-batch gives what task by task does; frozen backbones are passed once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lightning_meta.algorithms import CNPClassifier, ProtoNet, RelationNet
from lightning_meta.backbones import Backbone, EpisodicBatchNorm2d
from lightning_meta.core import Batch, Episode, TaskOutput
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EmbeddingModule
from tests.conftest import SIZE, Blobs, blobs, conv4, meta_gradient, random_episodes


def by_task(module: EmbeddingModule, tasks: Episode) -> TaskOutput:
    """The definition: the hooks on inputs, for one task after the other."""
    outs = []
    for t in range(len(tasks.support.x)):
        support, query = tree_map(lambda leaf, t=t: leaf[t], tasks)
        outs.append(module.query_loss(module.adapt(support), query))
    return tree_map(lambda *leaves: torch.stack(leaves), *outs)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["inductive", "transductive"])
def test_one_pass_equals_task_by_task_in_value_and_gradient(
    norm: str, training: bool, chunk_size: int | None, episodes: Episode
) -> None:
    module = ProtoNet(conv4(norm), task_chunk_size=chunk_size).double().train(training)
    expected = by_task(module, episodes)
    expected.loss.mean().backward()
    gradient = {name: p.grad.clone() for name, p in module.named_parameters()}
    torch.testing.assert_close(module.play(episodes), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(meta_gradient(module, episodes), gradient, rtol=1e-8, atol=1e-12)


def test_running_statistics_are_those_of_the_whole_meta_batch(episodes: Episode) -> None:
    """As a plain network with `nn.BatchNorm2d` that is fed all images at once; in evaluation every task is alone."""
    module = ProtoNet(conv4("running")).double()
    network = nn.Sequential()
    for conv, norm, *rest in module.backbone.blocks:
        plain = nn.BatchNorm2d(len(norm.weight)).double()
        network.extend([conv, plain, *rest])
    images = torch.cat([batch.x.flatten(0, 1) for batch in episodes])
    features = network(images).flatten(1)
    support_TSD, query_TQD = (
        part.unflatten(0, (3, -1)) for part in features.split([batch.y.numel() for batch in episodes])
    )
    losses = []
    for t in range(3):
        means = torch.stack([support_TSD[t][episodes.support.y[t] == c].mean(0) for c in range(3)])
        losses.append(F.cross_entropy(-torch.cdist(query_TQD[t], means).square(), episodes.query.y[t]))
    torch.testing.assert_close(module.play(episodes).loss, torch.stack(losses), rtol=1e-9, atol=1e-11)
    for norm, plain in zip(
        (block[1] for block in module.backbone.blocks),
        (layer for layer in network if isinstance(layer, nn.BatchNorm2d)),
        strict=True,
    ):
        torch.testing.assert_close(norm.running_mean, plain.running_mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-10, atol=1e-12)
    module.eval()
    torch.testing.assert_close(module.play(episodes), by_task(module, episodes), rtol=1e-10, atol=1e-12)


def test_the_backbone_is_called_once_for_a_meta_batch(episodes: Episode) -> None:
    calls: list[int] = []
    module = ProtoNet(conv4()).double()
    module.backbone.register_forward_hook(lambda _, inputs, output: calls.append(len(output)))
    module.play(episodes)
    assert calls == [3 * (6 + 6)]


class Foreign(Backbone):
    """A network whose normalisation knows no tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4, track_running_stats=False)
        self.in_shape, self.out_features = (1, SIZE, SIZE), 4

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def test_a_foreign_normalisation_by_the_batch_sees_one_task_at_a_time(episodes: Episode) -> None:
    module = ProtoNet(Foreign()).double()
    torch.testing.assert_close(module.play(episodes), by_task(module, episodes), rtol=1e-10, atol=1e-12)


def test_foreign_and_inductive_normalisation_side_by_side(episodes: Episode) -> None:
    """Our layer takes the support's statistics for the query set, there too."""

    class Both(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.ours = EpisodicBatchNorm2d(4, "inductive")

        def forward(self, x: Tensor) -> Tensor:
            return self.ours(self.conv(x) * self.norm(self.conv(x)).square()).relu().mean((2, 3))

    module = ProtoNet(Both()).double()
    torch.testing.assert_close(module.play(episodes), by_task(module, episodes), rtol=1e-10, atol=1e-12)


def test_features_that_depend_on_the_episode_are_not_kept(tmp_path: Path) -> None:
    """A frozen foreign network that normalises by the batch: its features of a whole data set are no episode's."""
    module, data = ProtoNet(Foreign(), freeze=True, feature_folder=str(tmp_path)), blobs()
    run = pl.Trainer(
        accelerator="cpu", inference_mode=False, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    (scores,) = run.test(module, data, verbose=False)
    assert not [*tmp_path.iterdir()]
    episodes = data.dataset("test").__getitems__(range(data.test_episodes))
    expected = by_task(module, episodes).loss.mean()
    assert scores["test/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_head_with_running_statistics_is_mapped_by_a_loop(episodes: Episode) -> None:
    relation = RelationNet(conv4("running", halvings=2), hidden=6, norm="running").double()
    relation.play(episodes)
    assert relation.relation[0].running_mean.abs().max() > 0
    relation.task_mode = "vmap"
    with pytest.raises(ConfigError, match="task_mode: loop"):
        relation.play(episodes)


@pytest.mark.parametrize("norm", ["running", "inductive", "transductive"])
def test_in_bfloat16_the_meta_gradient_keeps_its_direction(norm: str) -> None:
    """Convolutions and normalisation take bfloat16; the head and the statistics are in fp32."""
    torch.manual_seed(0)
    module = ProtoNet(conv4(norm))
    tasks = tree_map(lambda leaf: leaf.float() if leaf.is_floating_point() else leaf, random_episodes(n_tasks=8))
    seen: list[torch.dtype] = []
    module.backbone.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact = meta_gradient(module, tasks)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = meta_gradient(module, tasks)
    assert seen == [torch.float32, torch.bfloat16]
    a, b = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (exact, rounded))
    assert F.cosine_similarity(a, b, dim=0) > 0.97  # noise images, tiny network: worse than any real training


class Counting(Backbone):
    """A projection that counts the images it gets."""

    def __init__(self, out_features: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE * SIZE, out_features)
        self.in_shape, self.out_features, self.images = (1, SIZE, SIZE), out_features, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.linear(x.flatten(1)).tanh()


def trainer(folder: Path) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", inference_mode=False, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
    )  # fmt: skip


def frozen(folder: Path) -> CNPClassifier:
    torch.manual_seed(0)
    return CNPClassifier(Counting(), n_way=3, hidden=(16,), freeze=True, feature_folder=str(folder / "features"))


def test_a_frozen_backbone_stays_as_it_is_and_embeds_every_image_once(tmp_path: Path) -> None:
    module = frozen(tmp_path)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer(tmp_path).fit(module, datamodule=blobs())
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("decoder")}
    images = sum(len(blobs().load_source(split).inputs) for split in ("train", "val"))
    assert module.backbone.images == images
    again = frozen(tmp_path)
    trainer(tmp_path).fit(again, datamodule=blobs())
    assert again.backbone.images == 0  # the file had them
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    other = frozen(tmp_path)
    with torch.no_grad():
        other.backbone.linear.bias += 1
    trainer(tmp_path).fit(other, datamodule=blobs())
    assert other.backbone.images == images  # other weights, other features


def test_cached_features_give_what_the_images_give(tmp_path: Path) -> None:
    module, data = frozen(tmp_path), blobs()
    (result,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
    plain = blobs()
    plain.setup("test")
    tasks = plain.dataset("test").__getitems__(range(7))
    out = module.eval().play(tasks)
    assert result["test/loss"] == pytest.approx(out.loss.mean().item(), rel=1e-5)
    support, query = tree_map(lambda leaf: leaf[0], tasks)  # after the test it takes images again
    assert module.predict(module.adapt(support), query.x).shape[0] == len(query.x)


def test_restored_weights_are_those_that_make_the_features(tmp_path: Path) -> None:
    """A checkpoint is read after `setup`; features computed before that would be those of other weights."""
    trained = frozen(tmp_path)
    with torch.no_grad():
        trained.backbone.linear.weight *= -3
    first = trainer(tmp_path)
    (expected,) = first.test(trained, datamodule=blobs(), verbose=False)
    first.save_checkpoint(tmp_path / "trained.ckpt")
    (result,) = trainer(tmp_path).test(
        frozen(tmp_path), datamodule=blobs(), ckpt_path=tmp_path / "trained.ckpt", weights_only=True, verbose=False
    )
    assert result == expected


@pytest.mark.parametrize("data", [lambda: blobs(task_augmentation=["rotate"]), blobs])
def test_where_features_depend_on_the_episode_none_are_kept(data: Callable[[], Blobs], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"freeze": True, "feature_folder": str(tmp_path / "features")}
    backbone = Counting() if data is not blobs else conv4("transductive")
    module = CNPClassifier(backbone, n_way=3, hidden=(16,), **settings)
    trainer(tmp_path).fit(module, datamodule=data())
    assert not (tmp_path / "features").exists()


def test_features_are_not_computed_in_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.num_workers to 0"):
        trainer(tmp_path).fit(frozen(tmp_path), datamodule=blobs(num_workers=1))


def test_hooks_on_inputs_are_left_to_the_user(episodes: Episode) -> None:
    """`adapt` and `predict` take images, whatever the hooks on features see."""
    module = ProtoNet(conv4("inductive")).double().eval()
    support, query = tree_map(lambda leaf: leaf[0], episodes)
    with torch.no_grad():
        predicted = module.predict(module.adapt(Batch(support.x, support.y)), query.x)
        torch.testing.assert_close(predicted, module.play(episodes).preds[0].softmax(-1))
