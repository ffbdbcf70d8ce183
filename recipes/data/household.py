"""Household electric power consumption, the regression problem of figure 2."""

import os
import zlib
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from recipes.data.archives import find_member, has_member, open_member
from recipes.data.download import download
from recipes.data.loader import tensor_loader

URL = "https://archive.ics.uci.edu/static/public/235/individual+household+electric+power+consumption.zip"
MEMBER = "household_power_consumption.txt"
FOLDER = "household_power"
COMPLETE_ROWS = 2_075_259

TARGET = "Global_active_power"
METERS = (
    "Global_reactive_power",
    "Voltage",
    "Global_intensity",
    "Sub_metering_1",
    "Sub_metering_2",
    "Sub_metering_3",
)
CALENDAR = ("day", "month", "year", "hour", "minute")
FEATURES = CALENDAR + METERS
COLUMNS = ("Date", "Time", TARGET, *METERS)


class Household(L.LightningDataModule):
    """UCI's "Individual household electric power consumption": active power of one household, minute by minute.

    The literature on Gaussian processes has this data as "houseelectric", with 11 features and 2 049 280 rows. The row
    count is that of UCI's file without the rows that miss a value; which features it means is nowhere stated. Our
    reading: ``Date`` enters as day of the month, month and year, ``Time`` as hour and minute (seconds are always 0),
    all as plain numbers, and the six other meters as they are: 5 + 6 = 11. The target is ``Global_active_power``.

    Rows are permuted once, by ``seed``, and split; every epoch has that order. Features are standardized by mean and
    standard deviation of the training rows, the target is mapped to [0, 1] by their minimum and maximum, so held-out
    targets can fall slightly outside.

    Args:
        root: folder with ``household_power_consumption.txt``, or a zip that has it as a member, either directly or
            in a subfolder ``household_power``. None means the environment variable ``AGT_DATA_ROOT``, and if that is
            not set the folder ``data``. If there is no such file, UCI's zip is downloaded to the subfolder.
        batch_size: rows per batch; the last, shorter batch is kept.
        val_fraction: part of the rows kept for validation.
        test_fraction: part of the rows kept for the test.
        seed: seed of the permutation.
        dtype: type of features and target.
        sha256: expected checksum of the downloaded zip. UCI publishes none, so by default the download is verified by
            its checksums inside the zip, its columns and its number of rows.
    """

    features = len(FEATURES)

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 10_000,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float64",
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                "Expected `val_fraction` and `test_fraction` to be at least 0 and to leave rows for training, but got "
                f"{val_fraction} and {test_fraction}."
            )
        self.root = Path(root or os.environ.get("AGT_DATA_ROOT") or "data")
        self.batch_size, self.seed, self.sha256 = batch_size, seed, sha256
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.splits: dict[str, tuple[Tensor, Tensor]] = {}

    @override
    def prepare_data(self) -> None:
        """Download UCI's zip unless the file is there.

        Raises:
            ConnectionError: if it is not there and cannot be downloaded.
            ValueError: if what was downloaded is not the complete file.
        """
        if find_file(self.root) is None:
            folder = self.root / FOLDER
            download(URL, folder / f"{Path(MEMBER).stem}.zip", verify=_verify_complete, sha256=self.sha256)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read, split, standardize; once."""
        if self.splits:
            return
        path = find_file(self.root)
        if path is None:
            raise FileNotFoundError(
                f"Expected {MEMBER}, or a zip that contains it, in {self.root.resolve()} or its subfolder {FOLDER}. "
                f"Call `prepare_data()` to download it from {URL}, or set `data.root` or AGT_DATA_ROOT to a folder "
                "that has it."
            )
        features, target = read_power_table(path)
        self.splits = self._split(features, target)

    def _split(self, features: NDArray[np.float64], target: NDArray[np.float64]) -> dict[str, tuple[Tensor, Tensor]]:
        rows = len(target)
        order = np.random.default_rng(self.seed).permutation(rows)
        val, test = round(rows * self.val_fraction), round(rows * self.test_fraction)
        train, *held_out = np.split(order, [rows - val - test, rows - test])
        if len(train) == 0:
            raise ValueError(f"Expected rows for training, but got {rows} rows in all. Use a longer file.")
        mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
        low, high = target[train].min(), target[train].max()
        x = self._tensor((features - mean) / np.where(deviation > 0, deviation, 1.0))
        y = self._tensor((target - low) / (high - low if high > low else 1.0))
        parts = dict(zip(("train", "val", "test"), (train, *held_out), strict=True))
        return {name: (x[index], y[index]) for name, index in parts.items()}

    def _tensor(self, values: NDArray[np.float64]) -> Tensor:
        return torch.as_tensor(values, dtype=self.dtype)

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return training rows, in their one order."""
        return tensor_loader(*self.splits["train"], batch_size=self.batch_size)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return validation rows."""
        return tensor_loader(*self.splits["val"], batch_size=self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return test rows."""
        return tensor_loader(*self.splits["test"], batch_size=self.batch_size)


