"""Which head is best on one trained backbone? A table in Markdown: accuracy, paired differences, ranks and time.

python -m lightning_meta benchmark heads RUN [--shots 1 5] [--methods NAME ...] [--unbalanced 2]

RUN is the folder of a run, the name of its experiment, or a checkpoint. Its backbone is frozen and embeds every image
once (the features are kept, see `EmbeddingModule`); then each method puts its head on the same frozen test episodes. By
default these are all methods whose head needs no training of its own, with the settings of their configs. A method with
other settings: `tim:steps=100,inner_lr=0.001`. On the image half of an image-text model,
`tip_adapter:class_embeddings=FILE` reads what the other half says of the names of the classes, and with
`cache_weight=0` nothing else: a zero-shot classifier.

Methods that read the whole query set (transductive) are also given query sets in which classes are not equally many:
their proportions are drawn from a Dirichlet distribution, as in Veilleux et al. (2021), arXiv:2204.11181.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lightning_meta import checkpoints
from lightning_meta.algorithms import TipAdapter
from lightning_meta.backbones import Backbone, norm_protocol
from lightning_meta.cli.composition import compose
from lightning_meta.cli.names import configs, found, suggestion
from lightning_meta.cli.predict import load_run, trained_run
from lightning_meta.core import Batch, Episode, mean_and_ci95_over
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import Keys, episode_keys, subkeys, uniform
from lightning_meta.datamodules import ClassificationDataModule, ClassSplit, ImageFolder, Mixed
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.datamodules.episodes import STREAM, EpisodeDataset
from lightning_meta.errors import ConfigError, DataError, require_at_least
from lightning_meta.metrics import EpisodicAccuracy
from lightning_meta.modules import EmbeddingModule, PretrainedModule
from lightning_meta.reports.tables import write_csv

CLOSED_FORM = ("protonet", "r2d2")  # besides the subclasses of PretrainedModule; R2-D2 with the penalty it starts with
TRAINING_ONLY = ("backbone", "optimizer", "lr_scheduler")
PROPORTIONS = 1001  # of an episode's keys, those of its class proportions; see `ORDER` in datamodules/episodes.py
AT_ONCE = 100  # episodes
HEADER = (
    "| method | queries read | accuracy (%) | rank | difference from the best inductive | ms per episode |\n"
    "|---|---|---|---|---|---|"
)
PLACE = re.compile(r"(<!-- heads: (?:(\w+) )?(\d+)-shot -->\n).*?(<!-- end of heads -->)", re.DOTALL)


class Features(Backbone):
    """In place of a backbone where the inputs are features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_shape, self.out_features = (width,), width

    def forward(self, x: Tensor) -> Tensor:
        return x


class Row(NamedTuple):
    """One method on the episodes of one kind. Accuracies from 0 to 1; halves of 95 % intervals end with `_ci95`.

    Ranks are those of Meta-Dataset: of the methods left, all that cannot be told from the best share the mean of their
    places. They cannot where the interval of the paired difference contains zero.
    """

    k_shot: int
    queries: str
    method: str
    transductive: bool
    episodes: int
    acc: float
    acc_ci95: float
    rank: float
    difference: float
    difference_ci95: float
    ms_per_episode: float


# ---- methods -----------------------------------------------------------------------------------------------------


def is_head(path: Path) -> bool:
    """Whether the model of a config is a head of its own: not one that only trains otherwise (Neg-Cosine)."""
    cls = resolve_name(compose(path)["class_path"])
    own = ("naming_loss", "head_loss")
    pretrained = issubclass(cls, PretrainedModule)
    pretrained = pretrained and all(getattr(cls, name) is getattr(PretrainedModule, name) for name in own)
    return pretrained or path.stem in CLOSED_FORM


def all_methods() -> list[str]:
    """The names of `configs/model` that are heads."""
    return [name for name, path in configs("model").items() if is_head(path)]


def make(method: str, width: int) -> EmbeddingModule[Any]:
    """A method on features of this width: the name of its config, and settings that differ, `name:key=value,...`."""
    name, _, given = method.partition(":")
    if not Path(name).is_file() and name not in configs("model"):
        heads = all_methods()
        raise ConfigError(
            f"--methods {name}: there is no such method.{suggestion(name, heads)} All: {', '.join(heads)}."
        )
    path = found("model", name)
    if not is_head(path):
        raise ConfigError(f"{name} is no head that can be put on any features; take of: {', '.join(all_methods())}.")
    content = compose(path)
    settings = {key: value for key, value in content["init_args"].items() if key not in TRAINING_ONLY}
    for pair in filter(None, given.split(",")):
        key, _, value = pair.partition("=")
        settings[key] = yaml.safe_load(value)
    try:
        return resolve_name(content["class_path"])(backbone=Features(width), **settings).eval()
    except TypeError as error:
        raise ConfigError(f"--methods {method}: {error}.") from error


