"""Label flips on all of MNIST, in numbers that a change of method must not lose."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from agt_lightning.domains.influence.certified_flips import certified_flips
from agt_lightning.domains.influence.label_sets import LabelFlips
from agt_lightning.domains.influence.recorder import HeadRecorder
from agt_lightning.domains.sgd import SGDSettings
from tests.domains.influence.ridge import RidgeInfluence

pytestmark = pytest.mark.slow
EVERY = 10


@pytest.fixture(scope="module")
def mnist():
    """PCA-32 of pixels / 255: training and test features and labels."""
    folder = Path(os.environ.get("AGT_DATA_ROOT") or Path(__file__).parents[4] / "shared" / "data") / "mnist"
    if not (folder / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("no real data; set AGT_DATA_ROOT")
    images, tests = (_read(folder / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 784) for name in ("train", "t10k"))
    labels, truth = (_read(folder / f"{name}-labels-idx1-ubyte.gz", 8).long() for name in ("train", "t10k"))
    images, tests = images.double() / 255, tests.double() / 255
    center = images.mean(dim=0)
    axes = torch.linalg.eigh((images - center).T @ (images - center)).eigenvectors[:, -32:]
    return (images - center) @ axes, labels, (tests - center) @ axes, truth


def _read(path, offset):
    return torch.from_numpy(np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=offset).copy())


def test_two_steps_of_the_largest_rate(mnist):
    features, labels, tests, truth = mnist
    targets = torch.nn.functional.one_hot(labels, 10).double()
    inputs = torch.nn.functional.pad(features, (0, 1), value=1.0)
    slope = 2 / targets.numel()
    rate = 1 / float(torch.linalg.eigvalsh(slope * inputs.T @ inputs)[-1])
    recorder = HeadRecorder(torch.zeros(10, 33), bias=True)
    for epoch in range(2):
        recorder.append(
            features, targets, torch.full((len(features),), slope, dtype=torch.float64), SGDSettings(rate), epoch=epoch
        )
    influence = recorder.influence()
    assert len(influence.targets) == 60_000
    assert float((influence.outputs(tests).argmax(dim=1) == truth).double().mean()) >= 0.775
    flips = certified_flips(influence, tests[::EVERY], LabelFlips.of_targets(influence.targets))
    assert int(flips.median()) >= 470


def test_ridge(mnist):
    features, labels, tests, truth = mnist
    targets = torch.nn.functional.one_hot(labels, 10).double()
    ridge = RidgeInfluence(features, targets, penalty=0.5, bias=True)
    assert float((ridge.outputs(tests).argmax(dim=1) == truth).double().mean()) >= 0.82
    flips = certified_flips(ridge, tests[::EVERY], LabelFlips.of_targets(targets))
    assert int(flips.median()) >= 390
