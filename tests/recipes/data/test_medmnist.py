import hashlib
import io
import re
from email.message import Message
from urllib.error import URLError

import medmnist as package
import numpy as np
import pytest
import torch

from recipes.data import medmnist
from tests.recipes.scans import write_scans

URL = "https://zenodo.org/records/10519652/files/octmnist.npz?download=1"


@pytest.fixture
def file(tmp_path):
    return write_scans(tmp_path / "medmnist" / "octmnist.npz")


@pytest.fixture
def is_official(monkeypatch):
    """Makes MedMNIST's package take a file for the official one."""

    def declare(path):
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(package.INFO["octmnist"], "MD5", digest)

    return declare


def serve(monkeypatch, answer):
    def urlopen(request):
        assert request.full_url == URL
        if isinstance(answer, Exception):
            raise answer
        response = io.BytesIO(answer)
        response.info = Message
        return response

    monkeypatch.setattr("torch.hub.urlopen", urlopen)


def test_the_official_checksum_is_that_of_the_package():
    assert package.INFO["octmnist"]["MD5"] == "c68d92d5b585d8d81f7112f81e2d0842"
    assert package.INFO["octmnist"]["url"] == URL
    assert package.INFO["octmnist"]["label"]["2"] == "drusen"
    assert package.INFO["octmnist"]["label"]["3"] == "normal"


@pytest.mark.parametrize("below", [False, True], ids=["in the subfolder", "directly"])
@pytest.mark.parametrize(("part", "count"), [("train", 40), ("test", 8)])
def test_images_and_classes_are_those_of_the_file(file, is_official, tmp_path, part, count, below):
    is_official(file)
    read = medmnist.read("octmnist", file.parent if below else tmp_path, part)
    with np.load(file) as content:
        assert torch.equal(read.images, torch.from_numpy(content[f"{part}_images"]))
        assert read.classes.tolist() == content[f"{part}_labels"].ravel().tolist()
    assert read.images.shape == (count, 28, 28)
    assert read.images.dtype == torch.uint8
    assert read.classes.dtype == torch.int64


def test_another_file_than_the_official_one_is_read_on_demand_alone(file, tmp_path):
    with pytest.raises(
        ValueError, match="Expected the md5 sum c68d92d5b585d8d81f7112f81e2d0842 of the official file"
    ) as caught:
        medmnist.read("octmnist", tmp_path, "train")
    message = str(caught.value)
    assert all(part in message for part in (str(file), URL, "data.official=false", "Delete it"))
    assert len(medmnist.read("octmnist", tmp_path, "train", official=False).images) == 40


def test_a_missing_file_is_named_with_address_folder_and_override(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        medmnist.read("octmnist", tmp_path, "train")
    assert all(part in str(caught.value) for part in ("octmnist.npz", URL, str(tmp_path), "data.root", "AGT_DATA_ROOT"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": np.zeros((40, 64, 64), np.uint8)},
            "Expected images of 28 × 28 bytes, but got shape (40, 64, 64)",
        ),
        ({"train_images": np.zeros((40, 28, 28))}, "type torch.float64"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8)}, "shape (0, 28, 28)"),
        (
            {"train_labels": np.zeros((39, 1), np.uint8)},
            "Expected 40 labels from 0 to 3, one for each image, but got shape (39, 1)",
        ),
        ({"train_labels": np.zeros(40, np.uint8)}, "got shape (40,)"),
        ({"train_labels": np.full((40, 1), 4, np.uint8)}, "labels up to 4"),
    ],
)
def test_a_file_without_what_it_should_have_is_refused(tmp_path, changes, message):
    path = write_scans(tmp_path / "octmnist.npz", **changes)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        medmnist.read("octmnist", tmp_path, "train", official=False)
    assert str(path) in str(caught.value)
    assert URL in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "another", "flipped"])
def test_a_broken_file_is_refused(file, tmp_path, damage):
    whole = file.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:]
    content = {"cut": whole[:-100], "empty": b"", "another": b"<!DOCTYPE html>", "flipped": flipped}[damage]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"Cannot use {re.escape(str(file))} as OCTMNIST"):
        medmnist.read("octmnist", tmp_path, "train", official=False)


def test_a_file_without_labels_is_refused(tmp_path):
    np.savez(tmp_path / "octmnist.npz", train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="train_labels"):
        medmnist.read("octmnist", tmp_path, "train", official=False)


def test_a_download_is_kept_if_it_is_the_official_file(file, is_official, tmp_path, monkeypatch):
    is_official(file)
    serve(monkeypatch, file.read_bytes())
    root = tmp_path / "new"
    medmnist.prepare("octmnist", root)
    assert [path.name for path in (root / "medmnist").iterdir()] == ["octmnist.npz"]
    serve(monkeypatch, AssertionError("downloaded again"))
    medmnist.prepare("octmnist", root)


@pytest.mark.parametrize("cut", [0, 100], ids=["another", "partial"])
def test_a_download_of_anything_else_leaves_nothing(file, tmp_path, monkeypatch, cut):
    serve(monkeypatch, file.read_bytes()[cut:])
    root = tmp_path / "new"
    with pytest.raises(ValueError, match="of the official file, but got .* It was not kept.*data.root"):
        medmnist.prepare("octmnist", root)
    assert list((root / "medmnist").iterdir()) == []


def test_no_network_is_said_in_one_message(tmp_path, monkeypatch):
    serve(monkeypatch, URLError("no route to host"))
    with pytest.raises(ConnectionError) as caught:
        medmnist.prepare("octmnist", tmp_path)
    assert all(part in str(caught.value) for part in (URL, str(tmp_path / "medmnist"), "data.root", "AGT_DATA_ROOT"))
    assert medmnist.find_file(tmp_path, "octmnist") is None


def test_an_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected `dataset` to be one of .*octmnist.*, but got 'oct'"):
        medmnist.prepare("oct", tmp_path)
