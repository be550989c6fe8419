"""SKD (skd): the losses of its two generations against the formulas, and where the second starts."""

from pathlib import Path

import torch
from torch.nn import functional as F

from lightning_meta.algorithms import SKD
from lightning_meta.core import Batch, Episode
from tests.algorithms.test_born_again import saved, softened
from tests.conftest import CLASSES, Make, blobs, conv4
from tests.modules.test_episodic import trainer

SETTINGS = dict(n_classes=CLASSES, steps=20)
CASES: dict[str, Make] = {"skd": lambda: SKD(conv4(), **SETTINGS)}


@torch.no_grad()
def test_generation_zero_names_classes_and_from_their_logits_turns(episodes: Episode) -> None:
    module = SKD(conv4(), turn_weight=1.5, **SETTINGS).double()
    tasks = Episode(*(Batch(x[:1], y[:1] + 7) for x, y in episodes))
    out = module.play(tasks)
    sets = [torch.cat([part.x[0].rot90(turn, (-2, -1)) for turn in range(4)]) for part in tasks]
    turns = torch.cat([torch.full((len(part.y[0]),), turn) for part in tasks for turn in range(4)])
    labels = torch.cat([part.y[0] for part in tasks for _ in range(4)])
    logits = module.classifier(torch.cat([module.backbone(images) for images in sets]))  # each normalised by itself
    sure = module.turns(logits).sigmoid()
    binary = torch.where(F.one_hot(turns, 4).bool(), sure.log(), (1 - sure).log())
    torch.testing.assert_close(out.loss[0], F.cross_entropy(logits, labels) - 1.5 * binary.mean(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(out.preds[0], logits[len(sets[0]) :][: len(tasks.query.y[0])], rtol=1e-8, atol=1e-9)


@torch.no_grad()
def test_generation_one_keeps_what_was_said_and_says_it_of_the_turned_image_too(
    episodes: Episode, tmp_path: Path
) -> None:
    teacher = SKD(conv4("running"), **SETTINGS).double().eval()
    torch.manual_seed(1)
    module = SKD(
        conv4("running"), teacher=saved(teacher, tmp_path), twin_weight=0.3, temperature=2.0, **SETTINGS
    ).double()
    assert module.turns is None
    module._teacher = [module.read_teacher(module.teacher)]
    tasks = Episode(*(Batch(x[:1], y[:1] + 7) for x, y in episodes))
    out = module.play(tasks)
    images = [torch.cat([part.x[0], part.x[0].rot90(1, (-2, -1))]) for part in tasks]
    logits = module.classifier(module.backbone(torch.cat(images))).split([len(x) for x in images])
    own, turned = (torch.cat([x.chunk(2)[half] for x in logits]) for half in range(2))
    theirs = teacher.classifier(teacher.backbone(torch.cat([part.x[0] for part in tasks])))
    p, q = softened(theirs, 2.0), softened(own, 2.0)
    expected = 4 * (p * (p / q).log()).sum(1).mean() + 0.3 * (own - turned).square().sum(1).sqrt().mean()
    torch.testing.assert_close(out.loss[0], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(out.preds[0], own[-len(tasks.query.y[0]) :], rtol=1e-7, atol=1e-9)


def test_generation_one_starts_as_its_teacher(tmp_path: Path) -> None:
    teacher = SKD(conv4("running"), **SETTINGS)
    module = SKD(conv4("running"), teacher=saved(teacher, tmp_path), **SETTINGS)
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    trainer().fit(module, datamodule=blobs())
    weights = module.state_dict()
    same = [torch.equal(value, teacher.state_dict()[name]) for name, value in weights.items() if "running" not in name]
    assert len(same) > 10 and all(same)


def test_the_number_of_classes_is_the_data_s_and_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    module, run = SKD(conv4("running"), steps=20), trainer()
    assert module.turns is None
    run.fit(module, datamodule=blobs())
    assert module.turns.in_features == CLASSES
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = SKD.load_from_checkpoint(tmp_path / "last.ckpt", backbone=conv4("running"))
    assert torch.equal(loaded.turns.weight, module.turns.weight)
