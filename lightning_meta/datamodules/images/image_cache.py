"""Images of classes, made once and kept in one file with their checksum."""

import hashlib
import logging
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_meta.datamodules.files import whole_or_not_at_all
from lightning_meta.errors import DataError

log = logging.getLogger(__name__)


def write_cache(path: Path, images: dict[str, Tensor], option: str = "--data.root") -> None:
    """Write the images `(examples, C, H, W)` uint8 of each class with their checksum.

    Raises `DataError` if it cannot; `option` is the setting that chooses another folder.
    """
    content = {"images": list(images.values()), "classes": list(images), "sha256": checksum(images.values())}
    try:
        with whole_or_not_at_all(path) as unfinished:
            torch.save(content, unfinished)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot write {path} ({error}); choose another folder for data with {option}.") from error


def read_cache(path: Path, classes: Sequence[str] | None = None, what: str = "classes") -> list[Tensor]:
    """The images `(examples, C, H, W)` of each of `classes`, or of all, that `write_cache` wrote.

    The log says how many there are of `what`. Raises `DataError` if the file is missing or is not what was written.
    """
    try:
        content = torch.load(path, weights_only=True)
        # Version 0.1 wrote Omniglot's "characters", with the images of all of them in one tensor.
        names = content["classes"] if "classes" in content else content["characters"]
        images, sha256 = dict(zip(names, content["images"], strict=True)), content["sha256"]
        if checksum(images.values()) != sha256:
            raise ValueError("the images do not match their checksum")
        selected = [images[name] for name in (images if classes is None else classes)]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; call prepare_data() first, which makes it.") from None
    except (
        AttributeError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it; the next run makes it again.") from error
    log.info("%s: %d of %d %s, sha256 %s.", path, len(selected), len(images), what, sha256)
    return selected


def checksum(images: Iterable[Tensor]) -> str:
    """SHA-256 of the pixels of all classes, one after the other."""
    digest = hashlib.sha256()
    for of_class in images:
        digest.update(of_class.contiguous().numpy().data)
    return digest.hexdigest()
