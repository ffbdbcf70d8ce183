"""The file that marks a training as finished, with its settings and the code that made it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import agt_lightning

FILE = "result.json"
FORMAT = "agt_lightning result 1"
NO_SETTINGS = (
    "output_dir",
    "logger",
    "panels",
    "panel",
    "level",
    "drawing",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
)
"""Parts of the configuration for the place of files, what is shown, and the name of a point in its sweep."""


@dataclass(frozen=True)
class Result:
    """The outcome of one finished training.

    Args:
        fingerprint: of settings and code, see `fingerprint`.
        code: digest of the package's source.
        point: name of the point in its sweep and of its folder.
        settings: of the configuration, by dotted name.
        values: certified quantities by name.
        seconds: of the training, on the wall.
        panel: panel of a figure that the point belongs to; None if there is none.
        level: position within the panel; None if there is none.
    """

    fingerprint: str
    code: str
    point: str
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    seconds: float
    panel: str | None = None
    level: int | None = None

    @classmethod
    def of(cls, config: DictConfig, values: Mapping[str, float], seconds: float) -> "Result":
        """Return the result of a training with this configuration."""
        point = Path(config.output_dir).name
        panel, level = config.panel, config.level
        return cls(fingerprint(config), code(), point, settings(config), dict(values), seconds, panel, level)

    def save(self, folder: Path) -> Path:
        """Write the file to ``folder`` as a whole or not at all, even if the machine stops.

        It must be the last file of a run to be written: it marks all others as finished.
        """
        partial = folder / f".{FILE}.{os.getpid()}.partial"
        try:
            with partial.open("w") as file:
                json.dump({"format": FORMAT, **asdict(self)}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, folder / FILE)
        finally:
            partial.unlink(missing_ok=True)
        return folder / FILE

    @classmethod
    def load(cls, folder: Path) -> "Result | None":
        """Read what `save` wrote; None if nothing in ``folder`` was finished.

        Raises:
            ValueError: if the file is another one.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected the result of a training in {path}, but got {error!r}. Move it away."
            ) from error


def settings(config: DictConfig) -> dict[str, Any]:
    """Return the settings of a training by dotted name, lists as a whole, without `NO_SETTINGS`.

    Args:
        config: ``conf/train.yaml``, composed.
    """
    chosen = config.copy()
    chosen.output_dir = "."
    flat = _flat(OmegaConf.to_container(chosen, resolve=True))
    return {name: value for name, value in flat.items() if not _is_below(name, NO_SETTINGS)}


def fingerprint(config: DictConfig) -> str:
    """Return a digest of the settings and of the package's source; equal digests mean equal results.

    Data enter by their settings alone: files exchanged under the same ``data.root`` go unnoticed.
    """
    return hashlib.sha256(json.dumps([settings(config), code()], sort_keys=True).encode()).hexdigest()


@cache
def code() -> str:
    """Return a digest of the source of agt_lightning, since another version can certify another result."""
    folder, digest = Path(agt_lightning.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {name: node}
    parts = [_flat(child, f"{name}.{key}" if name else str(key)) for key, child in node.items()]
    return {key: value for part in parts for key, value in part.items()}


def _is_below(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)
