"""Tip-Adapter (tip_adapter) against its formula; class embeddings of all kinds of files, and of wrong ones."""

import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.algorithms import TipAdapter
from lightning_meta.class_embeddings import read_class_embeddings
from lightning_meta.core import Batch, Episode
from lightning_meta.errors import ConfigError
from tests.conftest import CLASSES, Blobs, Make, blobs, conv4, feature_episodes
from tests.modules.test_episodic import trainer


@cache
def without_names() -> str:
    """A file of as many rows as `Blobs` has classes, as wide as the features of `conv4`."""
    path = Path(mkdtemp()) / "rows.npz"
    np.savez(path, embeddings=np.random.default_rng(0).normal(size=(CLASSES, 6)))
    return str(path)


CASES: dict[str, Make] = {"tip_adapter": lambda: TipAdapter(conv4(), n_classes=CLASSES, steps=2, inner_lr=0.1)}
VARIANTS: dict[str, Make] = {
    "tip_adapter-texts": lambda: TipAdapter(conv4(), n_classes=CLASSES, class_embeddings=without_names(), scale=3.0)
}
ROWS = {"cat": [3.0, 4.0], "dog": [-1.0, 0.0], "eel": [0.0, 2.0]}


def module(path: Path | str | None, width: int = 8, **settings: Any) -> TipAdapter:
    network = nn.Flatten()
    network.out_features = width
    return TipAdapter(network, class_embeddings=None if path is None else str(path), **settings).double().eval()


def embeddings(path: Path) -> Tensor:
    rows = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    torch.save(rows, path)
    return F.normalize(rows.double(), dim=1)


def logit(query: Tensor, keys: Tensor, labels: Tensor, c: int, texts: Tensor | None, weight: float) -> float:
    """Of class `c`: the sum over the cache, and the cosine with the name."""
    cached = sum(math.exp(-2.0 * (1 - float(query @ k))) for k, y in zip(keys, labels.tolist(), strict=True) if y == c)
    return weight * cached + (0.0 if texts is None else 5.0 * float(query @ texts[c]))


