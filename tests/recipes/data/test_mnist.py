import gzip
import hashlib
import io
import os
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipes.data import mnist
from recipes.data.features import PCA
from recipes.data.mnist import SHA256, URL, MNISTFeatures, find_file, read_digits

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = SHA256


def packed(values):
    lengths = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + lengths + values.tobytes(), mtime=0)


def digits(seed=0, train=30, test=12):
    generator = np.random.default_rng(seed)
    return {
        name: packed(generator.integers(0, *((256, (n, 28, 28)) if "images" in name else (10, n)), dtype=np.uint8))
        for name, n in zip(SHA256, (train, train, test, test), strict=True)
    }


def write(folder: Path, files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "data" / "mnist", digits())
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(request):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)


class Response(io.BytesIO):
    def info(self):
        return Message()


@pytest.fixture
def served(monkeypatch):
    """Serve these files instead of the official ones, and record the addresses that were asked for."""
    files, asked = digits(), []

    def answer(request):
        asked.append(request.full_url)
        return Response(files[request.full_url.removeprefix(URL)])

    monkeypatch.setattr("torch.hub.urlopen", answer)
    return files, asked


def ready(root, features=None, **settings):
    data = MNISTFeatures(features or PCA(5), root, **settings)
    data.prepare_data()
    data.setup()
    return data


def test_files_are_found_in_either_place_compressed_or_not(tmp_path):
    assert find_file(tmp_path, TRAIN_LABELS) is None
    for place in ("train-labels-idx1-ubyte", TRAIN_LABELS, f"mnist/{TRAIN_LABELS[:-3]}", f"mnist/{TRAIN_LABELS}"):
        (tmp_path / "mnist").mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
        assert find_file(tmp_path, TRAIN_LABELS) == tmp_path / place  # each goes before the ones before it


def test_environment_names_the_folder(root, monkeypatch):
    monkeypatch.setenv("AGT_DATA_ROOT", str(root))
    assert len(ready(None).splits["train"][0]) == 30
    monkeypatch.delenv("AGT_DATA_ROOT")
    assert MNISTFeatures(PCA(5)).root == Path("data")


def test_all_samples_are_one_batch_unless_asked_otherwise(root):
    data = ready(root)
    ((x, y),) = data.train_dataloader()
    assert (x.shape, x.dtype, y.dtype) == ((30, 5), torch.float64, torch.long)
    assert torch.equal(y, read_digits(root, "train")[1])
    assert [len(x) for x, _ in ready(root, batch_size=8).train_dataloader()] == [8, 8, 8, 6]
    by_content = list(ready(root, content_batches=2).train_dataloader())
    assert [len(by_content), sum(len(y) for _, y in by_content)] == [2, 30]


def test_first_test_samples_serve_for_validation_and_test(root):
    data = ready(root, test_samples=4)
    ((x, y),) = data.test_dataloader()
    ((val_x, val_y),) = data.val_dataloader()
    assert torch.equal(x, ready(root).splits["test"][0][:4])
    assert torch.equal(y, read_digits(root, "test")[1][:4])
    assert torch.equal(x, val_x)
    assert torch.equal(y, val_y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_hot_encodes_training_targets_only(root, dtype):
    data = ready(root, target="one_hot", dtype=dtype)
    ((x, y),) = data.train_dataloader()
    labels = read_digits(root, "train")[1]
    assert x.dtype == y.dtype == getattr(torch, dtype)
    assert torch.equal(y, F.one_hot(labels, 10).to(y.dtype))
    ((_, classes),) = data.test_dataloader()
    assert classes.dtype == torch.long
    assert classes.ndim == 1


def test_features_do_not_depend_on_labels(root, tmp_path):
    files = digits()
    files[TRAIN_LABELS] = packed(np.full(30, 3, dtype=np.uint8))
    flipped = write(tmp_path / "flipped", files)
    for target in ("class", "one_hot"):
        clean, poisoned = ready(root, target=target), ready(flipped, target=target)
        assert torch.equal(clean.splits["train"][0], poisoned.splits["train"][0])
        assert torch.equal(clean.splits["test"][0], poisoned.splits["test"][0])
        assert not torch.equal(clean.splits["train"][1], poisoned.splits["train"][1])


def test_map_is_fitted_to_training_images_without_labels(root):
    seen = []

    @dataclass(frozen=True)
    class Spy:
        def fit(self, *inputs, **named):
            seen.append((inputs, named))
            return PCA(2).fit(*inputs)

    data = ready(root, Spy())
    (((images,), named),) = seen
    assert torch.equal(images, read_digits(root, "train")[0])
    assert named == {}
    first = data.splits
    data.setup()
    assert data.splits is first  # once
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "onehot"}, "Expected `target` to be 'class' or 'one_hot', but got 'onehot'"),
        ({"batch_size": 0}, "Expected `batch_size` to be at least 1, or None for all, but got 0"),
        ({"test_samples": -1}, "Expected `test_samples` to be at least 1"),
        ({"batch_size": 8, "content_batches": 2}, "Expected one of `batch_size` and `content_batches`"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MNISTFeatures(PCA(5), **settings)


def test_without_files_setup_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="Call `prepare_data.*AGT_DATA_ROOT to a folder that has it"):
        MNISTFeatures(PCA(5), tmp_path).setup()