def find_file(root: Path) -> Path | None:
    """Return the text file, or the first zip with it, in ``root/household_power`` or ``root``; None if not found."""
    return find_member(root, FOLDER, MEMBER)


def read_power_table(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return features ``(rows, 11)`` in the order of `FEATURES` and targets ``(rows,)`` in kilowatts, of complete rows.

    Args:
        path: UCI's text file, or a zip with it as a member.

    Raises:
        ValueError: if it is not in UCI's format.
    """
    table = _read_columns(path).dropna()
    if table.empty:
        raise ValueError(f"Expected rows of measurements in {path}, but every row misses a value.")
    try:
        date = _parse_unique(table["Date"], "%d/%m/%Y").dt
        time = _parse_unique(table["Time"], "%H:%M:%S").dt
    except ValueError as error:
        raise ValueError(f"Expected dates like 16/12/2006 and times like 17:24:00 in {path}: {error}") from error
    calendar = [date.day, date.month, date.year, time.hour, time.minute]
    columns = [*calendar, *(table[name] for name in METERS)]
    return np.column_stack(columns).astype(np.float64), table[TARGET].to_numpy(np.float64)


def _read_columns(path: Path) -> pd.DataFrame:
    try:
        return _parse_columns(path)
    except (BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"Expected a sound zip in {path}, but its data are broken: {error}. Delete it and get it again from {URL}."
        ) from error


def _parse_columns(path: Path) -> pd.DataFrame:
    with open_member(path, MEMBER) as file:
        header = file.readline().decode("utf-8", errors="replace").strip().split(";")
        if header != list(COLUMNS):
            raise ValueError(
                f"Expected the columns {';'.join(COLUMNS)} in {path}, but its first line is "
                f"{';'.join(header)[:200]!r}. Use the file of {URL}."
            )
        dtype = {"Date": "category", "Time": "category"} | dict.fromkeys((TARGET, *METERS), "float64")
        try:
            return pd.read_csv(file, sep=";", names=list(COLUMNS), na_values="?", dtype=dtype)
        except ValueError as error:
            raise ValueError(f"Expected numbers, or ? where one is missing, in {path}: {error}") from error


def _parse_unique(column: "pd.Series[str]", form: str) -> "pd.Series[pd.Timestamp]":
    """Parse each distinct text once: two million minutes have 1 442 dates and 1 440 times."""
    unique = column.cat.categories
    return column.map(dict(zip(unique, pd.to_datetime(unique, format=form), strict=True))).astype("datetime64[s]")


def _verify_complete(path: Path) -> None:
    """Raise ValueError unless ``path`` is a sound zip with all of UCI's rows."""
    if not has_member(path, MEMBER):
        raise ValueError(f"Expected a zip with the member {MEMBER} from {URL}, but got something else.")
    rows = len(_read_columns(path))
    if rows != COMPLETE_ROWS:
        raise ValueError(f"Expected {COMPLETE_ROWS} rows in the zip of {URL}, but got {rows}.")


def days_of(batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return an integer for the day of each row of a batch, (batch,), for ``CertifiedTraining(sources=days_of)``.

    It reads the calendar among the standardized features, whose steps from day to day and month to month are far above
    a hundredth.

    Example:
        >>> x = torch.zeros(3, len(FEATURES))
        >>> x[2, CALENDAR.index("month")] = 0.3
        >>> first, second, third = days_of((x, x[:, 0])).tolist()
        >>> first == second, first == third
        (True, False)
    """
    day, month, year = ((batch[0][:, CALENDAR.index(name)] * 100).round().long() for name in ("day", "month", "year"))
    return (year * 10_000 + month) * 10_000 + day
