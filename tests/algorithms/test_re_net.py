"""RENet (re_net) against its definition: one window, one pair of images and one offset of a kernel at a time."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import RENet
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, Make, conv4, random_episodes

SETTINGS = dict(n_classes=CLASSES, hidden=5)
CASES: dict[str, Make] = {"re_net": lambda: RENet(conv4(halvings=3), **SETTINGS)}


def normalised(x: Tensor) -> Tensor:
    """By the batch, `(B, C, ...)`."""
    axes = (0, *range(2, x.ndim))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def mixed(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution."""
    return torch.einsum("oi,bi...->bo...", layer.weight.flatten(1), x)


def relational(module: RENet, maps: Tensor) -> Tensor:
    """Within images: windows around each place, and what two 3x3 kernels make of them."""
    unit = F.normalize(maps.relu(), dim=1)
    images, channels, height, width = unit.shape
    windows = torch.zeros(images, channels, height, width, 5, 5).to(unit)
    for i, j, u, v in product(range(height), range(width), range(5), range(5)):
        if 0 <= i + u - 2 < height and 0 <= j + v - 2 < width:
            windows[:, :, i, j, u, v] = unit[:, :, i, j] * unit[:, :, i + u - 2, j + v - 2]
    convolutions = [layer for layer in module.within.patterns if isinstance(layer, nn.Conv3d)]
    x = normalised(mixed(convolutions[0], windows)).relu()
    for layer in convolutions[1:3]:
        side = x.shape[4] - 2
        out = torch.zeros(images, layer.out_channels, height, width, side, side).to(x)
        for u, v in product(range(3), range(3)):
            part = x[:, :, :, :, u : u + side, v : v + side]
            out += torch.einsum("oi,bi...->bo...", layer.weight[:, :, 0, u, v], part)
        x = normalised(out).relu()
    return (maps + normalised(mixed(convolutions[3], x[..., 0, 0]))).relu()


def over(x: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """A 3x3 kernel `(O, I, 3, 3)` over two neighbouring axes of `(B, I, H, W, H, W)`, with zeros around."""
    out = torch.zeros(len(x), len(kernel), *x.shape[2:]).to(x)
    for u, v in product((-1, 0, 1), (-1, 0, 1)):
        moved = torch.zeros_like(x)
        for i, j in product(range(x.shape[axis]), range(x.shape[axis + 1])):
            if 0 <= i + u < x.shape[axis] and 0 <= j + v < x.shape[axis + 1]:
                moved.select(axis, i).select(axis, j).copy_(x.select(axis, i + u).select(axis, j + v))
        out += torch.einsum("oi,bi...->bo...", kernel[:, :, u + 1, v + 1], moved)
    return out


def refined(module: RENet, pairs: Tensor) -> Tensor:
    """In four dimensions, both orders of a pair."""
    x = torch.cat([pairs, pairs.permute(0, 1, 4, 5, 2, 3)])
    first, _, second = module.between
    for block in (first, second):
        x = normalised(over(x, block.first[0].weight[..., 0], 2)).relu()
        x = normalised(over(x, block.last[0].weight[:, :, 0], 4))
        x = normalised(mixed(block.mix[0], x))
        x = x.relu() if block is first else x
    there, back = x.chunk(2)
    return (there + back.permute(0, 1, 4, 5, 2, 3))[:, 0]


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize("k_shot", [1, 2])
@torch.no_grad()
def test_logits_and_losses_equal_the_definition(mode: str, k_shot: int) -> None:
    module, tasks = RENet(conv4(halvings=3), task_mode=mode, episode_weight=0.7, **SETTINGS).double(), random_episodes(
        k_shot=k_shot
    )  # fmt: skip
    names = torch.tensor([2, 5, 7])
    plain = module.eval().play(tasks)
    training = module.train().play(Episode(*(Batch(x, names[y]) for x, y in tasks)))
    for t in range(3):
        labels, truth = tasks.support.y[t], tasks.query.y[t]
        support, query = (relational(module, module.backbone(b.x[t]).unflatten(1, (6, 2, 2))) for b in tasks)
        plain_maps = support, query
        support, query = (x - x.mean(1, keepdim=True) for x in plain_maps)
        small = [F.normalize(normalised(mixed(module.reduce[0], x)).relu(), dim=1) for x in (support, query)]
        pairs = torch.stack([torch.einsum("dij,dkl->ijkl", s, q) for q in small[1] for s in small[0]])
        scores = refined(module, pairs[:, None]).unflatten(0, (len(query), len(support)))
        logits = torch.zeros(len(query), 3).double()
        for q, c in product(range(len(query)), range(3)):
            images = []
            for s in (labels == c).nonzero()[:, 0]:
                both = scores[q, s].flatten(2).flatten(0, 1)  # support places, query places
                attended = []
                for image, matrix in ((support[s], both), (query[q], both.T)):
                    standard = (matrix - matrix.mean(0)) / (matrix.var(0) + 1e-5).sqrt()
                    attention = (standard / 5).softmax(0).mean(1)
                    attended.append(image.flatten(1) @ attention)
                images.append(torch.stack(attended))
            mine, its = torch.stack(images).mean(0)
            logits[q, c] = torch.cosine_similarity(mine, its, dim=0) / 0.2
        torch.testing.assert_close(plain.preds[t, :, :3], logits, rtol=1e-7, atol=1e-8)
        assert (plain.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(training.preds[t][:, names], logits, rtol=1e-7, atol=1e-8)
        named = module.classifier(torch.cat(plain_maps).mean((2, 3)))
        loss = F.cross_entropy(named, names[torch.cat([labels, truth])]) + 0.7 * F.cross_entropy(logits, truth)
        torch.testing.assert_close(training.loss[t], loss, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_two_images_are_as_alike_as_in_the_other_order() -> None:
    support = random_episodes(k_shot=1, n_way=5).support
    preds = RENet(conv4(halvings=3), **SETTINGS).double().eval().play(Episode(support, support)).preds
    by_slot = preds.gather(2, support.y[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(by_slot, by_slot.mT, rtol=1e-9, atol=1e-10)
    assert (by_slot.diagonal(dim1=1, dim2=2) - by_slot.amax(2)).abs().max() < 1e-9  # and most like themselves


def test_what_has_no_places_to_relate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Conv4 have one place; take larger maps"):
        RENet(conv4(halvings=4), n_classes=CLASSES)
    with pytest.raises(ConfigError, match=r"temperature=0 must be positive"):
        RENet(conv4(halvings=2), temperature=0)
