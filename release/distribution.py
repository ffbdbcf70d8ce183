"""Build wheel and source archive of the last commit twice, and keep them in ``dist/`` if both have the same bytes.

Each build is from files of the commit alone, in a folder of its own, with the commit's time in place of the clock: so
anyone who builds this commit with the same version of hatchling gets the same digests.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*words: str, root: Path = ROOT) -> bytes:
    """Return what a command of git prints."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True).stdout


def digests(folder: Path) -> Mapping[str, str]:
    """Return the SHA-256 of each file of a folder by its name."""
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in sorted(folder.iterdir())}


def build(folder: Path, root: Path = ROOT) -> Mapping[str, str]:
    """Build wheel and source archive of the last commit, and return their digests.

    Args:
        folder: an empty folder for the files of the commit, and for the results in its ``dist``.
        root: the repository.
    """
    with tarfile.open(fileobj=io.BytesIO(git("archive", "HEAD", root=root))) as commit:
        commit.extractall(folder, filter="data")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct", root=root).decode().strip()}
    for kind in ("wheel", "sdist"):
        command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", "dist"]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return digests(folder / "dist")


def main() -> int:
    """Build twice and compare; print the digests and exit with 0 if they agree, else leave nothing and exit with 1."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        built, again = build(Path(first)), build(Path(second))
        differing = [name for name in built if built[name] != again[name]]
        if differing:
            print(f"Expected the same bytes from two builds, but {', '.join(differing)} differ.", file=sys.stderr)
            return 1
        shutil.copytree(Path(first) / "dist", ROOT / "dist")
    for name, digest in built.items():
        print(f"{digest}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
