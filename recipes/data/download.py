"""Files from the owners of the data, verified before they get their name."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from torch.hub import download_url_to_file

_TIMEOUT = 30.0


def download(url: str, path: Path, verify: Callable[[Path], None], sha256: str | None = None) -> None:
    """Download ``url`` to ``path`` with a progress bar, atomically: ``path`` appears complete and verified or not.

    Args:
        url: address of the file.
        path: its destination; missing folders are made.
        verify: raises ValueError if the file that it is given is not the expected one.
        sha256: expected checksum in hexadecimal digits; None if it is not known.

    Raises:
        ConnectionError: if the address cannot be reached or the transfer breaks off.
        ValueError: if the checksum differs or ``verify`` refuses; nothing is kept then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    otherwise = (
        f"get the file by other means and put it into {path.parent.resolve()}, or set `data.root` or AGT_DATA_ROOT to "
        "a folder that has it."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _timeout(_TIMEOUT):
            download_url_to_file(url, str(partial), hash_prefix=sha256 and sha256.lower())
        verify(partial)
        os.replace(partial, path)
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"Cannot download {url} ({error}). Without a network, {otherwise}") from error
    except (RuntimeError, ValueError) as error:  # of the checksum, of `verify`
        reason = str(error).rstrip(".")
        raise ValueError(f"Refused {url}: {reason}. It was not kept. Try again later, or {otherwise}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit the waiting time of new connections, for which torch has no argument."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
