from lightning_meta.algorithms import DatasetDistillation
from tests.algorithms.bilevel_cases import network
from tests.conftest import SIZE
NEEDS = {"DatasetDistillation": dict(truncation=2, unroll_steps=2, evaluate="retrained")}
BILEVEL = {
    "dataset-distillation": lambda **kw: DatasetDistillation(network(), 4, (1, SIZE, SIZE), **kw),
}
