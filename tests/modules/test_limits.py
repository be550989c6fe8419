"""Networks of users that torch.func cannot take: played in a loop, or refused in one line that names the layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_meta.algorithms import ANIL, MAML, ProtoNet
from lightning_meta.backbones import Backbone
from lightning_meta.errors import ConfigError
from tests.conftest import SIZE, autograd_meta_gradient, blobs, meta_gradient, random_episodes
from tests.modules.test_episodic import trainer

PIXELS = SIZE * SIZE


class Layer(nn.Module):
    """Of no parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Rows(nn.Module):
    """An image read row by row."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor) -> Tensor:
        return self.recurrent(x.unflatten(1, (SIZE, SIZE)))[0][:, -1]


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


class Network(Backbone):
    """Four features by way of `layer`, which takes the pixels of an image."""

    def __init__(self, layer: nn.Module, width: int = PIXELS) -> None:
        super().__init__()
        self.layer, self.last, self.out_features = layer, nn.Linear(width, 4), 4

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.flatten(1)))


LOOPED = {
    "nn.LSTM": lambda: Network(Rows(nn.LSTM(SIZE, 5, batch_first=True)), 5),
    "nn.GRU": lambda: Network(Rows(nn.GRU(SIZE, 5, batch_first=True)), 5),
    "boolean mask": lambda: Network(Layer(lambda x: x + x[x > 0.5].mean())),
    "item": lambda: Network(Layer(lambda x: x / x.max().item())),
    "branch": lambda: Network(Layer(lambda x: x if x.mean() > 0.5 else -x)),
    "dropout and item": lambda: Network(nn.Sequential(nn.Dropout(), Layer(lambda x: x / x.max().item()))),
}
REFUSED = {
    "nn.BatchNorm1d": (nn.BatchNorm1d(PIXELS), r"learner.0.layer \(BatchNorm1d\).*track_running_stats=False"),
    "buffer": (CountsCalls(), r"learner.0.layer \(CountsCalls\) changes its buffers in place"),
    "checkpoint": (
        Layer(lambda x: checkpoint(torch.tanh, x * 1, use_reentrant=False)),
        r"learner.0.layer \(Layer\) does what cannot be done within an inner loop.*saved tensor hooks",
    ),
}


def maml(network: nn.Module, **overrides: Any) -> MAML:
    return MAML(network, **(dict(n_way=3, inner_lr=0.1) | overrides))


def weights_after_training(make: Callable[[], nn.Module], mode: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = maml(make(), task_mode=mode)
    trainer(max_steps=3).fit(module, datamodule=blobs())
    return module.state_dict()


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("lightning_meta")]


@pytest.mark.parametrize("make", LOOPED.values(), ids=LOOPED.keys())
def test_what_vmap_cannot_take_is_looped_over_and_said_once(
    make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    """The training is that of task_mode: loop to the last bit, its random numbers included."""
    looped = weights_after_training(make, "loop")
    assert not notes(caplog)
    automatic = weights_after_training(make, "auto")
    assert all(torch.equal(looped[name], automatic[name]) for name in looped)
    (note,) = notes(caplog)
    assert note.startswith("note: torch.vmap cannot take learner.0.layer")
    assert "task_mode: loop" in note and "\n" not in note


@pytest.mark.parametrize("make", LOOPED.values(), ids=LOOPED.keys())
def test_vmap_that_was_asked_for_is_refused(make: Callable[[], nn.Module]) -> None:
    module = maml(make(), task_mode="vmap")
    with pytest.raises(ConfigError, match=r"torch.vmap cannot take learner.0.layer.*set task_mode to loop or auto"):
        trainer().fit(module, datamodule=blobs())
    assert module.task_mode == "vmap"


@pytest.mark.parametrize("mode", ["auto", "vmap", "loop"])
@pytest.mark.parametrize(("layer", "words"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("entry", ["fit", "test", "predict"])
def test_what_no_inner_loop_can_take_is_refused(layer: nn.Module, words: str, mode: str, entry: str) -> None:
    module = maml(Network(layer), task_mode=mode)
    if entry != "fit" and isinstance(layer, nn.BatchNorm1d):
        getattr(trainer(), entry)(module, datamodule=blobs())  # with the statistics that it has
        return
    with pytest.raises(ConfigError, match=words) as refusal:
        getattr(trainer(), entry)(module, datamodule=blobs())
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_layer_without_second_derivative_is_refused_where_it_is_needed(mode: str) -> None:
    """The mistake is met in the outer backward pass under vmap, in the forward pass of the loop."""
    margin = Layer(lambda x: x + F.multi_margin_loss(x, x.argmin(1), reduction="none")[:, None])
    layer = nn.Sequential(nn.Linear(PIXELS, PIXELS), margin)
    with pytest.raises(ConfigError, match=r"no second derivative.*first_order.*multi_margin_loss"):
        trainer().fit(maml(Network(layer), task_mode=mode), datamodule=blobs())
    trainer().fit(maml(Network(layer), task_mode=mode, first_order=True), datamodule=blobs())


@pytest.mark.parametrize("mode", ["auto", "vmap", "loop"])
def test_a_mistake_in_the_network_stays_what_it_is(mode: str) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as mistake:
        trainer().fit(maml(Network(nn.Identity(), width=3), task_mode=mode), datamodule=blobs())
    assert not isinstance(mistake.value, ConfigError)


def test_running_statistics_outside_the_inner_loop_are_served_by_a_loop() -> None:
    """ANIL adapts its head alone; statistics of the body are then in nobody's way."""
    body = Network(nn.BatchNorm1d(PIXELS))
    trainer().fit(ANIL(body, n_way=3, inner_lr=0.1), datamodule=blobs())
    assert body.layer.num_batches_tracked > 0


def test_recurrent_networks_in_a_loop_have_the_meta_gradient_of_plain_autograd() -> None:
    tasks = random_episodes()

    def module() -> MAML:
        torch.manual_seed(0)
        return maml(LOOPED["nn.LSTM"](), inner_steps=2, task_mode="loop").double()

    truth = autograd_meta_gradient(module(), tasks, 2, lambda name, step: 0.1)
    torch.testing.assert_close(meta_gradient(module(), tasks), truth, rtol=1e-9, atol=1e-13)


def test_prototypical_networks_take_all_of_them() -> None:
    for make in (*LOOPED.values(), *(partial(Network, layer) for layer, _ in REFUSED.values())):
        trainer().fit(ProtoNet(make(), task_mode="vmap"), datamodule=blobs())


def test_a_backbone_has_to_say_how_many_features_it_gives() -> None:
    class Silent(Backbone):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with pytest.raises(ConfigError, match=r"Silent does not say how many features.*set self.out_features"):
        maml(Silent())
    assert not hasattr(Silent(), "in_shape")
