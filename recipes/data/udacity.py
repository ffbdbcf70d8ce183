"""Frames and steering angles of Udacity's recordings for its second challenge, in the two layouts they come in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image  # matplotlib needs it as well
from torch import Tensor

URL = "https://github.com/udacity/self-driving-car/tree/master/datasets/CH2"
HEIGHT, WIDTH = 66, 200
EVALUATION, EXPORT = "CH2_final_evaluation.csv", "interpolated.csv"
_CAMERA = "center_camera"


@dataclass(frozen=True)
class Drive:
    """One recording, in order of time.

    Args:
        frames: files of the images.
        angles: steering angles ``(frames,)`` in radians, positive to the left, in float64.
    """

    frames: tuple[Path, ...]
    angles: Tensor


def read_drive(folder: Path) -> Drive:
    """Read the log of a drive; that each of its frames is there is verified, their content is not.

    Two layouts are known. The evaluation set of the challenge has ``CH2_final_evaluation.csv`` with columns
    ``frame_id`` and ``steering_angle`` and the images ``center/<frame_id>.jpg``. The usual export of the recordings'
    bag files has ``interpolated.csv`` with, among others, the columns ``timestamp``, ``frame_id`` (which camera),
    ``filename`` and ``angle``; of its three cameras the center one is used.

    Args:
        folder: of the drive.

    Raises:
        FileNotFoundError: if there is no log, or an image that it names is missing.
        ValueError: if the log misses a column, has no frame of the center camera, or something that is no angle.
    """
    if (folder / EVALUATION).is_file():
        table = _table(folder / EVALUATION, "frame_id", "steering_angle")
        names, angles = "center/" + table["frame_id"] + ".jpg", table["steering_angle"]
        times = table["frame_id"]
    elif (folder / EXPORT).is_file():
        table = _table(folder / EXPORT, "timestamp", "frame_id", "filename", "angle")
        table = table[table["frame_id"] == _CAMERA]
        names, angles, times = table["filename"], table["angle"], table["timestamp"]
    else:
        raise FileNotFoundError(f"Expected {EVALUATION} or {EXPORT} in {folder.resolve()}. {_by_hand()}")
    return _drive(folder, names, angles, times)


def _table(path: Path, *columns: str) -> pd.DataFrame:
    """Return those columns as text, since times in nanoseconds do not fit into a floating point number."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"Expected a table with commas in {path}, but got: {error}. {_by_hand()}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(
            f"Expected the columns {', '.join(columns)} in {path}, but {', '.join(missing)} is not there. {_by_hand()}"
        )
    return table[list(columns)]


def _drive(folder: Path, names: "pd.Series[str]", angles: "pd.Series[str]", times: "pd.Series[str]") -> Drive:
    if names.empty:
        raise ValueError(f"Expected frames of the center camera in the log of {folder}, but got none. {_by_hand()}")
    numbers, moments = (pd.to_numeric(column, errors="coerce") for column in (angles, times))
    for column, values in ((angles, numbers), (times, moments)):
        wrong = column[~np.isfinite(values.to_numpy(np.float64))]
        if len(wrong):
            raise ValueError(
                f"Expected numbers in the column {column.name} of the log in {folder}, but got {wrong.iloc[0]!r} in "
                f"row {wrong.index[0] + 1}. {_by_hand()}"
            )
    order = np.argsort(moments.to_numpy(), kind="stable")
    frames = tuple(folder / names.iloc[index] for index in order)
    lost = [path for path in frames if not path.is_file()]
    if lost:
        raise FileNotFoundError(
            f"Expected {len(frames)} images in {folder.resolve()}, but {len(lost)} of them are missing, the first is "
            f"{lost[0].relative_to(folder)}. {_by_hand()}"
        )
    return Drive(frames, torch.as_tensor(numbers.to_numpy(np.float64)[order]))


def read_frame(path: Path) -> Tensor:
    """Return pixels ``(3, 66, 200)`` of type uint8, red first; a frame of another size is scaled as a whole.

    Raises:
        ValueError: if the file is no sound image.
    """
    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
            if pixels.size != (WIDTH, HEIGHT):
                pixels = pixels.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    except OSError as error:
        raise ValueError(f"Expected a sound image in {path}, but its data are broken: {error}. {_by_hand()}") from error
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def _by_hand() -> str:
    return (
        f"These files are not downloaded by the recipe: get a recording from {URL}, export its bag file, and set "
        "`data.root` or AGT_DATA_ROOT to the folder that has the drives named by `data.drives`."
    )
