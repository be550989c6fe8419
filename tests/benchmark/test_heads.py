"""The comparison of heads: its episodes, its statistics, and the command on a tiny run."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from lightning_meta import algorithms
from lightning_meta.benchmark import heads
from lightning_meta.benchmark.heads import Episodes, dirichlet, into_page, make, ranks, shared_out
from lightning_meta.cli import main
from lightning_meta.cli.predict import load_run, trained_run
from lightning_meta.core.episode import EpisodeShape
from lightning_meta.core.sampling import episode_keys
from lightning_meta.datamodules.class_bank import ClassBank
from lightning_meta.errors import ConfigError, DataError
from lightning_meta.modules import TransductiveModule
from tests.conftest import blobs, conv4
from tests.modules.test_pretrained import config


def bank(classes: int = 8, examples: int = 60) -> ClassBank:
    """Each example is its class and its own number."""
    labels = torch.arange(classes).repeat_interleave(examples)
    numbers = torch.arange(examples).repeat(classes)
    return ClassBank.from_classes(torch.stack([labels, numbers], 1).float().view(classes, examples, 2))


@pytest.mark.parametrize("alpha", [0.5, 2.0, 30.0])
def test_proportions_have_the_moments_of_a_dirichlet_distribution(alpha: float) -> None:
    parts = dirichlet(episode_keys(0, 2, range(20000)), alpha, 4)
    np.testing.assert_allclose(parts.sum(1), 1, rtol=1e-9)
    np.testing.assert_allclose(parts.mean(0), 0.25, atol=0.01)
    expected = 0.25 * 0.75 / (4 * alpha + 1)  # the variance
    np.testing.assert_allclose(parts.var(0), expected, rtol=0.05)
    covariance = np.cov(parts[:, 0], parts[:, 1])[0, 1]
    assert covariance == pytest.approx(-0.0625 / (4 * alpha + 1), rel=0.1)


def test_whole_numbers_are_near_the_proportions_and_no_class_is_exceeded() -> None:
    parts = dirichlet(episode_keys(0, 2, range(200)), 0.5, 5)
    counts = shared_out(parts, total=75, most=75)
    assert (counts.sum(1) == 75).all()
    assert np.abs(counts - 75 * parts).max() < 1
    bounded = shared_out(parts, total=75, most=20)
    assert (bounded.sum(1) == 75).all()
    assert bounded.max() == 20
    assert bounded.min() >= 0


def test_unbalanced_episodes_are_a_function_of_their_number() -> None:
    episodes = Episodes(bank(), EpisodeShape(5, 2, 6), seed=3, alpha=1.0)
    together, alone = episodes.draw(range(4)), episodes.draw([2])
    assert torch.equal(together.query.x[2], alone.query.x[0])
    counts = torch.stack([y.bincount(minlength=5) for y in together.query.y])
    assert (counts.sum(1) == 30).all()
    assert counts.float().std(1).min() > 1
    for task in range(4):  # no example twice, none of the support set, and all of their classes
        support, query = together.support.x[task], together.query.x[task]
        rows = {tuple(row) for row in torch.cat([support, query]).tolist()}
        assert len(rows) == 40
        of_label = {(label, row[0]) for label, row in zip(together.query.y[task].tolist(), query.tolist(), strict=True)}
        assert len(of_label) == counts[task].count_nonzero()


def test_balanced_episodes_are_those_of_every_test() -> None:
    data = blobs()
    data.setup("test")
    ours = Episodes(data.source("test"), data.shapes["test"], data.seed).draw(range(7))
    theirs = data.dataset("test").__getitems__(range(7))
    assert torch.equal(ours.query.x, theirs.query.x)
    assert torch.equal(ours.support.y, theirs.support.y)


def test_ranks_share_places_where_the_paired_interval_contains_zero() -> None:
    """`b` is as good as `a` in the mean of what is paired; `c` is surely worse by a little, `d` by more."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(200, generator=generator).double()
    noise = 0.2 * torch.randn(200, generator=generator).double()
    scores = {"d": a - 0.5, "a": a, "c": a - 0.01, "b": a + noise - noise.mean() - 0.001}
    assert ranks(scores) == {"a": 1.5, "b": 1.5, "c": 3, "d": 4}
    assert ranks({"x": a, "y": a}) == {"x": 1.5, "y": 1.5}


