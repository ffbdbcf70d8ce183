import time
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch

from recipes.data import household
from recipes.data.household import FEATURES, MEMBER, URL, Household, find_file, read_power_table

HEADER = (
    "Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;"
    "Sub_metering_1;Sub_metering_2;Sub_metering_3"
)
# In UCI's own spelling: days and months without zeros, a missing row ends in an empty field.
ROWS = [
    "16/12/2006;17:24:00;4.216;0.418;234.840;18.400;0.000;1.000;17.000",
    "16/12/2006;17:25:00;5.360;0.436;233.630;23.000;0.000;1.000;16.000",
    "21/12/2006;11:23:00;?;?;?;?;?;?;",
    "1/1/2007;00:00:00;2.580;0.136;241.970;10.600;0.000;0.000;0.000",
    "2/10/2007;9:05:00;0.326;0.128;243.150;1.400;0.000;0.000;0.000",
]


def write_text(folder: Path, rows=ROWS, header=HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MEMBER
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def write_zip(folder: Path, rows=ROWS, name="household_power_consumption_2006.zip", member=MEMBER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr(member, "\n".join([HEADER, *rows]) + "\n")
    return path


def many_rows(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    meters = generator.uniform(0, 10, (count, 7))
    return [
        f"{1 + i // 1440}/1/2007;{i % 1440 // 60:02}:{i % 60:02}:00;" + ";".join(f"{value:.3f}" for value in row)
        for i, row in enumerate(meters)
    ]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.delenv("AGT_DATA_ROOT", raising=False)


@pytest.mark.parametrize("write", [write_text, write_zip])
def test_eleven_features_and_target_without_missing_rows(tmp_path, write):
    features, target = read_power_table(write(tmp_path))
    assert FEATURES[:5] == ("day", "month", "year", "hour", "minute")
    assert features.shape == (4, 11)
    assert features[0].tolist() == [16, 12, 2006, 17, 24, 0.418, 234.84, 18.4, 0, 1, 17]
    assert features[2].tolist() == [1, 1, 2007, 0, 0, 0.136, 241.97, 10.6, 0, 0, 0]
    assert features[3, :5].tolist() == [2, 10, 2007, 9, 5]
    assert target.tolist() == [4.216, 5.36, 2.58, 0.326]


@pytest.mark.parametrize("subfolder", ["household_power", "."])
@pytest.mark.parametrize("write", [write_text, write_zip])
def test_file_is_found_in_the_root_or_its_subfolder(tmp_path, write, subfolder):
    path = write(tmp_path / subfolder)
    assert find_file(tmp_path).samefile(path)


def test_zips_without_the_file_are_passed_over(tmp_path):
    write_zip(tmp_path, name="a.zip", member="other.txt")
    (tmp_path / "b.zip").write_bytes(b"not a zip")
    assert find_file(tmp_path) is None
    wanted = write_zip(tmp_path, name="c.zip")
    assert find_file(tmp_path) == wanted


def test_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AGT_DATA_ROOT", str(tmp_path))
    assert Household().root == tmp_path
    assert Household(root="elsewhere").root == Path("elsewhere")


def test_splits_are_standardized_scaled_and_disjoint(tmp_path):
    write_text(tmp_path, many_rows(3000))
    data = Household(root=tmp_path, batch_size=1000, val_fraction=0.2, test_fraction=0.1, dtype="float32")
    data.prepare_data()
    data.setup("fit")
    assert {name: len(y) for name, (_, y) in data.splits.items()} == {"train": 2100, "val": 600, "test": 300}
    x, y = data.splits["train"]
    assert x.dtype == y.dtype == torch.float32
    torch.testing.assert_close(x.double().mean(0), torch.zeros(11).double(), atol=1e-5, rtol=0)
    varying = torch.tensor([name not in ("month", "year") for name in FEATURES])
    torch.testing.assert_close(x[:, varying].std(0, unbiased=False), torch.ones(9), atol=1e-4, rtol=0)
    assert not x[:, ~varying].any()  # one month: a constant feature becomes 0, not NaN
    assert (y.min(), y.max()) == (0, 1)
    everything = torch.cat([torch.cat([x, y[:, None]], dim=1) for x, y in data.splits.values()])
    assert len(torch.unique(everything, dim=0)) == 3000


def test_order_is_shuffled_once_by_the_seed_and_the_short_batch_is_kept(tmp_path):
    write_text(tmp_path, many_rows(100))

    def batches(seed):
        data = Household(root=tmp_path, batch_size=30, seed=seed)
        data.setup()
        return data, [y for _, y in data.train_dataloader()]

    data, first = batches(0)
    assert [len(y) for y in first] == [30, 30, 20]
    for again in ([y for _, y in data.train_dataloader()], batches(0)[1]):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], batches(1)[1][0])


def test_setup_reads_the_file_once(tmp_path):
    path = write_text(tmp_path, many_rows(20))
    data = Household(root=tmp_path)
    data.setup("fit")
    path.unlink()
    data.setup("test")
    assert len(data.splits["test"][1]) == 2


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "time;power", r"Expected the columns Date;Time;Global_active_power.*first line is 'time;power'"),
        (["16/12/2006;17:24:00;four;0;0;0;0;0;0"], HEADER, "Expected numbers, or \\? where one is missing"),
        (["2006-12-16;17:24:00;4;0;0;0;0;0;0"], HEADER, "Expected dates like 16/12/2006 and times like 17:24:00"),
        ([ROWS[2]], HEADER, "every row misses a value"),
        ([], HEADER, "every row misses a value"),
    ],
    ids=["header", "number", "date", "all missing", "empty"],
)
def test_wrong_file_is_refused_by_name(tmp_path, rows, header, message):
    path = write_text(tmp_path, rows, header)
    with pytest.raises(ValueError, match=message) as caught:
        read_power_table(path)
    assert str(path) in str(caught.value)


