"""Files from the owners of the data, verified before they get their name."""

import hashlib
import os
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from tqdm import tqdm

_CHUNK = 1 << 18
_TIMEOUT = 30.0


def download(url: str, path: Path, verify: Callable[[Path], None], sha256: str | None = None) -> None:
    """Download ``url`` to ``path`` with a progress bar, atomically: ``path`` appears complete and verified or not.

    Args:
        url: address of the file.
        path: where it goes; missing folders are made.
        verify: raises ValueError if the file that it is given is not the one expected.
        sha256: expected checksum in hexadecimal digits, if it is known.

    Raises:
        ConnectionError: if the address cannot be reached or the transfer breaks off.
        ValueError: if the checksum differs or ``verify`` refuses; nothing is kept then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for chunk in _chunks(url, path.parent):
                digest.update(chunk)
                file.write(chunk)
        try:
            if sha256 is not None and digest.hexdigest() != sha256.lower():
                raise ValueError(f"Expected sha256 {sha256} for {url}, but got {digest.hexdigest()}.")
            verify(partial)
        except ValueError as error:
            raise ValueError(f"{error} It was not kept. Try again later, or {_by_other_means(path.parent)}") from error
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _chunks(url: str, folder: Path) -> Iterator[bytes]:
    """What ``url`` serves, piece by piece, with a progress bar."""
    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, unit="B", unit_scale=True, desc=f"Downloading {folder.name}") as bar:
                while chunk := response.read(_CHUNK):
                    bar.update(len(chunk))
                    yield chunk
                if bar.n < total:
                    raise ConnectionError(f"the transfer broke off after {bar.n} of {total} bytes")
    except (OSError, HTTPException) as error:
        raise ConnectionError(
            f"Cannot download {url} ({error}). Without a network, {_by_other_means(folder)}"
        ) from error


def _by_other_means(folder: Path) -> str:
    return (
        f"get the file by other means and put it into {folder.resolve()}, or set `data.root` or AGT_DATA_ROOT to a "
        "folder that has it."
    )
