"""Meta Pseudo Labels: the teacher's gradient through the student's step, and what neither of them may see."""

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.algorithms import MetaPseudoLabels
from lightning_meta.algorithms.bilevel import meta_pseudo_labels
from lightning_meta.backbones import MLP
from lightning_meta.compat import tree_leaves, tree_map
from lightning_meta.core import Batch, FirstOrder
from lightning_meta.datamodules import Trial, TwoMoons
from lightning_meta.errors import ConfigError
from tests.algorithms.bilevel_cases import held_out, network

BILEVEL = {"meta-pseudo-labels": lambda **kw: MetaPseudoLabels(network(), 4, **kw)}


def made(**settings: object) -> MetaPseudoLabels:
    torch.manual_seed(0)
    return MetaPseudoLabels(network(), 4, **settings).double().train()


def trial() -> Trial:
    data = held_out()
    data.setup("fit")
    drawn = data.dataset("train").__getitems__([0])
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, drawn)


def gradient(module: MetaPseudoLabels, tasks: Trial) -> list[Tensor]:
    module.zero_grad()
    module.measure(tasks)[0]["loss"].mean().backward()
    return [p.grad.clone() for p in module.teacher.parameters()]


def test_the_gradient_goes_through_the_students_step() -> None:
    """Against plain autograd: a step on the teacher's labels, then both losses on the labelled examples."""
    module, tasks = made(consistency=0.0, temperature=0.5), trial()
    weights = {name: value[0].clone().requires_grad_() for name, value in module.begin(tasks).params.items()}
    x, query = tasks.support.x[0, 0], Batch(*(part[0] for part in tasks.query))
    labels = (2 * module.teacher(x)).softmax(1)
    inner = -(labels * functional_call(module.network, weights, (x,)).log_softmax(1)).sum(1).mean()
    slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    stepped = {name: w - 0.1 * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
    students = F.cross_entropy(functional_call(module.network, stepped, (query.x,)), query.y)
    own = F.cross_entropy(module.teacher(query.x), query.y)
    expected = torch.autograd.grad(students + own, list(module.teacher.parameters()), retain_graph=True)
    torch.testing.assert_close(gradient(module, tasks), list(expected), rtol=1e-9, atol=1e-12)
    without = torch.autograd.grad(own, list(module.teacher.parameters()))
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(expected, without, strict=True))


def test_first_order_leaves_the_teacher_to_its_supervision() -> None:
    module, tasks = made(consistency=0.0, hypergradient=FirstOrder()), trial()
    own = F.cross_entropy(module.teacher(tasks.query.x[0]), tasks.query.y[0])
    expected = torch.autograd.grad(own, list(module.teacher.parameters()))
    torch.testing.assert_close(gradient(module, tasks), list(expected))


def test_the_labels_of_unlabelled_examples_are_not_read() -> None:
    """Others, even such as no class has, change nothing: no gradient and no step."""
    found = []
    for poison in (False, True):
        module, tasks = made(), trial()
        if poison:
            tasks = tasks._replace(support=Batch(tasks.support.x, torch.full_like(tasks.support.y, -1)))
        torch.manual_seed(1)
        found.append((gradient(module, tasks), tree_leaves((module.settle(), module.carried))))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_the_student_does_not_learn_from_labelled_examples() -> None:
    module, tasks = made(), trial()
    carried = []
    for query in (tasks.query, Batch(1 - tasks.query.x, (tasks.query.y + 1) % 4)):
        module.carried = None
        module.measure(tasks._replace(query=query))
        module.settle()  # without an outer update between, which is how a teacher passes on what it has seen
        carried.append(tree_leaves(module.carried))
    torch.testing.assert_close(carried[1], carried[0], rtol=0, atol=0)


def test_inconsistency_is_the_divergence_under_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_pseudo_labels, "normal", lambda key, *shape, dtype: torch.ones(shape, dtype=dtype))
    module, tasks = made(consistency=2.0, noise=0.5, temperature=1.0), trial()
    x = tasks.support.x[0, 0]
    before, after = module.teacher(x).softmax(1), module.teacher(x + 0.5).softmax(1)
    expected = (before * (before.log() - after.log())).sum(1).mean()
    support = Batch(*(part[0] for part in tasks.support))
    torch.testing.assert_close(module.inconsistency(support, tasks.dice[0]), expected)
    without = made(consistency=0.0, temperature=1.0)
    difference = module.measure(tasks)[0]["loss"] - without.measure(tasks)[0]["loss"]
    torch.testing.assert_close(difference, 2 * expected[None])


@pytest.mark.slow
def test_a_student_names_two_moons_better_than_supervision_alone() -> None:
    """Six labels; the same start, the same points. Supervision alone is the teacher that nobody tells anything."""
    accuracies = {}
    for name, settings in {
        "student": {}, "supervised": {"hypergradient": FirstOrder(), "consistency": 0.0},
    }.items():  # fmt: skip
        torch.manual_seed(0)
        module = MetaPseudoLabels(
            MLP(2, [32, 32]), 2, inner_lr=0.3, optimizer=lambda params: torch.optim.Adam(params, lr=0.01), **settings
        )
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=400, inference_mode=False, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        data = TwoMoons(noise=0.05, steps_per_epoch=400, seed=4)
        trainer.fit(module, datamodule=data)
        (tested,) = trainer.test(module, datamodule=data, verbose=False)
        accuracies[name] = tested["test/acc" if name == "student" else "test/teacher_acc"]
    assert accuracies["student"] > accuracies["supervised"] + 0.05


def test_settings_that_mean_nothing_are_told() -> None:
    with pytest.raises(ConfigError, match="temperature=0 must be positive"):
        made(temperature=0)
    with pytest.raises(ConfigError, match="noise=-1 not negative"):
        made(noise=-1)