def test_broken_zip_is_refused_by_name(tmp_path):
    path = write_zip(tmp_path, many_rows(500))
    content = bytearray(path.read_bytes())
    content[200:210] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Expected a sound zip in .* Delete it and get it again from") as caught:
        read_power_table(path)
    assert str(path) in str(caught.value)


def test_too_short_a_file_is_refused(tmp_path):
    write_text(tmp_path, ROWS[:1])
    with pytest.raises(ValueError, match="Expected rows for training, but got 1 rows in all"):
        Household(root=tmp_path, val_fraction=0.6, test_fraction=0.3).setup()


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (-0.1, 0.1), (0.1, float("nan"))])
def test_fractions_must_leave_rows_for_training(fractions):
    with pytest.raises(ValueError, match="Expected `val_fraction` and `test_fraction`"):
        Household(val_fraction=fractions[0], test_fraction=fractions[1])


def test_without_the_file_setup_names_the_address_and_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Household(root=tmp_path).setup()
    assert URL in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "AGT_DATA_ROOT" in str(caught.value)


def test_missing_file_is_downloaded_once(tmp_path, monkeypatch):
    calls = []

    def fake(url, path, verify, sha256):
        calls.append((url, path))
        write_zip(path.parent, name=path.name)
        verify(path)

    monkeypatch.setattr(household, "download", fake)
    monkeypatch.setattr(household, "COMPLETE_ROWS", len(ROWS))
    data = Household(root=tmp_path)
    data.prepare_data()
    data.prepare_data()
    assert calls == [(URL, tmp_path / "household_power" / "household_power_consumption.zip")]
    data.setup()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_zip(path.parent, name=path.name), r"Expected 2075259 rows .* but got 5"),
        (lambda path: write_zip(path.parent, name=path.name, member="index.html"), "zip with the member"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "zip with the member"),
    ],
    ids=["excerpt", "other zip", "web page"],
)
def test_incomplete_download_is_refused(tmp_path, write, message):
    path = tmp_path / "download.zip"
    write(path)
    with pytest.raises(ValueError, match=message):
        household._verify_complete(path)


@pytest.mark.slow
def test_real_minutes_load_in_seconds(real_data):
    data = Household(root=real_data)
    start = time.perf_counter()
    data.prepare_data()
    data.setup()
    assert time.perf_counter() - start < 20
    sizes = {name: len(y) for name, (_, y) in data.splits.items()}
    assert sum(sizes.values()) == 282_636 - 3_775
    x, y = data.splits["train"]
    assert torch.isfinite(x).all()
    assert (y.min(), y.max()) == (0, 1)
    assert x.abs().max() < 50
