"""A trained TabPFN as a classifier of scikit-learn: `fit` reads the rows, and nothing is trained.

Pedregosa et al.: "Scikit-learn: Machine Learning in Python" (2012), arXiv:1201.0490.

    from lightning_meta.interop.sklearn import TabPFNClassifier
    TabPFNClassifier("tab_pfn_tabularprior_5w10s").fit(x, y).predict_proba(others)
"""

from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lightning_meta import checkpoints
from lightning_meta.algorithms.in_context.tab_pfn import TabPFN
from lightning_meta.cli.predict import config_of, load_module, trained_run
from lightning_meta.core import Batch


class TabPFNClassifier(ClassifierMixin, BaseEstimator):
    """The mean of what a `TabPFN` says with columns in several orders, because it is not indifferent to their order.

    Of more columns than it was trained with each order has as many, drawn at random. Gaps (NaN) are allowed.

    Args:
        run: the name of an experiment or the folder of a run whose checkpoint is used, or a `TabPFN`.
        orders: of the columns; the first is that of the table.
        seed: of the others.
    """

    def __init__(self, run: str | Path | TabPFN = "tab_pfn_tabularprior_5w10s", orders: int = 8, seed: int = 0) -> None:
        self.run, self.orders, self.seed = run, orders, seed

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Read rows and their classes, by any names."""
        x_SF, y_S = validate_data(self, X, y, dtype=np.float32, ensure_all_finite="allow-nan")
        check_classification_targets(y_S)
        self.classes_, labels = np.unique(y_S, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"Classifier can't train when only one class is present: {self.classes_}.")
        self.module_ = (deepcopy(self.run) if isinstance(self.run, TabPFN) else trained(Path(self.run))).eval()
        draw = np.random.default_rng(self.seed)
        columns, most = x_SF.shape[1], self.module_.features
        drawn = [draw.permutation(columns)[:most] for _ in range(self.orders)]
        self.orders_ = [np.arange(columns), *drawn[1:]] if columns <= most else drawn
        labels_S = torch.from_numpy(labels.astype(np.int64))
        with torch.no_grad():
            self.tables_ = [
                self.module_.adapt(Batch(torch.from_numpy(x_SF[:, order]), labels_S)) for order in self.orders_
            ]
        return self

    def predict_proba(self, X: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Of each row and class `(Q, C)`, in the order of `classes_`."""
        check_is_fitted(self)
        x_QF = validate_data(self, X, dtype=np.float32, ensure_all_finite="allow-nan", reset=False)
        parts = [
            self.module_.predict(table, torch.from_numpy(x_QF[:, order]))[:, : len(self.classes_)].double().numpy()
            for table, order in zip(self.tables_, self.orders_, strict=True)
        ]
        mean_QC = np.mean(parts, axis=0)
        return mean_QC / mean_QC.sum(1, keepdims=True)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The likeliest class of each row."""
        likeliest_Q = self.predict_proba(X).argmax(1)  # first: it asks whether there was a fit
        return self.classes_[likeliest_Q]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def trained(place: Path) -> TabPFN:
    """The module of a run, from its best checkpoint."""
    run = trained_run(place)
    module, _ = load_module(config_of(run)["model"]["class_path"], checkpoints.best_or_last(run))
    return module
