"""The meta-gradient as users of other libraries take it: task after task, each on a copy of the network.

Every `Backward` is a function of a meta-batch that leaves the gradient of the mean query loss in `.grad` of its
network. It is written as the library's own examples are:

- `plain`: a loop of `torch.autograd.grad` over `torch.func.functional_call`, no library
- `learn2learn` 0.2.0 (Arnold et al. 2020, arXiv:2008.12284): `MAML(net).clone()`, `adapt`
- `higher` 0.2.1 (Grefenstette et al. 2019, arXiv:1910.01727): `innerloop_ctx`
- `torchopt` 0.7.3 (Ren et al. 2022, arXiv:2211.06934): `MetaSGD`, with the state put back after each task
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_meta.algorithms import R2D2, RelationNet
from lightning_meta.backbones import Conv4
from lightning_meta.backbones.norm import EpisodicBatchNorm2d
from lightning_meta.compat import tree_map
from lightning_meta.core import Batch, Episode, Params
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError
from lightning_meta.interop.learn2learn import import_learn2learn
from lightning_meta.modules import EmbeddingModule

Backward = Callable[[Episode], None]


@dataclass(frozen=True)
class InnerLoop:
    """What all contenders do within a task."""

    lr: float
    steps: int
    first_order: bool
    loss: Callable[[Tensor, Tensor], Tensor]


def stock_network(network: nn.Module) -> nn.Module:
    """A copy of a network of ours in layers of PyTorch, with the same weights and the same order of parameters."""
    if isinstance(network, Conv4):
        return nn.Sequential(*(stock_network(child) for child in network.children()), nn.Flatten())
    if isinstance(network, EpisodicBatchNorm2d):
        norm = nn.BatchNorm2d(len(network.weight), network.eps, track_running_stats=False)
        return norm.to(network.weight.dtype)  # both start at weight 1, bias 0
    if isinstance(network, nn.Sequential):
        return nn.Sequential(*(stock_network(child) for child in network))
    if isinstance(network, R2D2):
        return PlainR2D2(network)
    if isinstance(network, RelationNet):
        return nn.Sequential(
            stock_network(network.backbone), stock_network(nn.Sequential(network.compare, *network.relation))
        )
    if isinstance(network, EmbeddingModule):
        return stock_network(network.backbone)
    return copy.deepcopy(network)


class PlainR2D2(nn.Module):
    """What R2-D2 learns, in our order of parameters."""

    def __init__(self, ours: R2D2) -> None:
        super().__init__()
        self.alpha, self.beta, self.penalty = copy.deepcopy(ours.alpha), copy.deepcopy(ours.beta), ours.log_lambda.exp()
        self.backbone = stock_network(ours.backbone)


def tasks_of(episodes: Episode) -> list[Episode]:
    """The tasks of a meta-batch."""
    (support_x, support_y), (query_x, query_y) = episodes
    return [
        Episode(Batch(*row[:2]), Batch(*row[2:])) for row in zip(support_x, support_y, query_x, query_y, strict=True)
    ]


def plain_maml(network: nn.Module, loop: InnerLoop) -> Backward:
    theta: Params = dict(network.named_parameters())

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            phi = theta
            for _ in range(loop.steps):
                loss = loop.loss(functional_call(network, phi, (support.x,)), support.y)
                grads = torch.autograd.grad(loss, list(phi.values()), create_graph=not loop.first_order)
                phi = {name: value - loop.lr * grad for (name, value), grad in zip(phi.items(), grads, strict=True)}
            (loop.loss(functional_call(network, phi, (query.x,)), query.y) / len(tasks)).backward()

    return backward


def learn2learn_maml(network: nn.Module, loop: InnerLoop) -> Backward:
    maml = import_learn2learn().algorithms.MAML(network, lr=loop.lr, first_order=loop.first_order)

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            learner = maml.clone()
            for _ in range(loop.steps):
                learner.adapt(loop.loss(learner(support.x), support.y))
            (loop.loss(learner(query.x), query.y) / len(tasks)).backward()

    return backward


def higher_maml(network: nn.Module, loop: InnerLoop) -> Backward:
    import higher

    inner = torch.optim.SGD(network.parameters(), lr=loop.lr)

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            context = higher.innerloop_ctx(network, inner, copy_initial_weights=False)
            with context as (learner, optimizer):
                for _ in range(loop.steps):
                    grad_callback = (lambda grads: [g.detach() for g in grads]) if loop.first_order else None
                    optimizer.step(loop.loss(learner(support.x), support.y), grad_callback=grad_callback)
                (loop.loss(learner(query.x), query.y) / len(tasks)).backward()

    return backward


def torchopt_maml(network: nn.Module, loop: InnerLoop) -> Backward:
    import torchopt

    if loop.first_order:
        raise ConfigError("TorchOpt's MetaSGD has no first-order mode.")
    inner = torchopt.MetaSGD(network, lr=loop.lr)

    def backward(episodes: Episode) -> None:
        network_state, inner_state = torchopt.extract_state_dict(network), torchopt.extract_state_dict(inner)
        for support, query in (tasks := tasks_of(episodes)):
            for _ in range(loop.steps):
                inner.step(loop.loss(network(support.x), support.y))
            (loop.loss(network(query.x), query.y) / len(tasks)).backward()
            torchopt.recover_state_dict(network, network_state)
            torchopt.recover_state_dict(inner, inner_state)

    return backward


def plain_anil(network: nn.Module, loop: InnerLoop) -> Backward:
    body, head = network.children()
    theta: Params = dict(head.named_parameters())

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            features, phi = body(support.x), theta
            for _ in range(loop.steps):
                loss = loop.loss(functional_call(head, phi, (features,)), support.y)
                grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                phi = {name: value - loop.lr * grad for (name, value), grad in zip(phi.items(), grads, strict=True)}
            (loop.loss(functional_call(head, phi, (body(query.x),)), query.y) / len(tasks)).backward()

    return backward


def learn2learn_anil(network: nn.Module, loop: InnerLoop) -> Backward:
    body, head = network.children()
    maml = import_learn2learn().algorithms.MAML(head, lr=loop.lr)

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            learner, features = maml.clone(), body(support.x)
            for _ in range(loop.steps):
                learner.adapt(loop.loss(learner(features), support.y))
            (loop.loss(learner(body(query.x)), query.y) / len(tasks)).backward()

    return backward


def plain_protonet(network: nn.Module, loop: InnerLoop) -> Backward:
    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            features, classes = network(support.x), range(int(support.y.max()) + 1)
            prototypes = torch.stack([features[support.y == label].mean(0) for label in classes])
            distances = (network(query.x)[:, None] - prototypes).square().sum(-1)
            (F.cross_entropy(-distances, query.y) / len(tasks)).backward()

    return backward


def learn2learn_protonet(network: nn.Module, loop: InnerLoop) -> Backward:
    classifier = import_learn2learn().nn.PrototypicalClassifier(distance="euclidean")

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            classifier.fit_(network(support.x), support.y)
            (F.cross_entropy(classifier(network(query.x)), query.y) / len(tasks)).backward()

    return backward


def plain_matching(network: nn.Module, loop: InnerLoop) -> Backward:
    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            features, targets = network(support.x), F.one_hot(support.y).to(support.x.dtype)
            cosines = F.cosine_similarity(network(query.x)[:, None], features, dim=2)
            (F.nll_loss((cosines.softmax(1) @ targets).log(), query.y) / len(tasks)).backward()

    return backward


def plain_relation(network: nn.Module, loop: InnerLoop) -> Backward:
    """One shot: each support example stands for its class. Pairs are concatenated, as in the authors' code."""
    (embed, compare), channels = network.children(), 64

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            of_class, of_query = (embed(x).unflatten(1, (channels, 7, 7)) for x in (support.x, query.x))
            shape = (len(of_query), len(of_class), -1, -1, -1)
            pairs = torch.cat([of_class[None].expand(shape), of_query[:, None].expand(shape)], dim=2)
            scores = compare(pairs.flatten(0, 1)).view(len(of_query), -1).sigmoid()
            same = (query.y[:, None] == support.y).to(scores.dtype)
            (F.mse_loss(scores, same) / len(tasks)).backward()

    return backward


