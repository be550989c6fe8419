"""The measurement of what an outer update costs, on a small problem."""

from pathlib import Path

import pytest
import yaml

from lightning_meta.benchmark import outer_cost
from tests.conftest import blobs

BLOBS, MLP = "tests.conftest.Blobs", {"class_path": "lightning_meta.backbones.MLP"}
SMALL = {
    "trainer": {"accelerator": "cpu", "max_steps": 1},
    "data": {
        "class_path": "lightning_meta.datamodules.HeldOutImages",
        "init_args": {
            "images": {"class_path": BLOBS, "init_args": {"n_way": 2, "k_shot": 1, "n_query": 1}},
            "support_per_class": 5, "held_out_per_class": 2, "val_per_class": 2, "test_per_class": 3, "batch_size": 6,
            "truncation": 3, "meta_batch_size": 2, "val_episodes": 2, "test_episodes": 3,
        },
    },
    "model": {
        "class_path": "lightning_meta.algorithms.MetaWeightNet",
        "init_args": {
            "backbone": MLP | {"init_args": {"in_features": 256, "hidden": [8]}},
            "n_classes": 12,
        },
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_row_with_the_time_against_plain_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert blobs().name == BLOBS.rpartition(".")[-1]
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    outer_cost.main(["small.yaml"])
    *_, head, line, row = capsys.readouterr().out.strip().splitlines()
    assert f"{head}\n{line}" == outer_cost.HEADER
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["`small`", "MetaWeightNet", "2 x 3"]
    whole, plain, ratio = map(float, cells[3:])
    assert whole > plain > 0 and ratio == pytest.approx(whole / plain, abs=0.2)
    assert [path.name for path in Path().iterdir()] == ["small.yaml"]


def test_what_is_no_bilevel_problem_is_refused() -> None:
    episodic = SMALL | {
        "data": {"class_path": "lightning_meta.datamodules.Sinusoid", "init_args": {"val_episodes": 2}},
        "model": {
            "class_path": "lightning_meta.algorithms.CommonMean",
            "init_args": {"backbone": MLP | {"init_args": {"hidden": [8]}}},
        },
    }
    Path("episodic.yaml").write_text(yaml.safe_dump(episodic))
    with pytest.raises(SystemExit, match="CommonMean is no bilevel problem"):
        outer_cost.main(["episodic.yaml"])
