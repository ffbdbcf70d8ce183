from zipfile import ZipFile

import pytest

from recipes.data.archives import find_member, has_member, open_member


def write_zip(path, member="table.txt"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w") as archive:
        archive.writestr(member, "content")
    return path


@pytest.mark.parametrize("place", [".", "folder"])
def test_a_file_or_the_first_zip_that_has_it_is_found(tmp_path, place):
    assert find_member(tmp_path, "folder", "table.txt") is None
    write_zip(tmp_path / place / "a.zip", member="other.txt")
    (tmp_path / place / "b.zip").write_bytes(b"not a zip")
    assert find_member(tmp_path, "folder", "table.txt") is None
    packed = write_zip(tmp_path / place / "c.zip")
    assert find_member(tmp_path, "folder", "table.txt").samefile(packed)
    plain = tmp_path / place / "table.txt"
    plain.write_text("content")
    assert find_member(tmp_path, "folder", "table.txt").samefile(plain)


def test_both_forms_open_alike(tmp_path):
    (tmp_path / "table.txt").write_text("content")
    for path in (tmp_path / "table.txt", write_zip(tmp_path / "table.zip")):
        with open_member(path, "table.txt") as file:
            assert file.read() == b"content"


def test_only_a_zip_with_the_member_has_it(tmp_path):
    assert has_member(write_zip(tmp_path / "a.zip"), "table.txt")
    assert not has_member(write_zip(tmp_path / "b.zip", member="other.txt"), "table.txt")
    assert not has_member(tmp_path / "missing.zip", "table.txt")