def plain_r2d2(network: nn.Module, loop: InnerLoop) -> Backward:
    assert isinstance(network, PlainR2D2)

    def features(images: Tensor) -> Tensor:
        return F.pad(network.backbone(images), (0, 1), value=1.0)

    def backward(episodes: Episode) -> None:
        for support, query in (tasks := tasks_of(episodes)):
            x, y = features(support.x).double(), F.one_hot(support.y).double()
            gram = x @ x.T + len(x) * network.penalty * torch.eye(len(x), dtype=x.dtype)
            weights = (x.T @ torch.linalg.solve(gram, y)).to(support.x.dtype)
            logits = network.alpha * (features(query.x) @ weights) + network.beta
            (F.cross_entropy(logits, query.y) / len(tasks)).backward()

    return backward


def plain_reptile(network: nn.Module, loop: InnerLoop) -> Backward:
    """As in the authors' code, but the direction theta - phi is left in `.grad`."""

    def backward(episodes: Episode) -> None:
        for support, _ in (tasks := tasks_of(episodes)):
            learner = copy.deepcopy(network)
            inner = torch.optim.Adam(learner.parameters(), lr=loop.lr, betas=(0.0, 0.999))
            for _ in range(loop.steps):
                inner.zero_grad()
                loop.loss(learner(support.x), support.y).backward()
                inner.step()
            with torch.no_grad():
                for theta, phi in zip(network.parameters(), learner.parameters(), strict=True):
                    move = (theta - phi) / len(tasks)
                    theta.grad = move if theta.grad is None else theta.grad + move

    return backward


