"""Splits of MedMNIST's data sets, read by its authors' own package from files whose checksum is theirs."""

import hashlib
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import medmnist
import torch
from torch import Tensor

from recipes.data.download import download

FOLDER = "medmnist"
SIZE = (28, 28)


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Args:
        images: ``(images, 28, 28)`` of type uint8.
        classes: ``(images,)``, integers.
    """

    images: Tensor
    classes: Tensor


def title(dataset: str) -> str:
    """Return the name of a data set as its authors write it, as in ``OCTMNIST``.

    Raises:
        ValueError: if MedMNIST has no such data set.
    """
    return _info(dataset)["python_class"]


def prepare(dataset: str, root: Path) -> None:
    """Download a data set to ``root/medmnist``, unless its file is in ``root`` or there.

    Raises:
        ConnectionError: if it cannot be downloaded.
        ValueError: if what was downloaded has not the official checksum; nothing is kept then.
    """
    if find_file(root, dataset) is None:
        url, md5 = (_info(dataset)[name] for name in ("url", "MD5"))
        download(url, root / FOLDER / f"{dataset}.npz", verify=partial(_require_md5, md5=md5))


def read(dataset: str, root: Path, part: Literal["train", "test"], *, official: bool = True) -> Split:
    """Read one part of a data set.

    Args:
        dataset: name in MedMNIST, such as ``octmnist``.
        root: folder with the file ``<dataset>.npz``, directly or in a subfolder ``medmnist``.
        part: which part.
        official: whether the file must have the official checksum.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is another file than the official one, is broken, or does not have what it should.
    """
    path, url = find_file(root, dataset), _info(dataset)["url"]
    if path is None:
        raise FileNotFoundError(
            f"Expected {dataset}.npz in {root.resolve()} or its subfolder {FOLDER}. Call `prepare_data()` to download "
            f"it from {url}, or set `data.root` or AGT_DATA_ROOT to a folder that has it."
        )
    try:
        if official:
            _require_md5(path, _info(dataset)["MD5"])
        if not zipfile.is_zipfile(path):
            raise ValueError("Expected an archive of NumPy arrays, but it is broken or something else.")
        return _split(getattr(medmnist, title(dataset))(split=part, root=str(path.parent)), dataset)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Cannot use {path} as {title(dataset)}. {error} Delete it to download it again from {url}"
            + (", or set `data.official=false` to take it as it is." if official else ".")
        ) from error


def find_file(root: Path, dataset: str) -> Path | None:
    """Return the file of a data set in ``root/medmnist`` or ``root``; None if neither has it."""
    places = (folder / f"{dataset}.npz" for folder in (root / FOLDER, root))
    return next((path for path in places if path.is_file()), None)


def _info(dataset: str) -> dict[str, Any]:
    if dataset not in medmnist.INFO:
        raise ValueError(f"Expected `dataset` to be one of {', '.join(medmnist.INFO)}, but got {dataset!r}.")
    return medmnist.INFO[dataset]


def _require_md5(path: Path, md5: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise ValueError(f"Expected the md5 sum {md5} of the official file, but got {found}.")


def _split(samples: Any, dataset: str) -> Split:
    """Return the content of a file, or raise if it is not that of the data set."""
    images, classes = torch.from_numpy(samples.imgs), torch.from_numpy(samples.labels)
    count = len(_info(dataset)["label"])
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != SIZE or not len(images):
        raise ValueError(
            f"Expected images of 28 × 28 bytes, but got shape {tuple(images.shape)} and type {images.dtype}."
        )
    if tuple(classes.shape) != (len(images), 1) or classes.is_floating_point() or int(classes.max()) >= count:
        raise ValueError(
            f"Expected {len(images)} labels from 0 to {count - 1}, one for each image, but got shape "
            f"{tuple(classes.shape)} and labels up to {classes.max()}."
        )
    return Split(images, classes[:, 0].long())
