"""Gamma rays and hadrons in a Cherenkov telescope: UCI's MAGIC data."""

import os
import zlib
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype
from typing_extensions import override

from recipes.data.archives import find_member, has_member, open_member
from recipes.data.download import download
from recipes.data.in_memory import InMemory, Split

URL = "https://archive.ics.uci.edu/static/public/159/magic+gamma+telescope.zip"
MEMBER = "magic04.data"
FOLDER = "magic"
COMPLETE_ROWS = 19_020

FEATURES = ("fLength", "fWidth", "fSize", "fConc", "fConc1", "fAsym", "fM3Long", "fM3Trans", "fAlpha", "fDist")
CLASSES = ("g", "h")


class Magic(InMemory):
    """UCI's "MAGIC Gamma Telescope" (159): simulated showers that a gamma ray (class 0) or a hadron (class 1) started.

    Ten numbers describe the image of a shower. Of 19 020 showers 12 332, a fraction of 0.648, are gamma rays, so that
    is the accuracy of the majority. The file has them by class; rows are permuted once, by ``seed``, and split into
    training and test, which serves for validation as well, since nothing is chosen by it. Features are standardized by
    mean and standard deviation of the training rows, so the adversary's ε is in units of these.

    Args:
        root: folder with ``magic04.data``, or a zip that has it as a member, either directly or in a subfolder
            ``magic``. None means the environment variable ``AGT_DATA_ROOT``, and if that is not set the folder
            ``data``. If there is no such file, UCI's zip is downloaded to the subfolder.
        batch_size: rows per training batch, the last, shorter one included; None means all of them in one.
        test_fraction: part of the rows kept for the test; 0.2 leaves 15 216 of UCI's rows.
        seed: of the permutation.
        dtype: type of the features.
        sha256: expected checksum of the downloaded zip. UCI publishes none, so by default the download is verified by
            its checksums inside the zip, its columns and its number of rows.
    """

    classes = len(CLASSES)
    features = len(FEATURES)

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int | None = None,
        test_fraction: float = 0.2,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
        sha256: str | None = None,
    ) -> None:
        super().__init__(batch_size)
        if not 0 < test_fraction < 1:
            raise ValueError(f"Expected `test_fraction` to be between 0 and 1, but got {test_fraction}.")
        self.root = Path(root or os.environ.get("AGT_DATA_ROOT") or "data")
        self.test_fraction, self.seed, self.sha256 = test_fraction, seed, sha256
        self.dtype: torch.dtype = getattr(torch, dtype)

    @override
    def prepare_data(self) -> None:
        """Download UCI's zip unless the file is there.

        Raises:
            ConnectionError: if it is not there and cannot be downloaded.
            ValueError: if what was downloaded is not the complete file.
        """
        if find_member(self.root, FOLDER, MEMBER) is None:
            path = self.root / FOLDER / "magic_gamma_telescope.zip"
            download(URL, path, verify=_verify_complete, sha256=self.sha256)

    @override
    def read(self) -> dict[str, Split]:
        path = find_member(self.root, FOLDER, MEMBER)
        if path is None:
            raise FileNotFoundError(
                f"Expected {MEMBER}, or a zip that contains it, in {self.root.resolve()} or its subfolder {FOLDER}. "
                f"Call `prepare_data()` to download it from {URL}, or set `data.root` or AGT_DATA_ROOT to a folder "
                "that has it."
            )
        features, classes = read_showers(path)
        order = np.random.default_rng(self.seed).permutation(len(classes))
        train, test = np.split(order, [len(order) - round(len(order) * self.test_fraction)])
        if len(train) == 0 or len(test) == 0:
            raise ValueError(f"Expected rows for training and test, but got {len(order)} rows in all.")
        mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
        x = torch.as_tensor((features - mean) / np.where(deviation > 0, deviation, 1.0), dtype=self.dtype)
        y = torch.as_tensor(classes)
        return {part: (x[rows], y[rows]) for part, rows in (("train", train), ("val", test), ("test", test))}


def read_showers(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return features ``(rows, 10)`` in the order of `FEATURES` and classes ``(rows,)``, 0 for ``g`` and 1 for ``h``.

    Args:
        path: UCI's text file, or a zip with it as a member.

    Raises:
        ValueError: if it is not in UCI's format: ten numbers and a class in each row, between commas, and no header.
    """
    try:
        with open_member(path, MEMBER) as file:
            table = pd.read_csv(file, header=None, skipinitialspace=True)
    except (BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"Expected a sound zip in {path}, but its data are broken: {error}. Delete it and get it again from {URL}."
        ) from error
    except ValueError as error:
        raise ValueError(f"Expected rows of {len(FEATURES)} numbers and a class in {path}: {error}") from error
    numbers, letters = table.iloc[:, : len(FEATURES)], table.iloc[:, -1]
    whole = table.shape[1] == len(FEATURES) + 1 and all(map(is_numeric_dtype, numbers.dtypes))
    if not whole or not np.isfinite(numbers).all(axis=None) or not letters.isin(CLASSES).all():
        raise ValueError(
            f"Expected {len(FEATURES)} finite numbers and a class, {' or '.join(CLASSES)}, in each row of {path}. Use "
            f"the file of {URL}."
        )
    return numbers.to_numpy(np.float64), (letters == CLASSES[1]).to_numpy(np.int64)


def _verify_complete(path: Path) -> None:
    """Raise ValueError unless ``path`` is a sound zip with all of UCI's rows."""
    if not has_member(path, MEMBER):
        raise ValueError(f"Expected a zip with the member {MEMBER} from {URL}, but got something else.")
    _, classes = read_showers(path)
    if len(classes) != COMPLETE_ROWS:
        raise ValueError(f"Expected {COMPLETE_ROWS} rows in the zip of {URL}, but got {len(classes)}.")