# ---- episodes ----------------------------------------------------------------------------------------------------


def dirichlet(keys: Keys, alpha: float, size: int) -> np.ndarray:
    """Points `(T, size)` of a symmetric Dirichlet distribution: gamma variates over their sum, by inversion."""
    u = torch.from_numpy(uniform(keys, size))
    low, high = torch.zeros_like(u), torch.full_like(u, 50 + 10 * alpha)
    order = torch.full_like(u, alpha)
    for _ in range(80):  # of bisection
        middle = (low + high) / 2
        below = torch.special.gammainc(order, middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low / low.sum(1, keepdim=True)).numpy()


def shared_out(parts: np.ndarray, total: int, most: int) -> np.ndarray:
    """Whole numbers `(T, N)` near `parts * total` that sum to `total`, none above `most`; by largest remainders."""
    counts = np.minimum(np.floor(parts * total), most).astype(np.int64)
    for row, part in zip(counts, parts, strict=True):
        while row.sum() < total:
            lacks = np.where(row < most, part * total - row, -np.inf)
            row[lacks.argmax()] += 1
    return counts


class Episodes(NamedTuple):
    """Frozen test episodes of features. With `alpha`, their class proportions are from a Dirichlet distribution."""

    bank: ClassBank
    shape: EpisodeShape
    seed: int
    alpha: float | None = None

    def batches(self, count: int) -> Iterator[Episode]:
        for start in range(0, count, AT_ONCE):
            yield self.draw(range(start, min(start + AT_ONCE, count)))

    def draw(self, ids: Sequence[int]) -> Episode:
        if self.alpha is None:
            return EpisodeDataset(self.bank, self.shape, self.seed, "test").__getitems__(ids)
        n_way, k_shot, n_query = self.shape
        total, most = n_way * n_query, min(n_way * n_query, int(self.bank.size.min()) - k_shot)
        tasks = EpisodeDataset(self.bank, EpisodeShape(n_way, k_shot, most), self.seed, "test").__getitems__(ids)
        keys = subkeys(episode_keys(self.seed, STREAM["test"], ids), [PROPORTIONS])[..., 0]
        counts_TN = torch.from_numpy(shared_out(dirichlet(keys, self.alpha, n_way), total, most))
        kept = torch.arange(most) < counts_TN[..., None]  # the first so many queries of each class
        rows_TQ = kept.flatten(1).nonzero()[:, 1].view(len(ids), total)
        tasks_T1 = torch.arange(len(ids))[:, None]
        return tasks._replace(query=Batch(*(leaf[tasks_T1, rows_TQ] for leaf in tasks.query)))

    @property
    def queries(self) -> str:
        return "balanced" if self.alpha is None else f"Dirichlet({self.alpha:g})"


# ---- the comparison ----------------------------------------------------------------------------------------------