def test_labels_of_another_file_are_refused(root):
    write(root / "mnist", {TRAIN_LABELS: digits(train=29)[TRAIN_LABELS]})
    with pytest.raises(ValueError, match="Expected 30 labels from 0 to 9 in .*, but got 29 up to 9"):
        ready(root)
    write(root / "mnist", {TRAIN_LABELS: packed(np.full(30, 10, dtype=np.uint8))})
    with pytest.raises(ValueError, match="but got 30 up to 10"):
        ready(root)


def test_images_of_another_size_are_refused(root):
    write(root / "mnist", {TEST_IMAGES: packed(np.zeros((12, 27, 28), dtype=np.uint8))})
    with pytest.raises(ValueError, match="Expected .* of shape any × 28 × 28 in .*, but its shape is 12 × 27 × 28"):
        ready(root)


def test_missing_files_and_only_those_are_downloaded(root, served, monkeypatch):
    files, asked = served
    monkeypatch.setattr(mnist, "SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    (root / "mnist" / TEST_LABELS).unlink()
    ready(root)
    assert asked == [URL + TEST_LABELS]
    assert (root / "mnist" / TEST_LABELS).read_bytes() == files[TEST_LABELS]


def test_wrong_checksum_is_refused_and_leaves_nothing(tmp_path, served):
    with pytest.raises(ValueError, match=f"Refused {URL}{TRAIN_IMAGES}: .*{SHA256[TRAIN_IMAGES]}"):
        ready(tmp_path)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_without_network_one_message_names_address_and_folder(tmp_path):
    with pytest.raises(ConnectionError, match="no network") as caught:
        ready(tmp_path)
    message = str(caught.value)
    assert URL + TRAIN_IMAGES in message
    assert str(tmp_path / "mnist") in message
    assert "AGT_DATA_ROOT" in message


@pytest.fixture
def real_mnist():
    root = Path(os.environ.get("AGT_DATA_ROOT") or Path(__file__).parents[4] / "shared" / "data")
    if any(find_file(root, name) is None for name in SHA256):
        pytest.skip("no real data; set AGT_DATA_ROOT")
    return root


@pytest.mark.slow
def test_real_digits_are_complete_and_predicted_by_their_components(real_mnist):
    for name, sha256 in SHA256.items():
        assert hashlib.sha256(find_file(real_mnist, name).read_bytes()).hexdigest() == sha256
    data = ready(real_mnist, PCA(32), target="one_hot")
    (x, y), (test_x, test_y) = data.splits["train"], data.splits["test"]
    assert (x.shape, test_x.shape) == ((60_000, 32), (10_000, 32))
    x, test_x = (torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1) for rows in (x, test_x))
    head = torch.linalg.lstsq(x, y).solution
    assert ((test_x @ head).argmax(dim=1) == test_y).double().mean() > 0.81