@pytest.mark.parametrize("weight", [0.7, 0.0], ids=["adapter", "zero-shot"])
@torch.no_grad()
def test_logits_equal_the_formula(weight: float, tmp_path: Path) -> None:
    """Classes 1, 4 and 6 of seven; the others of the file are not in question."""
    texts = embeddings(tmp_path / "rows.pt")
    tasks, names = feature_episodes(), torch.tensor([1, 4, 6])
    named = Episode(*(Batch(x, names[y]) for x, y in tasks))
    preds = module(tmp_path / "rows.pt", scale=5.0, cache_weight=weight, sharpness=2.0).play(named).preds
    assert preds.shape == (3, 15, 7)
    others = [c for c in range(7) if c not in names]
    assert (preds[..., others] == -torch.inf).all()
    for t in range(3):
        support, query = (F.normalize(part.x[t]) for part in named)
        for q in range(15):
            expected = [logit(query[q], support, named.support.y[t], c, texts, weight) for c in names.tolist()]
            torch.testing.assert_close(preds[t, q, names], torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_the_keys_are_tuned_by_adam_as_torch_has_it(tmp_path: Path) -> None:
    embeddings(tmp_path / "rows.pt")
    tasks, names = feature_episodes(k_shot=3), torch.tensor([1, 4, 6])
    support = Batch(F.normalize(tasks.support.x[0]), names[tasks.support.y[0]])
    tuned = module(tmp_path / "rows.pt", scale=5.0, steps=6, inner_lr=0.05).fit_head(support).keys
    plain = module(tmp_path / "rows.pt", scale=5.0)
    keys = support.x.clone().requires_grad_()
    optimizer = torch.optim.Adam([keys], lr=0.05, eps=1e-4)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(plain.scores(plain.fit_head(support)._replace(keys=keys), support.x), support.y).backward()
        optimizer.step()
    torch.testing.assert_close(tuned, keys.detach(), rtol=1e-7, atol=1e-9)
    assert (tuned - support.x).abs().max() > 0.1


def write(path: Path, content: Any) -> Path:
    match path.suffix:
        case ".csv":
            path.write_text(content)
        case ".npz":
            np.savez(path, **{name: np.array(value) for name, value in content.items()})
        case ".safetensors":
            pytest.importorskip("safetensors.torch").save_file(content, path)
        case _:
            torch.save(content, path)
    return path


VECTORS = {name: torch.tensor(row) for name, row in ROWS.items()}
FILES: dict[str, Any] = {
    "rows.csv": "cat,3,4\ndog,-1,0\neel,0,2\n",
    "with_header.csv": "class,x,y\ncat,3,4\ndog,-1,0\neel,0,2\n",
    "vectors.npz": ROWS,
    "matrix.npz": {"embeddings": [*ROWS.values()], "names": [*ROWS]},
    "vectors.pt": VECTORS,
    "matrix.pt": {"embeddings": torch.stack([*VECTORS.values()]), "names": [*ROWS]},
    "vectors.safetensors": VECTORS,
}


@pytest.mark.parametrize("file", FILES)
def test_every_kind_of_file_is_read_alike(file: str, tmp_path: Path) -> None:
    if file.endswith("safetensors") and find_spec("safetensors") is None:
        pytest.skip("safetensors is not installed")
    found = read_class_embeddings(str(write(tmp_path / file, FILES[file])))
    assert sorted(found.names) == sorted(ROWS)
    expected = torch.stack([VECTORS[name] for name in ("eel", "cat")])
    assert torch.equal(found.of(["eel", "cat"], 2, "test"), expected)
    with pytest.raises(ConfigError, match=r"has no row for ape, of the 2 classes of test; it has cat, dog, eel and"):
        found.of(["cat", "ape"], 2, "test")
    with pytest.raises(ConfigError, match=r"the 3 classes of test have no names here"):
        found.of(None, 3, "test")


WRONG: dict[str, tuple[str, Any, str]] = {
    "ragged": ("a.csv", "cat,1,2\ndog,1\n", "rows of different widths"),
    "empty": ("a.csv", "", "rows of different widths, or none"),
    "words": ("a.csv", "cat,1,2\ndog,x,2\n", "cannot be read .*'x'"),
    "a vector": ("a.pt", torch.ones(3), r"has shape \(3,\)"),
    "names": ("a.pt", {"embeddings": torch.ones(3, 2), "names": ["a"]}, r"shape \(3, 2\) and 1 names"),
    "not finite": ("a.pt", torch.full((2, 2), torch.nan), "not finite"),
    "no weights": ("a.pt", nn.Linear(2, 2), "cannot be read"),
    "another kind": ("a.txt", {}, r"take a file \.csv, \.npz, \.pt or \.safetensors"),
}


@pytest.mark.parametrize(("file", "content", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_told_in_one_line(file: str, content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        read_class_embeddings(str(write(tmp_path / file, content)))
    assert len(str(refusal.value).splitlines()) == 1


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    embeddings(tmp_path / "rows.pt")
    with pytest.raises(ConfigError, match=r"rows of width 8, but the backbone gives 9 features"):
        module(tmp_path / "rows.pt", width=9)
    with pytest.raises(ConfigError, match=r"class_embeddings=nonesuch\.pt: there is no such file"):
        module("nonesuch.pt")
    with pytest.raises(ConfigError, match=r"cache_weight=0 leaves the names of the classes; give their"):
        module(None, cache_weight=0)
    torch.save(torch.randn(5, 6), tmp_path / "five.pt")
    few = TipAdapter(conv4("running"), n_classes=CLASSES, class_embeddings=str(tmp_path / "five.pt"))
    with pytest.raises(ConfigError, match=r"five\.pt has 5 rows without names, but test has 12 classes"):
        trainer().test(few, datamodule=blobs(), verbose=False)


class NamedBlobs(Blobs):
    def class_names(self, split: str) -> list[str]:
        return [f"{split} {number}" for number in range(CLASSES)]


@torch.no_grad()
def test_names_decide_which_row_is_whose_in_every_split(tmp_path: Path) -> None:
    """The file has the classes of both splits, in another order."""
    network = conv4("running").eval()
    settings = dict(n_way=3, k_shot=2, n_query=2, val_episodes=20, test_episodes=20)
    data = NamedBlobs(**settings)
    names = [name for split in ("test", "val") for name in reversed(data.class_names(split))]
    rows = dict(zip(names, torch.randn(len(names), 6), strict=True))
    torch.save(rows, tmp_path / "rows.pt")
    module = TipAdapter(network, n_classes=CLASSES, class_embeddings=str(tmp_path / "rows.pt"), cache_weight=0)
    found = {
        "test": trainer().test(module, datamodule=data, verbose=False)[0]["test/acc"],
        "val": trainer().validate(module, datamodule=data, verbose=False)[0]["val/acc"],
    }
    ordinary = NamedBlobs(**settings)  # whose labels are places in an episode
    ordinary.setup("fit")
    ordinary.setup("test")
    for split, accuracy in found.items():
        right = []
        for episode in range(20):
            _, query = ordinary.dataset(split)[episode]
            named = ordinary.names_in(split, episode)
            texts = F.normalize(torch.stack([rows[named[label]] for label in range(3)]))
            right += ((F.normalize(network(query.x)) @ texts.T).argmax(1) == query.y).tolist()
        assert accuracy == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert found["test"] != found["val"]
