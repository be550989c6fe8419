"""CPEA (cpea) against its definition, one query and one class at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import CPEA
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, Make, conv4, random_episodes

SETTINGS = dict(dropout=0.0, hidden=7)
CASES: dict[str, Make] = {"cpea": lambda: CPEA(conv4(halvings=2), **SETTINGS)}
VARIANTS: dict[str, Make] = {"cpea-tokens": lambda: CPEA(Tokens(), width=8, **SETTINGS)}


class Tokens(nn.Module):
    """Five tokens of a width of 8, as a Vision Transformer returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE**2, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).tanh().view(len(x), 5, 8)


def aware(module: CPEA, tokens: Tensor) -> Tensor:
    """The patches of one image, from its tokens, the class token first."""
    first, _, _, second, _ = module.class_aware
    said = second(F.gelu(first(tokens.mean(0))))
    shifted = [F.layer_norm(token + said, token.shape, module.norm.weight, module.norm.bias) for token in tokens]
    return torch.stack([patch + 2 * shifted[0] for patch in shifted[1:]])


def scaled(patches: Tensor) -> Tensor:
    lengths = patches.norm(dim=1, keepdim=True)
    return patches / lengths - (patches / lengths).mean(1, keepdim=True)


@pytest.mark.parametrize("mode", ["vmap", "loop"])
@pytest.mark.parametrize(("kind", "k_shot"), [("maps", 1), ("maps", 3), ("tokens", 2)])
@torch.no_grad()
def test_logits_and_losses_equal_the_definition(mode: str, kind: str, k_shot: int) -> None:
    network, width = (Tokens(), 8) if kind == "tokens" else (conv4(halvings=2), None)
    module, tasks = CPEA(network, width, task_mode=mode, **SETTINGS).double(), random_episodes(k_shot=k_shot)
    nn.init.normal_(module.norm.weight)
    plain, training = module.eval().play(tasks), module.train().play(tasks)
    for t in range(3):
        images = [module.backbone(part.x[t]) for part in tasks]
        if kind == "tokens":
            support, query = (x.view(-1, 5, 8) for x in images)
        else:
            places = [x.unflatten(1, (6, -1)).mT for x in images]
            support, query = (torch.cat([x.mean(1, keepdim=True), x], 1) for x in places)
        labels, truth = tasks.support.y[t], tasks.query.y[t]
        patches = torch.stack([aware(module, image) for image in support])
        classes = [scaled(patches[labels == c].mean(0)) for c in range(3)]
        logits = torch.zeros(len(query), 3).double()
        for q, image in enumerate(query):
            mine = scaled(aware(module, image))
            for c, its in enumerate(classes):
                squares = torch.stack([(a @ b) ** 2 for a in its for b in mine])
                logits[q, c] = module.score[3](F.gelu(module.score[0](squares)))
        torch.testing.assert_close(plain.preds[t, :, :3], logits, rtol=1e-8, atol=1e-10)
        assert (plain.preds[t, :, 3:] == -torch.inf).all()
        torch.testing.assert_close(plain.loss[t], F.cross_entropy(logits, truth), rtol=1e-8, atol=1e-10)
        targets = torch.full((len(query), 3), 0.05).double().scatter(1, truth[:, None], 0.9)
        smoothed = -(targets * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(training.loss[t], smoothed, rtol=1e-8, atol=1e-10)


def test_what_has_no_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Conv4 have one place; take larger maps.*set their width"):
        CPEA(conv4(halvings=4))
    with pytest.raises(ConfigError, match=r"width=7: the 40 features of Wrapped"):
        CPEA(Tokens(), width=7)
