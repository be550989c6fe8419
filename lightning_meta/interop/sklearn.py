"""A trained TabPFN as a classifier or a regressor of scikit-learn: `fit` reads the rows, and nothing is trained.

Pedregosa et al.: "Scikit-learn: Machine Learning in Python" (2012), arXiv:1201.0490.

    from lightning_meta.interop.sklearn import TabPFNClassifier
    TabPFNClassifier("tab_pfn_tabularprior_5w10s").fit(x, y).predict_proba(others)
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lightning_meta import checkpoints
from lightning_meta.algorithms.in_context.tab_pfn import TabPFN
from lightning_meta.algorithms.in_context.tab_pfn_regression import TabPFNRegression
from lightning_meta.cli.predict import config_of, load_module, trained_run
from lightning_meta.core import Batch
from lightning_meta.core.gaussian import Gaussian, mixture_moments
from lightning_meta.modules import TabularModule

Numbers = npt.NDArray[np.float32]


class ReadsTables(BaseEstimator):
    """What both have in common: several orders of the columns, because a network is not indifferent to their order.

    Of more columns than it was trained with each order has as many, drawn at random. Gaps (NaN) are allowed.
    """

    kind: ClassVar[type[TabularModule[Any]]]
    module_: Any
    run: Any
    orders: int
    seed: int

    def _read(self, x_SF: Numbers, y: torch.Tensor) -> None:
        """Let the module read rows and targets, once for each order of the columns."""
        module = deepcopy(self.run) if isinstance(self.run, TabularModule) else trained(Path(self.run))
        if not isinstance(module, self.kind):
            raise ValueError(
                f"{type(self).__name__} takes a {self.kind.__name__}, but was given a {type(module).__name__}."
            )
        self.module_ = module.eval()
        draw = np.random.default_rng(self.seed)
        columns, most = x_SF.shape[1], module.features
        drawn = [draw.permutation(columns)[:most] for _ in range(self.orders)]
        self.orders_ = [np.arange(columns), *drawn[1:]] if columns <= most else drawn
        with torch.no_grad():
            self.tables_ = [module.adapt(Batch(torch.from_numpy(x_SF[:, order]), y)) for order in self.orders_]

    def _asked(self, X: npt.ArrayLike) -> list[tuple[Any, torch.Tensor]]:
        """Of each order what was read, and the rows in question."""
        check_is_fitted(self)
        x_QF = validate_data(self, X, dtype=np.float32, ensure_all_finite="allow-nan", reset=False)
        return [
            (table, torch.from_numpy(x_QF[:, order])) for table, order in zip(self.tables_, self.orders_, strict=True)
        ]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class TabPFNClassifier(ClassifierMixin, ReadsTables):
    """The mean of what a `TabPFN` says with columns in several orders.

    Args:
        run: the name of an experiment or the folder of a run whose checkpoint is used, or a `TabPFN`.
        orders: of the columns; the first is that of the table.
        seed: of the others.
    """

    kind = TabPFN

    def __init__(self, run: str | Path | TabPFN = "tab_pfn_tabularprior_5w10s", orders: int = 8, seed: int = 0) -> None:
        self.run, self.orders, self.seed = run, orders, seed

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Read rows and their classes, by any names."""
        x_SF, y_S = validate_data(self, X, y, dtype=np.float32, ensure_all_finite="allow-nan")
        check_classification_targets(y_S)
        self.classes_, labels = np.unique(y_S, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_}.")
        self._read(x_SF, torch.from_numpy(labels.astype(np.int64)))
        return self

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Of each row and class `(Q, C)`, in the order of `classes_`."""
        parts = [
            self.module_.predict(table, x_QF)[:, : len(self.classes_)].double().numpy()
            for table, x_QF in self._asked(X)
        ]
        mean_QC = np.mean(parts, axis=0)
        return mean_QC / mean_QC.sum(1, keepdims=True)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The likeliest class of each row."""
        likeliest_Q = self.predict_proba(X).argmax(1)  # first: it asks whether there was a fit
        return self.classes_[likeliest_Q]


class TabPFNRegressor(RegressorMixin, ReadsTables):
    """The mixture of what a `TabPFNRegression` says with columns in several orders.

    Args:
        run: the name of an experiment or the folder of a run whose checkpoint is used, or a `TabPFNRegression`.
        orders: of the columns; the first is that of the table.
        seed: of the others.
    """

    kind = TabPFNRegression

    def __init__(
        self,
        run: str | Path | TabPFNRegression = "tab_pfn_regression_tabularprior_50s",
        orders: int = 8,
        seed: int = 0,
    ) -> None:
        self.run, self.orders, self.seed = run, orders, seed

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Read rows and their numbers."""
        x_SF, y_S = validate_data(self, X, y, dtype=np.float32, y_numeric=True, ensure_all_finite="allow-nan")
        self._read(x_SF, torch.from_numpy(np.asarray(y_S, dtype=np.float32))[:, None])
        return self

    def predict(self, X: npt.ArrayLike, return_std: bool = False) -> Any:
        """Means `(Q,)`, and with `return_std` standard deviations `(Q,)` as well."""
        asked = self._asked(X)
        with torch.no_grad():
            parts = [self.module_.moments(table, self.module_.logits(table, x_QF)) for table, x_QF in asked]
        mean, std = mixture_moments(Gaussian(*(torch.cat(part, 1).double() for part in zip(*parts, strict=True))), 1)
        return (mean.numpy(), std.numpy()) if return_std else mean.numpy()


def trained(place: Path) -> TabularModule[Any]:
    """The module of a run, from its best checkpoint."""
    run = trained_run(place)
    module, _ = load_module(config_of(run)["model"]["class_path"], checkpoints.best_or_last(run))
    return module
