"""Born-again RFS (born_again): its loss against the formula, its teacher, and what cannot teach."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.algorithms import MAML, RFS, SKD, BaselinePlusPlus, BornAgain
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from lightning_meta.modules import EpisodicModule
from tests.conftest import CLASSES, Make, blobs, conv4
from tests.modules.test_episodic import trainer

CASES: dict[str, Make] = {"born_again": lambda: BornAgain(conv4(), n_classes=CLASSES, steps=20)}


def saved(module: EpisodicModule, folder: Path) -> str:
    path = folder / "teacher.pt"
    torch.save({"state_dict": module.state_dict()}, path)
    return str(path)


@pytest.fixture
def teacher() -> RFS:
    torch.manual_seed(3)
    made = RFS(conv4("running"), n_classes=CLASSES).double()
    for layer in made.modules():
        if hasattr(layer, "running_mean"):
            layer.running_mean.normal_()
    return made.eval()


def softened(logits: Tensor, temperature: float) -> Tensor:
    exponentials = (logits / temperature).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


@torch.no_grad()
def test_the_loss_is_of_labels_and_of_the_teacher_s_probabilities(
    teacher: RFS, episodes: Episode, tmp_path: Path
) -> None:
    settings = dict(temperature=3.0, naming_weight=0.4, teacher_weight=0.7)
    module = BornAgain(conv4("running"), n_classes=CLASSES, teacher=saved(teacher, tmp_path), **settings).double()
    module._teacher = [module.read_teacher(module.teacher)]
    tasks = Episode(*(Batch(x, y + 7) for x, y in episodes))
    out = module.train().play(tasks)
    # In training all images of a meta-batch are normalised together.
    images = [part.x.flatten(0, 1) for part in tasks]
    features = module.backbone(torch.cat(images)).split([len(x) for x in images])
    for t in range(3):
        own = torch.cat([x.unflatten(0, (3, -1))[t] for x in features])
        logits = own @ module.classifier.weight.T + module.classifier.bias
        labels = torch.cat([part.y[t] for part in tasks])
        theirs = teacher.classifier(teacher.backbone(torch.cat([part.x[t] for part in tasks])))
        named = -softened(logits, 1.0)[torch.arange(len(labels)), labels].log().mean()
        p, q = softened(theirs, 3.0), softened(logits, 3.0)
        distilled = 9 * (p * (p / q).log()).sum(1).mean()
        torch.testing.assert_close(out.loss[t], 0.4 * named + 0.7 * distilled, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(out.preds[t], logits[-len(tasks.query.y[t]) :], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("algorithm", [BornAgain, SKD])
def test_a_teacher_does_not_change_and_is_in_no_checkpoint(algorithm: type, teacher: RFS, tmp_path: Path) -> None:
    module = algorithm(conv4("running"), n_classes=CLASSES, teacher=saved(teacher.float(), tmp_path))
    run = trainer(max_steps=3)
    run.fit(module, datamodule=blobs())
    backbone, classifier = module._teacher[0]
    for ours, theirs in ((backbone, teacher.backbone), (classifier, teacher.classifier)):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert not torch.equal(module.classifier.weight, classifier.weight)
    assert sum(value.shape == classifier.weight.shape for value in module.state_dict().values()) == 1
    run.save_checkpoint(tmp_path / "last.ckpt")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    again = algorithm(conv4("running"), n_classes=CLASSES, teacher=module.teacher)
    trainer(max_steps=3).fit(again, datamodule=blobs(), ckpt_path=tmp_path / "last.ckpt")
    torch.testing.assert_close(again.state_dict(), before, rtol=0, atol=0)


def test_without_a_teacher_it_is_rfs(episodes: Episode) -> None:
    module, plain = (cls(conv4("running"), n_classes=CLASSES).double() for cls in (BornAgain, RFS))
    plain.load_state_dict(module.state_dict())
    for training in (True, False):
        torch.testing.assert_close(module.train(training).play(episodes), plain.train(training).play(episodes))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MAML(conv4("inductive"), n_way=3), r"\d+ of the backbone's \d+ tensors are in .*not there"),
        (lambda: RFS(conv4("running"), n_classes=5), r"12 classes from 6 features, .* has weight \(5, 6\), bias \(5,"),
        (lambda: BaselinePlusPlus(conv4("running"), n_classes=12), r"with biases, .* has weight \(12, 6\); give a run"),
        (lambda: nn.ModuleDict({"backbone": conv4("running")}), r"of such .* has none; give a run of Baseline"),
    ],
    ids=["MAML", "other classes", "cosines", "backbone alone"],
)
def test_who_cannot_teach_is_told_in_one_line(make: Make, words: str, tmp_path: Path) -> None:
    place = saved(make(), tmp_path)
    module = BornAgain(conv4("running"), n_classes=CLASSES, teacher=place)
    with pytest.raises(ConfigError, match=rf"teacher=.*{words}") as refusal:
        trainer().fit(module, datamodule=blobs())
    assert len(str(refusal.value).splitlines()) == 1


def test_settings_that_leave_nothing_to_learn_are_refused(tmp_path: Path) -> None:
    place = saved(RFS(conv4("running"), n_classes=CLASSES), tmp_path)
    with pytest.raises(ConfigError, match=r"teacher=nonesuch: there is neither a file nor a run"):
        trainer().fit(BornAgain(conv4("running"), teacher="nonesuch"), datamodule=blobs())
    with pytest.raises(ConfigError, match=r"freeze leaves nothing to learn from teacher="):
        trainer().fit(BornAgain(conv4("running"), teacher=place, freeze=True), datamodule=blobs())
    with pytest.raises(ConfigError, match=r"norm: transductive.*set the backbone's norm to running"):
        trainer().fit(BornAgain(conv4("transductive"), teacher=place), datamodule=blobs())
    with pytest.raises(ConfigError, match=r"temperature=0 must be positive"):
        BornAgain(conv4(), temperature=0)