def test_methods_are_those_whose_head_needs_no_training() -> None:
    names = heads.all_methods()
    assert {"simple_shot", "rfs", "baseline", "baseline_plus_plus", "protonet", "r2d2", "tim", "pt_map"} <= {*names}
    assert not {"maml", "relation_net", "neg_cosine"} & {*names}
    tim = make("tim:steps=7,inner_lr=0.5", width=3)
    assert (tim.steps, tim.inner_optimizer.lr) == (7, 0.5)
    with pytest.raises(ConfigError, match=r"relation_net is no head.*simple_shot"):
        make("relation_net", 3)
    with pytest.raises(ConfigError, match=r"tim:step=7.*step"):
        make("tim:step=7", 3)
    with pytest.raises(
        ConfigError, match=r"simpleshot: there is no.* Did you mean simple_shot\? All: .*tim"
    ) as refusal:
        make("simpleshot:features=l2n", 3)
    assert "maml" not in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning_meta"])
    Path("baseline.yaml").write_text(yaml.safe_dump(config("Baseline")))
    main(["fit", "--config", "baseline.yaml", "--test_after_fit", "false"])
    return tmp_path


def test_the_command_scores_as_test_does_and_pairs_the_differences(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("page.md").write_text("Before.\n\n<!-- heads: 2-shot -->\nold\n<!-- end of heads -->\n\nAfter.\n")
    words = "baseline --methods simple_shot rfs tim:steps=5,inner_lr=0.01 --shots 2 --episodes 7 --page page.md"
    heads.main(words.split())
    text = capsys.readouterr().out
    with Path("runs/heads/heads.csv").open() as file:
        rows = {(row["queries"], row["method"]): row for row in csv.DictReader(file)}
    tim = "tim:steps=5,inner_lr=0.01"
    assert {key for key in rows if key[0] == "balanced"} == {("balanced", m) for m in ("simple_shot", "rfs", tim)}
    uneven = [method for queries, method in rows if queries == "Dirichlet(2)"]
    assert tim in uneven
    assert len(uneven) == 2

    Path("other.yaml").write_text(yaml.safe_dump(config("RFS")))
    cli = main(["test", "--config", "other.yaml", "--ckpt_path", "baseline"])
    measured = cli.trainer.callback_metrics
    assert float(rows["balanced", "rfs"]["acc"]) == pytest.approx(measured["test/acc"].item(), abs=1e-6)
    assert float(rows["balanced", "rfs"]["acc_ci95"]) == pytest.approx(measured["test/acc_ci95"].item(), abs=1e-6)

    inductive = [rows["balanced", method] for method in ("simple_shot", "rfs")]
    best = max(float(row["acc"]) for row in inductive)
    for row in (*inductive, rows["balanced", tim]):
        assert float(row["difference"]) == pytest.approx(float(row["acc"]) - best, abs=1e-9)
    page = Path("page.md").read_text()
    assert page.startswith("Before.\n\n<!-- heads: 2-shot -->\n\nBaseline's backbone on Blobs, 3-way, 2-shot")
    assert page.endswith("<!-- end of heads -->\n\nAfter.\n")
    assert "old" not in page
    assert all(f"| `{method}` |" in text for _, method in rows)
    assert len(json.loads(Path("runs/heads/heads.json").read_text())["rows"]) == len(rows)
    assert all(math.isfinite(float(row["ms_per_episode"])) for row in rows.values())


def test_images_of_ones_own_are_tested_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, grey in (("dark", 20), ("middle", 120), ("light", 220)):
        (trained / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (20, 24), grey + 3 * number).save(trained / "photos" / name / f"{number}.png")
    words = "baseline --folder photos --methods simple_shot:features=l2n bd_cspn --shots 1 --episodes 4"
    heads.main(words.split())
    assert "on ImageFolder, 3-way, 1-shot, queries balanced, 4 episodes" in capsys.readouterr().out


def test_names_of_classes_are_a_head_too(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where each class's row is the mean feature of its images, names alone are as good as the class means."""
    for name, grey in (("dark", 20), ("middle", 120), ("light", 220)):
        (trained / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (16, 16), grey + 3 * number).save(trained / "photos" / name / f"{number}.png")
    module, *_ = load_run(trained_run(Path("baseline")))
    rows = {}
    for folder in sorted((trained / "photos").iterdir(), reverse=True):
        images = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in sorted(folder.iterdir())])
        rows[folder.name] = torch.nn.functional.normalize(module.features_of(images[:, None])).mean(0)
    torch.save(rows, "names.pt")
    words = "baseline --folder photos --shots 1 --episodes 6 --methods simple_shot:features=l2n tip_adapter"
    heads.main([*words.split(), "tip_adapter:class_embeddings=names.pt,cache_weight=0"])
    capsys.readouterr()
    with Path("runs/heads/heads.csv").open() as file:
        acc = {row["method"]: float(row["acc"]) for row in csv.DictReader(file)}
    assert acc["tip_adapter:class_embeddings=names.pt,cache_weight=0"] >= acc["simple_shot:features=l2n"] > 0.5
    torch.save({"dark": rows["dark"], "light": rows["light"]}, "names.pt")
    with pytest.raises(ConfigError, match=r"names\.pt has no row for middle, of the 3 classes of test"):
        heads.main([*words.split(), "tip_adapter:class_embeddings=names.pt"])


