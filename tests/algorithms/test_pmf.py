"""P > M > F: its fine-tuning against a loop of torch.optim, and its distortions."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from lightning_meta.algorithms import PMF, ProtoNet
from lightning_meta.algorithms.compare.pmf import distorted
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import Make, conv4, random_episodes

CASES: dict[str, Make] = {"pmf": lambda: PMF(conv4(), finetune_steps=2)}
VARIANTS: dict[str, Make] = {"pmf-euclidean": lambda: PMF(conv4(), distance="euclidean", finetune_steps=1)}


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_fine_tuning_is_that_of_torch_optim(mode: str, episodes: Episode) -> None:
    module = PMF(conv4("running"), finetune_steps=3, finetune_lr=0.01, task_mode=mode).double().eval()
    found = module.play(episodes).preds
    for t in range(len(found)):
        x, y = episodes.support.x[t], episodes.support.y[t]
        backbone = deepcopy(module.backbone)
        optimizer = torch.optim.Adam(backbone.parameters(), lr=0.01)

        def logits(queries: torch.Tensor) -> torch.Tensor:
            features = backbone(x)  # noqa: B023 - called within the turn
            means = torch.stack([features[y == c].mean(0) for c in range(3)])  # noqa: B023
            return 10 * F.cosine_similarity(backbone(queries)[:, None], means, dim=-1)  # noqa: B023

        for step in range(3):
            optimizer.zero_grad()
            F.cross_entropy(logits(distorted(x, step)), y).backward()
            optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(found[t, :, :3], logits(episodes.query.x[t]), rtol=1e-6, atol=1e-7)


def test_without_fine_tuning_it_is_protonet(episodes: Episode) -> None:
    plain = ProtoNet(conv4("running"), distance="cosine").double().eval()
    module = PMF(conv4("running"), finetune_steps=0).double().eval()
    module.load_state_dict(plain.state_dict())
    torch.testing.assert_close(module.play(episodes).preds, plain.play(episodes).preds)


def test_fine_tuning_lowers_the_loss_of_its_distortions() -> None:
    """In every task."""
    episodes = random_episodes()
    module = PMF(conv4("running"), finetune_steps=20, finetune_lr=0.003).double().eval()
    for x, y in zip(*episodes.support, strict=True):
        support = Batch(x, y)
        phi = module.adapt(support).statistics
        start = dict(module.backbone.named_parameters())
        before, after = (
            sum(module.distorted_loss(weights, support, step).item() for step in range(20)) for weights in (start, phi)
        )
        assert after < 0.99 * before


def test_images_are_moved_by_an_eighth_at_most() -> None:
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 14, 14] = 1
    places = set()
    for step in range(200):
        down, right = divmod(distorted(image, step).flatten().argmax().item(), 28)
        assert max(abs(down - 14), abs(right - 14)) <= 4
        places.add((down, right))
    assert len(places) > 60  # of 81
    torch.testing.assert_close(distorted(image, 7), distorted(image, 7), rtol=0, atol=0)


def test_of_grey_images_saturation_is_left_as_it_is() -> None:
    grey = torch.rand(2, 1, 16, 16).expand(-1, 3, -1, -1)
    colours = distorted(grey, 3)
    torch.testing.assert_close(colours[:, 0], colours[:, 1])
    torch.testing.assert_close(colours[:, 0], colours[:, 2])


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="take ProtoNet"):
        PMF(conv4(), freeze=True)
    with pytest.raises(ConfigError, match=r"distorts images.*\(7,\)"):
        distorted(torch.rand(2, 7), 0)
