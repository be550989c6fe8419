"""School: the exam score of a pupil, where each of 139 schools of London is a task.

Data of the Inner London Education Authority, 15,362 pupils of the years 1985 to 1987, in the form of Argyriou,
Evgeniou, Pontil: "Convex Multi-Task Feature Learning" (2008), Machine Learning 73: 27 binary features of pupil and
school (the year, the gender, the ethnic group, the kind of the school, ...), and a constant one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_meta.datamodules.rows import Row
from lightning_meta.datamodules.tables.tables import Tables
from lightning_meta.errors import DataError, reason
from lightning_meta.extras import need


class School(Tables):
    """The schools as tasks. Needs `scipy`, and `school.mat` of MALSAR.

    Args:
        root: folder for data, with `school/school.mat`.
        k_shot, n_query: pupils of a school; the smallest has 22.
        **kwargs: of `Tables`.
    """

    origin = "copy data/school.mat there from https://github.com/jiayuzhou/MALSAR."

    def __init__(self, root: str = "data", k_shot: int = 10, n_query: int = 10, **kwargs: Any) -> None:
        path = str(Path(root) / "school" / "school.mat")
        super().__init__(path, target="score", k_shot=k_shot, n_query=n_query, **kwargs)

    def read(self) -> Iterator[tuple[str, Row]]:
        need("scipy", "School")
        from scipy.io import loadmat

        try:
            content = loadmat(self.path)
            schools = list(zip(content["X"].ravel(), content["Y"].ravel(), strict=True))
        except Exception as error:  # scipy fails as whatever it stumbles over
            raise DataError(f"{self.path} is not school.mat of MALSAR ({reason(error)}); {self.origin}") from error
        for number, (x_EF, y_E1) in enumerate(schools):
            for features, score in zip(x_EF.tolist(), y_E1.ravel().tolist(), strict=True):
                yield f"school_{number:03}", {f"x{k}": value for k, value in enumerate(features)} | {"score": score}