def test_a_page_gets_the_tables_that_it_has_places_for(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    one, five = (f"<!-- heads: {k}-shot -->\nold {k}\n<!-- end of heads -->\n" for k in (1, 5))
    page.write_text(f"{one}{five}")
    into_page({5: "new", 20: "of no place"}, page, "Glyphs")
    assert page.read_text() == one + "<!-- heads: 5-shot -->\n\nnew\n\n<!-- end of heads -->\n"
    before = page.read_text()
    with pytest.raises(DataError, match=r"page\.md has no place.*heads: 3-shot"):
        into_page({3: "table"}, page, "Glyphs")
    assert page.read_text() == before


def test_a_place_may_be_for_one_data_set(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- heads: {name}5-shot -->\n<!-- end of heads -->\n" for name in ("", "Glyphs ")))
    into_page({5: "of glyphs"}, page, "Glyphs")
    into_page({5: "of omniglot"}, page, "Omniglot")
    assert page.read_text() == (
        "<!-- heads: 5-shot -->\n\nof omniglot\n\n<!-- end of heads -->\n"
        "<!-- heads: Glyphs 5-shot -->\n\nof glyphs\n\n<!-- end of heads -->\n"
    )


def test_a_page_without_places_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(DataError, match=r"page\.md has no place.*heads: 2-shot"):
        heads.main(["no_run", "--shots", "2", "--page", str(tmp_path / "page.md")])


def test_a_folder_needs_a_backbone_for_images_of_a_known_size() -> None:
    shape = EpisodeShape(3, 1, 2)
    with pytest.raises(ConfigError, match=r"is not known of the run's backbone.*--model\.backbone\.in_shape"):
        heads.folder_of_images(Path("photos"), nn.AdaptiveAvgPool2d(1), shape)
    with pytest.raises(ConfigError, match=r"takes inputs of shape \(7,\); leave it out"):
        heads.folder_of_images(Path("photos"), heads.Features(7), shape)


def test_features_that_depend_on_the_episode_are_refused() -> None:
    module = algorithms.Baseline(conv4("transductive"), n_classes=12)
    with pytest.raises(ConfigError, match=r"normalisation transductive.*norm: running"):
        heads.frozen(module, Path("run"))
    with pytest.raises(ConfigError, match="holds a MAML"):
        heads.frozen(algorithms.MAML(conv4("running"), n_way=3), Path("run"))


def test_transductive_heads_say_so_in_the_table() -> None:
    of_all = {name: make(name, 4).transductive for name in heads.all_methods()}
    assert {name for name, reads_all in of_all.items() if reads_all} == {
        name for name in of_all if isinstance(make(name, 4), TransductiveModule)
    }
    assert sum(of_all.values()) == 6