def ranks(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each method, from its scores `(E,)` on the same episodes; see `Row`."""
    left = sorted(scores, key=lambda name: -scores[name].mean().item())
    found: dict[str, float] = {}
    while left:
        best = scores[left[0]]
        tied = [name for name in left if name == left[0] or not _apart(best - scores[name])]
        place = len(found) + (len(tied) + 1) / 2
        found |= dict.fromkeys(tied, place)
        left = [name for name in left if name not in tied]
    return found


def _apart(differences_E: Tensor) -> bool:
    mean, ci95 = mean_and_ci95_over(differences_E)
    return bool(mean.abs() > ci95)


@torch.no_grad()
def compare(heads: Mapping[str, EmbeddingModule[Any]], episodes: Episodes, count: int) -> list[Row]:
    """A row for each method, the best first."""
    scores: dict[str, list[Tensor]] = {name: [] for name in heads}
    seconds = dict.fromkeys(heads, 0.0)
    by_class = episodes._replace(bank=replace(episodes.bank, labels="class"))
    needed = any(names_classes(head) for head in heads.values())
    both = zip(episodes.batches(count), (by_class if needed else episodes).batches(count), strict=True)
    for ordinary, named in both:
        for name, head in heads.items():
            tasks = named if names_classes(head) else ordinary
            start = perf_counter()
            preds = head.play(tasks).preds
            seconds[name] += perf_counter() - start
            scores[name].append(EpisodicAccuracy.per_episode(preds, tasks.query.y).double())
    of_all = {name: torch.cat(parts) for name, parts in scores.items()}
    inductive = [name for name in heads if not heads[name].transductive]
    best = max(inductive or heads, key=lambda name: of_all[name].mean().item())
    places, rows = ranks(of_all), []
    for name, values in of_all.items():
        acc, ci95 = (value.item() for value in mean_and_ci95_over(values))
        difference, difference_ci95 = (
            round(value.item(), 12) for value in mean_and_ci95_over(values - of_all[best])
        )  # what is left of zero by rounding is zero
        rows.append(
            Row(
                episodes.shape.k_shot, episodes.queries, name, heads[name].transductive, count, acc, ci95,
                places[name], difference, difference_ci95, 1000 * seconds[name] / count,
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: -row.acc)


def names_classes(head: EmbeddingModule[Any]) -> bool:
    """Whether the labels of its episodes are to be indices of classes."""
    return "test_class_labels" in head.needs


def markdown(rows: Sequence[Row], what: str) -> str:
    """A table for each kind of episodes, below a line that says what they are."""
    parts = []
    for kind in dict.fromkeys((row.k_shot, row.queries) for row in rows):
        of_kind = [row for row in rows if (row.k_shot, row.queries) == kind]
        best = next((row for row in of_kind if not row.transductive), of_kind[0])
        lines = [f"{what}, {kind[0]}-shot, queries {kind[1]}, {of_kind[0].episodes} episodes:", "", HEADER]
        for row in of_kind:
            number = EpisodicAccuracy.number
            paired = "-" if row is best else number(row.difference, row.difference_ci95)
            read = "all" if row.transductive else "one"
            lines.append(
                f"| `{row.method}` | {read} | {number(row.acc, row.acc_ci95)} | {row.rank:g} | {paired} "
                f"| {row.ms_per_episode:.2f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def frozen(module: Any, of: Path) -> EmbeddingModule[Any]:
    """The module of a run, if features of an image are the same in every episode."""
    if not isinstance(module, EmbeddingModule):
        raise ConfigError(f"{of} holds a {type(module).__name__}, which changes its backbone; give a run of Baseline.")
    if (protocol := norm_protocol(module.backbone)) not in ("running", "no batch statistics"):
        raise ConfigError(
            f"{of} has normalisation {protocol}: the features of an image depend on the others of its episode, so they "
            "cannot be computed once; give a run with norm: running."
        )
    return module


def folder_of_images(root: Path, backbone: nn.Module, shape: EpisodeShape) -> ImageFolder:
    """All classes of a folder for testing, images as the backbone takes them."""
    in_shape: tuple[int, ...] = getattr(backbone, "in_shape", ())
    if not in_shape:
        raise ConfigError(
            "--folder: how large the images are to be is not known of the run's backbone; say so where it is trained: "
            "--model.backbone.in_shape [channels,height,width]."
        )
    if len(in_shape) != 3:
        raise ConfigError(f"--folder is for images, but the backbone takes inputs of shape {in_shape}; leave it out.")
    channels, size, _ = in_shape
    split = ClassSplit(fractions=(0, 0, 1))
    return ImageFolder(str(root), image_size=size, channels=channels, split=split, **shape._asdict())


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m lightning_meta benchmark heads", description=(__doc__ or "").split("\n\n")[0],
        epilog=(__doc__ or "").split("\n\n", 2)[2], formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, its experiment's name, or a checkpoint")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="heads (all of them)")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5], metavar="K", help="support images per class")
    parser.add_argument("--episodes", type=int, default=1000, help="of each kind (%(default)s)")
    parser.add_argument("--n_way", type=int, help="classes of an episode (as the run was tested)")
    parser.add_argument("--n_query", type=int, help="query images per class (as the run was tested)")
    parser.add_argument(
        "--unbalanced", type=float, default=2.0, metavar="ALPHA",
        help="parameter of the Dirichlet distribution, the smaller the more unequal; 0: leave this part out "
        "(%(default)s)",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="test on your own images, <folder>/<class>/ (the run's data)")
    parser.add_argument("--out", type=Path, default=Path("runs/heads"), help="where the files go (%(default)s)")
    parser.add_argument("--page", type=Path, help="a Markdown file with places for tables, see docs/heads.md")
    given = parser.parse_args(arguments)
    require_at_least(1, episodes=given.episodes, **{f"shots {k}": k for k in given.shots})
    if given.page:
        places_for(given.shots, given.page)
    checkpoint = given.run if given.run.is_file() else None
    run = (checkpoints.run_of(checkpoint) or checkpoint.parent) if checkpoint else trained_run(given.run)
    loaded, data, checkpoint = load_run(run, checkpoint)
    if not isinstance(data, ClassificationDataModule):
        raise ConfigError(
            f"{run} is on {data.name}; heads are compared on classes: give a run that learned to classify."
        )
    if isinstance(data, Mixed) and not given.folder:
        raise ConfigError(f"{run} is on several data sets, {data.name}; heads are compared on one: give --folder.")
    module = frozen(loaded, checkpoint)
    as_tested = data.shapes["test"]
    n_way, n_query = given.n_way or as_tested.n_way, given.n_query or as_tested.n_query
    smallest = EpisodeShape(n_way, min(given.shots), n_query)
    tested = folder_of_images(given.folder, module.backbone, smallest) if given.folder else data
    bank, width = embedded(module, tested)
    heads = {name: make(name, width) for name in given.methods or all_methods()}
    if any(isinstance(head, PretrainedModule) and head.features == "cl2n" for head in heads.values()):
        data.prepare_data()
        center = module.features_of(data.training_inputs()).mean(0, keepdim=True)
        for head in heads.values():
            if isinstance(head, PretrainedModule):
                head.center_on(center)
    for head in heads.values():
        if isinstance(head, TipAdapter):
            head.name_classes(tested, "test")
    rows = []
    for k_shot in given.shots:
        shape = EpisodeShape(n_way, k_shot, n_query)
        for head in heads.values():
            head.check_task(shape, "test")
        rows += compare(heads, Episodes(bank, shape, tested.seed), given.episodes)
        if given.unbalanced and any(head.transductive for head in heads.values()):
            found_rows = compare(heads, Episodes(bank, shape, tested.seed, given.unbalanced), given.episodes)
            best = next((row for row in found_rows if not row.transductive), None)
            rows += [row for row in found_rows if row.transductive or row is best]
    what = f"{type(module).__name__}'s backbone on {tested.name}, {n_way}-way"
    text = markdown(rows, what)
    write(text, rows, checkpoint, given.out)
    if given.page:
        tables = {k: markdown([row for row in rows if row.k_shot == k], what) for k in given.shots}
        into_page(tables, given.page, tested.name)
    print(
        f"{text}\n\n± are 95 % intervals over episodes, of differences paired. Files: {given.out}/heads.md, .csv, .json"
    )


def embedded(module: EmbeddingModule[Any], data: ClassificationDataModule) -> tuple[ClassBank, int]:
    """The test classes with features in place of images, and the width of these."""
    data.prepare_data()
    data.setup("test")
    bank = data.source("test")
    features_ED = module.features_of(bank.inputs)
    return replace(bank, inputs=features_ED), features_ED.shape[1]


def write(text: str, rows: Sequence[Row], checkpoint: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "heads.md").write_text(text + "\n")
    write_csv(out / "heads.csv", [row._asdict() for row in rows])
    content = {"checkpoint": str(checkpoint), "step": checkpoints.describe(checkpoint).step}
    content |= {"rows": [row._asdict() for row in rows]}
    (out / "heads.json").write_text(json.dumps(content, indent=1) + "\n")


def places_for(shots: Iterable[int], page: Path) -> str:
    """The text of a page that has places for tables of these shots. Raises `DataError` if it has none."""
    text = page.read_text() if page.is_file() else ""
    if not {int(place[3]) for place in PLACE.finditer(text)} & {*shots}:
        raise DataError(
            f"{page} has no place for the tables; it needs lines <!-- heads: {min(shots)}-shot --> and "
            "<!-- end of heads -->."
        )
    return text


def into_page(texts: Mapping[int, str], page: Path, data: str) -> None:
    """Put the tables of each number of shots into their place in a page; the places of others stay as they are.

    A place may name its data set too, `<!-- heads: Glyphs 5-shot -->`; if any does that names `data`, only such ones
    are filled, and else those without a name.
    """
    before = places_for(texts, page)
    name = data if any(place[2] == data for place in PLACE.finditer(before)) else None

    def fill(place: re.Match[str]) -> str:
        text = texts.get(int(place[3]))
        return place[0] if text is None or place[2] != name else f"{place[1]}\n{text}\n\n{place[4]}"

    page.write_text(PLACE.sub(fill, before))
