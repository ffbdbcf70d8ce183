"""Bounds on all parameters of a module: what a certified training leaves behind."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agt_lightning.errors import BoundsMismatchError
from agt_lightning.interval import Interval

_FORMAT = "agt_lightning bounds 1"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all: the body writes to a path beside it, which is then renamed.

    If the body raises, the file stays as it was and nothing is left beside it.

    Args:
        path: the file; missing folders are made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(f"{folder}/new/note.txt") as partial:
        ...         _ = partial.write_text("hello")
        ...     Path(f"{folder}/new/note.txt").read_text(), os.listdir(f"{folder}/new")
        ('hello', ['note.txt'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class ParameterBounds(Mapping[str, Interval]):
    """Read-only mapping from parameter name to `Interval` (Definition 3.1).

    Args:
        intervals: bounds by parameter name, as `torch.nn.Module.named_parameters` gives it.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> bounds = ParameterBounds.point(layer)
        >>> bounds["weight"].width.max().item(), bounds.mean_width(), bounds.contains(layer)
        (0.0, 0.0, True)
    """

    def __init__(self, intervals: Mapping[str, Interval]) -> None:
        self._intervals = dict(intervals)

    @classmethod
    def point(cls, module: nn.Module) -> ParameterBounds:
        """The parameters of ``module`` as they are, with width zero."""
        return cls({name: Interval.point(p.detach().clone()) for name, p in module.named_parameters()})

    def __getitem__(self, name: str) -> Interval:
        try:
            return self._intervals[name]
        except KeyError:
            raise KeyError(f"Expected a parameter name, one of {list(self._intervals)}, but got {name!r}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._intervals)

    def __len__(self) -> int:
        return len(self._intervals)

    def mean_width(self) -> float:
        """``(1 / |θ|) Σ (θ_U - θ_L)`` over all parameters, in units of the parameters (figure 3)."""
        total = sum(float(interval.width.double().sum()) for interval in self.values())
        return total / max(1, sum(interval.lower.numel() for interval in self.values()))

    def contains(self, module: nn.Module, slack: float = 0.0) -> bool:
        """Whether every parameter of ``module`` lies in its interval.

        Args:
            module: a module of the same parameters.
            slack: see `violations`.

        Raises:
            BoundsMismatchError: if names or shapes differ.
        """
        return not self.violations(module, slack)

    def violations(self, module: nn.Module, slack: float = 0.0) -> list[str]:
        """Return the names of the parameters that leave their interval.

        Args:
            module: a module of the same parameters.
            slack: distance from the interval that is allowed, relative to the largest magnitude in the interval of
                each parameter. The module that was trained with the bounds needs none; another run can leave bounds
                that it attains by rounding, see `agt_lightning.rounding.training_roundoff`.

        Raises:
            BoundsMismatchError: if names or shapes differ.
        """
        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self._check_names(parameters)
        return [
            name
            for name, parameter in parameters.items()
            if not self[name].to(device=parameter.device).contains(parameter, slack * _largest(self[name]))
        ]

    def _check_names(self, parameters: Mapping[str, Tensor]) -> None:
        for name in (*self, *parameters):
            if name not in parameters or name not in self._intervals:
                where = "the module" if name not in parameters else "the bounds"
                raise BoundsMismatchError(
                    f"Expected bounds and module with the same parameter names, but `{name}` is missing in {where}. "
                    "Use the module that was trained with these bounds."
                )
            if parameters[name].shape != self[name].shape:
                raise BoundsMismatchError(
                    f"Expected `{name}` of shape {tuple(self[name].shape)}, as its bounds have, but got "
                    f"{tuple(parameters[name].shape)}."
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``name.lower`` and ``name.upper`` for each parameter, atomically.

        Args:
            path: a ``.safetensors`` file; missing folders are made.
        """
        tensors = {}
        for name, interval in self.items():
            tensors[f"{name}.lower"] = interval.lower.detach().cpu().contiguous().clone()
            tensors[f"{name}.upper"] = interval.upper.detach().cpu().contiguous().clone()
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata={"format": _FORMAT})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ParameterBounds:
        """Read what `save` wrote and check it.

        Raises:
            FileNotFoundError: if there is no such file.
            BoundsMismatchError: if it is not a complete file of bounds.
            UnsoundBoundError: if a pair of bounds is crossed, NaN or infinite.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"Expected a file of bounds, but there is none at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                kind = (file.metadata() or {}).get("format")
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise BoundsMismatchError(
                f"Expected a complete safetensors file, but {path} is not one: {error}"
            ) from error
        if kind != _FORMAT:
            raise BoundsMismatchError(
                f"Expected a file written by `ParameterBounds.save`, but {path} has format {kind}."
            )
        names = dict.fromkeys(key.rsplit(".", 1)[0] for key in tensors)
        missing = [key for name in names for key in (f"{name}.lower", f"{name}.upper") if key not in tensors]
        if missing:
            raise BoundsMismatchError(f"Expected both bounds of each parameter in {path}, but {missing} are missing.")
        return cls({name: Interval.checked(tensors[f"{name}.lower"], tensors[f"{name}.upper"]) for name in names})


def _largest(interval: Interval) -> float:
    """Return the largest magnitude in an interval; zero if it has no elements."""
    return float(interval.magnitude.max()) if interval.lower.numel() else 0.0
