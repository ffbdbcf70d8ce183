"""Text files that a data set's owner hands out in a zip."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile


def find_member(root: Path, folder: str, member: str) -> Path | None:
    """Return the file ``member``, or the first zip with it, in ``root/folder`` or ``root``; None if not found."""
    for place in (root / folder, root):
        if (place / member).is_file():
            return place / member
        for path in sorted(place.glob("*.zip")):
            if has_member(path, member):
                return path
    return None


def has_member(path: Path, member: str) -> bool:
    """Return whether ``path`` is a zip with this member."""
    try:
        with ZipFile(path) as archive:
            return member in archive.namelist()
    except (BadZipFile, OSError):
        return False


@contextmanager
def open_member(path: Path, member: str) -> Iterator[IO[bytes]]:
    """Open a file that is ``member`` itself, or a zip that has it."""
    if path.suffix != ".zip":
        with path.open("rb") as file:
            yield file
        return
    with ZipFile(path) as archive, archive.open(member) as file:
        yield file
