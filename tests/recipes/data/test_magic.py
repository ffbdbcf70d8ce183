from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch

from recipes.data import magic
from recipes.data.magic import MEMBER, URL, Magic, read_showers
from tests.recipes.showers import shower_rows, write_showers

# The form of UCI's rows; the numbers are made up.
ROWS = [
    "28.7967,16.0021,2.6449,0.3918,0.1982,27.7004,22.011,-8.2027,40.092,81.8828,g",
    "31.6036,11.7235,2.5185,0.5303,0.3773,26.2722,23.8238,-9.9574,6.3609,205.261,g",
    "21.3846,10.917,2.6161,0.5857,0.3934,15.2618,11.5245,2.8766,2.4229,106.8258,h",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.delenv("AGT_DATA_ROOT", raising=False)


def write_zip(path: Path, rows=ROWS, member=MEMBER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr(member, "\n".join(rows) + "\n")
        archive.writestr("magic04.names", "1. Title of Database: MAGIC gamma telescope data 2004")
    return path


def test_ten_features_and_two_classes(tmp_path):
    for path in (write_showers(tmp_path, ROWS), write_zip(tmp_path / "other.zip")):
        features, classes = read_showers(path)
        assert features.shape == (3, 10)
        assert features[0].tolist() == [
            28.7967,
            16.0021,
            2.6449,
            0.3918,
            0.1982,
            27.7004,
            22.011,
            -8.2027,
            40.092,
            81.8828,
        ]
        assert classes.tolist() == [0, 0, 1]


WRONG = "Expected 10 finite numbers and a class, g or h, in each row of"


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS[0][:-2], f"{WRONG}|Expected 10 fields in line 2, saw 11"),
        (ROWS[0] + ",g", f"{WRONG}|Expected 11 fields in line 3, saw 12"),
        (ROWS[0].replace(",g", ",x"), WRONG),
        (ROWS[0].replace("28.7967", "NaN"), WRONG),
        (ROWS[0].replace("28.7967", "wide"), WRONG),
        ("fLength,fWidth,fSize,fConc,fConc1,fAsym,fM3Long,fM3Trans,fAlpha,fDist,class", WRONG),
    ],
    ids=["too short", "too long", "class", "not finite", "no number", "header"],
)
def test_wrong_rows_are_refused_by_name(tmp_path, row, message, place):
    path = write_showers(tmp_path, [*ROWS[:place], row, *ROWS[place:]])
    with pytest.raises(ValueError, match=message) as caught:
        read_showers(path)
    assert str(path) in str(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected rows of 10 numbers and a class in .* No columns"):
        read_showers(write_showers(tmp_path, []))


def test_broken_zip_is_refused_by_name(tmp_path):
    path = write_zip(tmp_path / "magic.zip", shower_rows(300))
    content = bytearray(path.read_bytes())
    content[200:210] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Expected a sound zip in .* Delete it and get it again from"):
        read_showers(path)


def test_training_rows_are_standardized_and_disjoint_from_test(tmp_path):
    write_showers(tmp_path, shower_rows(500))
    data = Magic(root=tmp_path, batch_size=150)
    data.prepare_data()
    data.setup("fit")
    (x, y), (x_test, y_test) = data.splits["train"], data.splits["test"]
    assert x.shape == (400, 10)
    assert x.dtype == torch.float64
    assert torch.equal(data.splits["val"][0], x_test)
    torch.testing.assert_close(x.mean(0), torch.zeros(10, dtype=torch.float64))
    torch.testing.assert_close(x.std(0, unbiased=False), torch.ones(10, dtype=torch.float64))
    assert len(torch.unique(torch.cat([x, x_test]), dim=0)) == 500
    assert torch.cat([y, y_test]).bincount().tolist() == [324, 176]
    assert [len(classes) for _, classes in data.train_dataloader()] == [150, 150, 100]
    assert [len(classes) for _, classes in data.test_dataloader()] == [100]


def test_order_is_fixed_by_the_seed(tmp_path):
    write_showers(tmp_path, shower_rows(50))
    first, again, other = (Magic(root=tmp_path, seed=seed).read()["train"][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_official_rows_leave_15216_for_training():
    assert magic.COMPLETE_ROWS - round(magic.COMPLETE_ROWS * Magic().test_fraction) == 15_216


def test_without_the_file_setup_names_the_address_and_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Magic(root=tmp_path).setup()
    assert URL in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_file_is_downloaded_once(tmp_path, monkeypatch):
    calls = []

    def fake(url, path, verify, sha256):
        calls.append((url, path))
        write_zip(path)
        verify(path)

    monkeypatch.setattr(magic, "download", fake)
    monkeypatch.setattr(magic, "COMPLETE_ROWS", len(ROWS))
    data = Magic(root=tmp_path, test_fraction=0.4)
    data.prepare_data()
    data.prepare_data()
    assert calls == [(URL, tmp_path / "magic" / "magic_gamma_telescope.zip")]
    data.setup()
    assert {part: len(y) for part, (_, y) in data.splits.items()} == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_zip(path), "Expected 19020 rows .* but got 3"),
        (lambda path: write_zip(path, member="index.html"), "zip with the member"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "zip with the member"),
    ],
    ids=["excerpt", "other zip", "web page"],
)
def test_incomplete_download_is_refused(tmp_path, write, message):
    path = tmp_path / "download.zip"
    write(path)
    with pytest.raises(ValueError, match=message):
        magic._verify_complete(path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_the_test_fraction_must_leave_rows(fraction):
    with pytest.raises(ValueError, match="Expected `test_fraction` to be between 0 and 1"):
        Magic(test_fraction=fraction)


def test_too_short_a_file_is_refused(tmp_path):
    write_showers(tmp_path, ROWS[:1])
    with pytest.raises(ValueError, match="Expected rows for training and test, but got 1 rows in all"):
        Magic(root=tmp_path).setup()
