"""Bounds on all parameters of a module, the result of a certified training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agt_lightning.digest import state_digest, values_digest
from agt_lightning.errors import BoundsMismatchError
from agt_lightning.interval import Interval
from agt_lightning.rounding import FLOATS, Floats

_FORMAT = "agt_lightning bounds 1"

_RUNNING = "running/"
"""Beginning of the names of running statistics in a file; no name of a module has a slash."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file completely or not at all: the body writes to a path beside it, which is then renamed.

    If the body raises, the file is unchanged and nothing is left beside it.

    Args:
        path: the file; missing folders are created.

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
    """A read-only mapping from parameter name to `Interval` (Definition 3.1).

    Args:
        intervals: bounds by parameter name, as in `torch.nn.Module.named_parameters`.
        weights: `agt_lightning.digest.values_digest` of the parameters that these are the bounds of, which the runs of
            an adversary are compared with. None if it is not known; then whoever uses the bounds claims that they
            belong to a module.
        floats: which runs they contain; None if it is not known, and whoever uses the bounds claims that.
        running: bounds on running statistics of batch normalization that training has moved, by name of the buffer.
            The digest is then of the parameters and, behind them, of these buffers in this order.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> bounds = ParameterBounds.point(layer)
        >>> bounds["weight"].width.max().item(), bounds.mean_width(), bounds.contains(layer)
        (0.0, 0.0, True)
    """

    def __init__(
        self,
        intervals: Mapping[str, Interval],
        weights: str | None = None,
        floats: Floats | None = None,
        running: Mapping[str, Interval] | None = None,
    ) -> None:
        self._intervals = dict(intervals)
        self.weights = weights
        self.floats = floats
        self.running = dict(sorted((running or {}).items()))

    @classmethod
    def point(cls, module: nn.Module) -> ParameterBounds:
        """Return bounds of width zero around the present parameters of ``module``."""
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
        """Compute ``(1 / |θ|) Σ (θ_U - θ_L)`` over all parameters, in units of the parameters (figure 3)."""
        total = sum(float(interval.width.double().sum()) for interval in self.values())
        return total / max(1, sum(interval.lower.numel() for interval in self.values()))

    def contains(self, module: nn.Module) -> bool:
        """Return whether all parameters of ``module`` lie in their intervals.

        Args:
            module: a module with the same parameters.

        Raises:
            BoundsMismatchError: if names or shapes differ.
        """
        return not self.violations(module)

    def violations(self, module: nn.Module) -> list[str]:
        """Return the names of the parameters that leave their interval.

        Args:
            module: a module with the same parameters.

        Raises:
            BoundsMismatchError: if names or shapes differ.
        """
        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self._check_names(parameters)
        return [
            name
            for name, parameter in parameters.items()
            if not self[name].to(device=parameter.device).contains(parameter)
        ]

    def require_weights(self, module: nn.Module) -> None:
        """Raise unless a module has the parameters that these are the bounds of, if those are known.

        Other parameters can lie inside all intervals, such as those of an earlier step or of an average. Their poisoned
        counterparts need not.

        Args:
            module: a module with the same parameters.

        Raises:
            BoundsMismatchError: if a parameter lies outside, or has another value than training left it with.
        """
        outside = [*self.violations(module), *self._moved_outside(module)]
        if outside:
            raise BoundsMismatchError(
                f"Expected the parameters of `module` inside their bounds, but {outside} lie outside. These are the "
                "bounds of another run, or the module was changed after training."
            )
        buffers = dict(module.named_buffers())
        named = [*module.named_parameters(), *((name, buffers[name]) for name in self.running)]
        if self.weights not in (None, values_digest(named)):
            raise BoundsMismatchError(
                "Expected the parameters of the step that these are the bounds of, the last step of the training, but "
                "`module` has others: those of another step (`trainer.test` and `trainer.validate` load the best "
                "checkpoint unless `ckpt_path` names another), an average, or parameters that were changed by hand. "
                "Load those of the last step; for the step of a checkpoint, use its own bounds, by "
                "`CertifiedTraining.certified_model_at(path, module)`."
            )

    def _moved_outside(self, module: nn.Module) -> list[str]:
        """Return the names of the running statistics that leave their interval, or are not there."""
        buffers = dict(module.named_buffers())
        return [
            name
            for name, bounds in self.running.items()
            if name not in buffers
            or buffers[name].shape != bounds.shape
            or not bounds.to(device=buffers[name].device).contains(buffers[name])
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
        """Write ``name.lower`` and ``name.upper`` of each parameter, and what is known of weights and runs, atomically.

        Running statistics have ``running/`` before their names.

        Args:
            path: a ``.safetensors`` file; missing folders are created.
        """
        tensors = {}
        running = {f"{_RUNNING}{name}": interval for name, interval in self.running.items()}
        for name, interval in {**self, **running}.items():
            tensors[f"{name}.lower"] = interval.lower.detach().cpu().contiguous().clone()
            tensors[f"{name}.upper"] = interval.upper.detach().cpu().contiguous().clone()
        known = {"weights": self.weights, "floats": self.floats}
        metadata = {"format": _FORMAT} | {name: value for name, value in known.items() if value is not None}
        metadata["digest"] = state_digest({**metadata, "tensors": tensors})
        with atomic_path(path) as partial:
            save_file(tensors, partial, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ParameterBounds:
        """Read and check a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            BoundsMismatchError: if it is not a complete file of bounds, or not the one that was saved. A file without a
                digest, as before version 0.2, is refused: whoever changes a file can also leave that out.
            UnsoundBoundError: if a pair of bounds is crossed, NaN or infinite.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"Expected a file of bounds, but there is none at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise BoundsMismatchError(
                f"Expected a complete safetensors file, but {path} is not one: {error}"
            ) from error
        if metadata.get("format") != _FORMAT:
            raise BoundsMismatchError(
                f"Expected a file written by `ParameterBounds.save`, but {path} has format {metadata.get('format')}."
            )
        digest = metadata.pop("digest", None)
        if digest != state_digest({**metadata, "tensors": tensors}):
            raise BoundsMismatchError(
                f"Expected the bounds as they were saved, but {path} has others, or no digest that tells: it is "
                "damaged, was changed, or is from before version 0.2. Save the bounds anew, or use those of a "
                "checkpoint. If you know that the file is whole, give its tensors to `ParameterBounds` yourself."
            )
        names = dict.fromkeys(key.rsplit(".", 1)[0] for key in tensors)
        missing = [key for name in names for key in (f"{name}.lower", f"{name}.upper") if key not in tensors]
        if missing:
            raise BoundsMismatchError(f"Expected both bounds of each parameter in {path}, but {missing} are missing.")
        intervals = {name: Interval.checked(tensors[f"{name}.lower"], tensors[f"{name}.upper"]) for name in names}
        floats = next((level for level in FLOATS if level == metadata.get("floats")), None)
        running = {name[len(_RUNNING) :]: each for name, each in intervals.items() if name.startswith(_RUNNING)}
        parameters = {name: each for name, each in intervals.items() if not name.startswith(_RUNNING)}
        return cls(parameters, metadata.get("weights"), floats, running)
