"""Handwritten digits of MNIST, as frozen features for a linear head."""

from pathlib import Path
from typing import Literal

from torch import Tensor
from typing_extensions import override

from recipes.data.download import download
from recipes.data.frozen import FrozenFeatures
from recipes.data.idx import read_idx

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FOLDER = "mnist"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
PREFIXES: dict[Literal["train", "test"], str] = {"train": "train", "test": "t10k"}
IMAGE = (28, 28)
CLASSES = 10


class MNISTFeatures(FrozenFeatures):
    """MNIST of LeCun, Cortes and Burges behind a feature map; see `FrozenFeatures`.

    Samples have the order of the official files.

    Args:
        features: how to get from images to features; fitted in `setup`.
        root: folder with the four official idx files, compressed or not, either directly or in a subfolder ``mnist``.
            None means the environment variable ``AGT_DATA_ROOT``, and if that is not set the folder ``data``. Files
            that are missing are downloaded to the subfolder, and their checksums verified.
        batch_size: rows per training batch; None means all of them in one.
        test_samples: the first so many test samples serve for validation and test; None means all 10 000. Nothing may
            be chosen by them that is then reported on them.
        target: training targets, ``"class"`` for indices ``(batch,)`` or ``"one_hot"`` for zeros and ones
            ``(batch, 10)`` of type ``dtype``, as a mean squared error needs them. Held-out targets are always indices.
        dtype: type of features and one-hot targets; the features are computed in float64.
        content_batches: number of training batches by content; None means batches by order.
    """

    classes = CLASSES

    @override
    def prepare_data(self) -> None:
        """Download each of the four files that is not there.

        Raises:
            ConnectionError: if one is not there and cannot be downloaded.
            ValueError: if what was downloaded has not the checksum of the official file.
        """
        for name, sha256 in SHA256.items():
            if find_file(self.root, name) is None:
                download(URL + name, self.root / FOLDER / name, verify=_trust_checksum, sha256=sha256)

    @override
    def read(self, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        return read_digits(self.root, part)


def find_file(root: Path, name: str) -> Path | None:
    """Return the file ``name``, or it uncompressed, in ``root/mnist`` or ``root``; None if neither has it."""
    places = (folder / file for folder in (root / FOLDER, root) for file in (name, name.removesuffix(".gz")))
    return next((path for path in places if path.is_file()), None)


def read_digits(root: Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return images ``(samples, 28, 28)`` of type uint8 and their classes ``(samples,)``.

    Args:
        root: folder with the files, directly or in a subfolder ``mnist``.
        split: which half of the data.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not in the idx format, or the two do not belong together.
    """
    images = read_idx(_existing(root, f"{PREFIXES[split]}-images-idx3-ubyte.gz"), (None, *IMAGE))
    path = _existing(root, f"{PREFIXES[split]}-labels-idx1-ubyte.gz")
    labels = read_idx(path, (None,)).long()
    if len(labels) != len(images) or labels.max() >= CLASSES:
        raise ValueError(
            f"Expected {len(images)} labels from 0 to {CLASSES - 1} in {path}, one for each image, but got "
            f"{len(labels)} up to {labels.max()}. Take both files from {URL}."
        )
    return images, labels


def _existing(root: Path, name: str) -> Path:
    path = find_file(root, name)
    if path is None:
        raise FileNotFoundError(
            f"Expected {name} in {root.resolve()} or its subfolder {FOLDER}. Call `prepare_data()` to download it from "
            f"{URL}, or set `data.root` or AGT_DATA_ROOT to a folder that has it."
        )
    return path


def _trust_checksum(path: Path) -> None:
    """Accept the file, whose checksum is that of the official one."""