PEERS: dict[str, dict[str, Callable[[nn.Module, InnerLoop], Backward]]] = {
    "MAML": {"plain": plain_maml, "learn2learn": learn2learn_maml, "higher": higher_maml, "torchopt": torchopt_maml},
    "FOMAML": {"plain": plain_maml, "learn2learn": learn2learn_maml, "higher": higher_maml},
    "ANIL": {"plain": plain_anil, "learn2learn": learn2learn_anil},
    "ProtoNet": {"plain": plain_protonet, "learn2learn": learn2learn_protonet},
    "MatchingNet": {"plain": plain_matching},
    "RelationNet": {"plain": plain_relation},
    "R2D2": {"plain": plain_r2d2},
    "Reptile": {"plain": plain_reptile},
}


def learn2learn_episodes(bank: ClassBank, shape: EpisodeShape, meta_batch_size: int) -> Callable[[int], Episode]:
    """Meta-batches from learn2learn's `TaskDataset`, drawn as its examples do."""
    l2l = import_learn2learn()
    n_way, k_shot, n_query = shape
    labels = torch.from_numpy(np.arange(len(bank.size)).repeat(bank.size))
    data = l2l.data.MetaDataset(TensorDataset(bank.inputs, labels))
    transforms = [
        l2l.data.transforms.NWays(data, n_way),
        l2l.data.transforms.KShots(data, k_shot + n_query),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.RemapLabels(data),
        l2l.data.transforms.ConsecutiveLabels(data),
    ]
    tasks = l2l.data.TaskDataset(data, transforms, num_tasks=-1)

    def draw() -> Episode:
        x, y = tasks.sample()
        x, y = (part.unflatten(0, (n_way, k_shot + n_query)) for part in (x.float() / 255, y))
        support, query = (
            (x[:, part].flatten(0, 1), y[:, part].flatten(0, 1)) for part in (np.s_[:k_shot], np.s_[k_shot:])
        )
        return Episode(Batch(*support), Batch(*query))

    return lambda step: tree_map(lambda *leaves: torch.stack(leaves), *(draw() for _ in range(meta_batch_size)))
