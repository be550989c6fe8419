"""Rapid learning or feature reuse: which layers does adaptation change?

The analysis of Raghu, Raghu, Bengio, Vinyals: "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness
of MAML" (2020), arXiv:1909.09157.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_meta.callbacks.pictures import Pictures
from lightning_meta.callbacks.replay import Replay, eval_inner_steps
from lightning_meta.callbacks.tables import write_csv
from lightning_meta.compat import tree_map
from lightning_meta.core import Episode, mean_and_ci95
from lightning_meta.core.similarity import MIN_EXAMPLES, centred_gram, linear_cka
from lightning_meta.viz import layer_similarity


class LayerSimilarity(Pictures):
    """Similarity (CKA) of each layer's output before and after adaptation, on query sets of the first test episodes.

    Writes `<log_dir>/layer_similarity.csv` (layer, cka, cka_ci95; mean and interval over episodes) and the picture
    `layer_similarity`. A layer that keeps its weights and its input has exactly 1. Few query examples would make the
    usual estimate of CKA too high, so a debiased one is taken, see `core/similarity.py`; with fewer than 4 of them
    nothing is drawn.

    The layers are the head and the children of the backbone that have parameters; a child that is an `nn.Sequential`
    stands for its own children, each with the activation that follows it (the blocks of Conv4 and of ResNet-12, the
    hidden layers of an MLP), and so does an `nn.ModuleList` (the convolutions of TextCNN, before their activation).

    For algorithms that have `eval_inner_steps` and a `learner`, a backbone followed by a head, which `query_loss` runs
    once: MAML and its relatives. Before adaptation means with `eval_inner_steps=0`. Others, such as ProtoNet, are
    skipped by design, without a word.

    Args:
        episodes: how many test episodes, at most `test_episodes`.
    """

    def __init__(self, episodes: int = 50) -> None:
        super().__init__()
        self.episodes = episodes

    def draw(self, replay: Replay, log_dir: Path) -> None:
        learner = getattr(replay.module, "learner", None)
        if not hasattr(replay.module, "eval_inner_steps") or not isinstance(learner, nn.Sequential):
            return
        if len(learner) != 2 or len(replay.episodes([0]).query.x[0]) < MIN_EXAMPLES:
            return
        count = min(self.episodes, replay.datamodule.test_episodes)
        episodes: list[Tensor] = []  # the CKA of each layer
        for index in range(count):
            task = tree_map(lambda leaf: leaf[0], replay.episodes([index]))
            before, after = (centred_grams(layers_of(*learner), replay, task, steps) for steps in (0, None))
            episodes.append(torch.stack([linear_cka(before[name], after[name]) for name in before]))
        layers, cka_EL = list(before), torch.stack(episodes).cpu()
        mean, ci95 = mean_and_ci95(cka_EL.sum(0), cka_EL.square().sum(0), torch.tensor(count))
        columns = zip(layers, mean.tolist(), ci95.tolist(), strict=True)
        rows = [{"layer": name, "cka": cka, "cka_ci95": half_width} for name, cka, half_width in columns]
        write_csv(log_dir / "layer_similarity.csv", rows)
        figure = layer_similarity(layers, mean, ci95, count, len(task.query.x), replay.title)
        self.save(figure, "layer_similarity", replay, log_dir)


def layers_of(backbone: nn.Module, head: nn.Module) -> dict[str, nn.Module]:
    """What to take the output of for each layer: those of the backbone by their names there, then the head.

    Without its activation, a linear layer of a scalar input would have a similarity of 1 whatever its weights.
    """
    layers: dict[str, nn.Module] = {}
    for name, child in backbone.named_children():
        if not isinstance(child, nn.Sequential | nn.ModuleList):
            layers |= {name: child} if has_parameters(child) else {}
            continue
        layer = None
        for key, part in child.named_children():
            layer = f"{name}.{key}" if has_parameters(part) else layer
            layers |= {layer: part} if layer else {}
    return layers | {"head": head}


def has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def centred_grams(
    layers: dict[str, nn.Module], replay: Replay, task: Episode, inner_steps: int | None
) -> dict[str, Tensor]:
    """`centred_gram` of each layer's output for the query set, after so many inner steps (None: as in the test).

    In the order in which the layers run; one that does not is left out. The outputs themselves, which are large in a
    deep network, are not kept.
    """
    grams: dict[str, Tensor] = {}
    with replay.trainer.precision_plugin.test_step_context(), eval_inner_steps(replay.module, inner_steps):
        with replay.module.adapt_precision():
            adapted = replay.module.adapt(task.support)
        with ExitStack() as hooks:
            for name, layer in layers.items():

                def keep(_: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                    grams.setdefault(name, centred_gram(output.flatten(1)))  # an activation may be shared

                hooks.enter_context(layer.register_forward_hook(keep))
            replay.module.query_loss(adapted, task.query)
    return grams
