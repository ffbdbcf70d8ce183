"""Damage the bounds of checkpoints in every field and the files anywhere: each is refused, or restores the same bounds.

python -m tests.fuzz.checkpoints --seed 0 --minutes 5
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agt_lightning import AbstractGradientEngine, BoundedAdversary, ParameterBounds
from agt_lightning.certificates.start import StartOfTraining
from agt_lightning.errors import AgtError
from agt_lightning.lightning.checkpoint_io import AtomicCheckpointIO
from agt_lightning.lightning.life_cycle import begin_resumed
from agt_lightning.lightning.resume import (
    BUFFERS_KEY,
    CHECKPOINT_KEY,
    bounds_to_save,
    holds_steps,
    saved_bounds,
)

FLIPS_OF_A_FILE, CUTS_OF_A_FILE = 60, 8
"""Kinds of damage to a whole file, for each seed."""

FEATURES = BoundedAdversary(n=1, epsilon=0.01, nu=0.02)
LABELS = BoundedAdversary(n=1, nu=1, q=0)

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Training:
    """A small training whose bounds are saved.

    Args:
        seed: of parameters and data.
        adversary: the threat model.
        settings: of the engine.
        optimizer: makes the optimizer.
        options: of the optimizer.
        steps: number of certified steps.
        one_hot: whether labels are classes, of a linear layer alone.
    """

    seed: int
    adversary: BoundedAdversary
    settings: dict[str, Any]
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 2
    one_hot: bool = False

    def module(self) -> nn.Module:
        """Return the network as it is before training, with a buffer."""
        torch.manual_seed(self.seed)
        layers = [nn.Linear(2, 2)] if self.one_hot else [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)]
        made = nn.Sequential(*layers)
        made.register_buffer("mean", torch.zeros(2))
        return made

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean squared error."""
        target = nn.functional.one_hot(batch[1], 2).float() if self.one_hot else batch[1]
        return nn.functional.mse_loss(module(batch[0]), target)

    def batch(self) -> Batch:
        """Return all data, with names of the samples."""
        generator = torch.Generator().manual_seed(self.seed)
        y = torch.arange(4) % 2 if self.one_hot else torch.randn(4, 2, generator=generator)
        return torch.randn(4, 2, generator=generator), y, torch.arange(4)

    def engine(self, module: nn.Module) -> AbstractGradientEngine:
        """Return an engine without bounds."""
        return AbstractGradientEngine(module, self.loss, self.adversary, **self.settings)

    def checkpoint(self) -> dict[str, Any]:
        """Train, and return what Lightning would save."""
        module = self.module()
        buffers = dict(StartOfTraining.of(module).buffers)
        engine = self.engine(module)
        optimizer = self.optimizer(module.parameters(), lr=0.05, **self.options)
        for epoch in range(self.steps):
            engine.step([self.batch()], optimizer, epoch)
        bounds = bounds_to_save(engine, 0, buffers)
        return {
            "global_step": self.steps,
            "state_dict": module.state_dict(),
            CHECKPOINT_KEY: bounds,
            BUFFERS_KEY: buffers,
        }


def training(seed: int) -> Training:
    """Return the training of a seed."""
    draw = random.Random(seed)
    kind = draw.choice(["box", "ball", "both", "momentum", "adam", "labels", "named labels"])
    if kind.endswith("labels"):
        names = {"sample_ids": lambda batch: batch[2]} if kind.startswith("named") else {}
        options = {"momentum": draw.choice([0.0, 0.5])}
        return Training(seed, LABELS, {"domains": "influence", **names}, options=options, one_hot=True)
    domains = {"ball": ("ball",), "both": ("box", "ball")}.get(kind, ("box",))
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam if kind == "adam" else torch.optim.SGD
    options = {"momentum": 0.5} if kind == "momentum" else {}
    settings = {"domains": domains, "floats": draw.choice(["run", "run", "real"])}
    return Training(seed, FEATURES, settings, optimizer, options, steps=draw.choice([1, 2, 3]))


# --- damage ------------------------------------------------------------------------------------------------------

Damage = tuple[str, bytes]
"""What was done, and the content of the file."""


def damages(case: Training, checkpoint: dict[str, Any], draw: random.Random) -> Iterator[Damage]:
    """Yield files with one kind of damage each."""
    whole = _content(checkpoint)
    saved, buffers = checkpoint[CHECKPOINT_KEY], checkpoint[BUFFERS_KEY]
    for path in paths(saved):
        yield f"a bit of {path}", _content({**checkpoint, CHECKPOINT_KEY: changed(saved, path, _flipped(draw))})
        yield f"{path} is lost", _content({**checkpoint, CHECKPOINT_KEY: without(saved, path)})
    for path in paths(buffers):
        yield (
            f"a bit of the buffers' {path}",
            _content({**checkpoint, BUFFERS_KEY: changed(buffers, path, _flipped(draw))}),
        )
    for key in (CHECKPOINT_KEY, BUFFERS_KEY, "state_dict"):
        yield f"{key} is lost", _content({name: value for name, value in checkpoint.items() if name != key})
    for name, other in others(case).items():
        yield f"bounds of {name}", _content({**checkpoint, CHECKPOINT_KEY: other[CHECKPOINT_KEY]})
        yield (
            f"domains of {name}",
            _content({**checkpoint, CHECKPOINT_KEY: {**saved, "domains": other[CHECKPOINT_KEY]["domains"]}}),
        )
    yield from _damaged_files(whole, draw)


def others(case: Training) -> dict[str, dict[str, Any]]:
    """Return checkpoints of other trainings."""
    weaker = replace(case.adversary, n=0)
    changes = {
        "other parameters": replace(case, seed=case.seed + 1),
        "another adversary": replace(case, adversary=weaker),
    }
    if case.settings.get("floats", "run") == "run":  # bounds on float runs hold for those in real arithmetic, too
        changes["other settings"] = replace(case, settings={**case.settings, "floats": "real"})
    return {name: other.checkpoint() for name, other in changes.items()}


def _damaged_files(whole: bytes, draw: random.Random) -> Iterator[Damage]:
    """Yield a file with flipped bits, cut off, and with a sector of zeros."""
    for _ in range(FLIPS_OF_A_FILE):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    for _ in range(CUTS_OF_A_FILE):
        end = draw.randrange(len(whole))
        yield f"cut at byte {end}", whole[:end]
        zeros = whole[:end] + bytes(min(512, len(whole) - end)) + whole[end + 512 :]
        yield f"zeros from byte {end}", zeros


Path_ = tuple[object, ...]
"""Keys and positions that lead to a value."""


def paths(state: object, before: Path_ = ()) -> Iterator[Path_]:
    """Yield the way to every value that has no entries."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from paths(value, (*before, key))
    elif isinstance(state, list | tuple):
        for position, value in enumerate(state):
            yield from paths(value, (*before, position))
    else:
        yield before


def changed(state: Any, path: Path_, change: Callable[[Any], Any]) -> Any:
    """Return a copy of a state with one value changed."""
    if not path:
        return change(state)
    first, *rest = path
    if isinstance(state, Mapping):
        return {key: changed(value, tuple(rest), change) if key == first else value for key, value in state.items()}
    items = [changed(value, tuple(rest), change) if at == first else value for at, value in enumerate(state)]
    return type(state)(items)


def without(state: Any, path: Path_) -> Any:
    """Return a copy of a state without one value."""
    first, *rest = path
    if isinstance(state, Mapping):
        kept = {key: without(value, tuple(rest)) if rest and key == first else value for key, value in state.items()}
        return kept if rest else {key: value for key, value in state.items() if key != first}
    items = [without(value, tuple(rest)) if rest and at == first else value for at, value in enumerate(state)]
    return type(state)(items if rest else [value for at, value in enumerate(state) if at != first])


def _flipped(draw: random.Random) -> Callable[[Any], Any]:
    """Return a function that flips one bit of a value."""

    def flip(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _flipped_tensor(value, draw)
        if value is None:
            return 0
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return value ^ (1 << draw.randrange(31))
        if isinstance(value, float):
            bits = struct.unpack("<q", struct.pack("<d", value))[0] ^ (1 << draw.randrange(63))
            return struct.unpack("<d", struct.pack("<q", bits))[0]
        if isinstance(value, bytes):
            return bytes(_flipped_letters(list(value), draw))
        return "".join(chr(letter) for letter in _flipped_letters([ord(letter) for letter in value], draw))

    return flip


def _flipped_letters(letters: list[int], draw: random.Random) -> list[int]:
    """Flip a bit of one letter; an empty text gets a letter."""
    if not letters:
        return [ord("x")]
    letters[draw.randrange(len(letters))] ^= 1 << draw.randrange(6)
    return letters


def _flipped_tensor(value: Tensor, draw: random.Random) -> Tensor:
    if not value.numel():
        return torch.ones(1, dtype=value.dtype)
    damaged = value.detach().clone()
    content = damaged.reshape(-1).view(torch.uint8)
    content[draw.randrange(len(content))] ^= 1 if value.dtype == torch.bool else 1 << draw.randrange(8)
    return damaged


def _content(checkpoint: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(checkpoint), file)
    return file.getvalue()


# --- outcome -----------------------------------------------------------------------------------------------------


def outcome(case: Training, original: Mapping[str, Any], content: bytes, folder: Path) -> str:
    """Return "refused", "same", or what is wrong with the bounds that a file restores.

    Args:
        case: the training that goes on.
        original: its checkpoint.
        content: of the damaged file.
        folder: to write to.
    """
    path = folder / "damaged.ckpt"
    path.write_bytes(content)
    module = case.module()
    try:
        checkpoint = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
        if not _loaded(module, checkpoint):
            return "refused"
        if not holds_steps(checkpoint):
            return "starts from bounds of width zero"
        fit = begin_resumed(case.engine(module), CHECKPOINT_KEY, saved_bounds(checkpoint))
    except AgtError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__} instead of a refusal: {error}"
    buffers = checkpoint.get(BUFFERS_KEY)
    restored = bounds_to_save(fit.engine, fit.epochs_before - 1, buffers)
    whole = identical(restored, original[CHECKPOINT_KEY]) and identical(buffers, original[BUFFERS_KEY])
    return "same" if whole else "other bounds"


def _loaded(module: nn.Module, checkpoint: object) -> bool:
    """Load the parameters as Lightning does; return whether there are any that fit."""
    try:
        module.load_state_dict(checkpoint["state_dict"])  # type: ignore[index]
    except Exception:  # whatever torch says of damaged parameters
        return False
    return isinstance(checkpoint, dict) and all(isinstance(key, str) for key in checkpoint)


def identical(a: object, b: object) -> bool:
    """Return whether two states agree in every bit, without any digest."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        bits = [torch.empty(each.shape, dtype=each.dtype).copy_(each).reshape(-1).view(torch.uint8) for each in (a, b)]
        return same and torch.equal(*bits)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(identical(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return type(a) is type(b) and a == b


def bounds_file_outcomes(case: Training, draw: random.Random, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield damage to a file of `ParameterBounds`, and what became of it."""
    module = case.module()
    bounds = ParameterBounds(ParameterBounds.point(module), "0" * 32, "run")
    path = folder / "bounds.safetensors"
    bounds.save(path)
    for name, content in _damaged_files(path.read_bytes(), draw):
        path.write_bytes(content)
        try:
            loaded = ParameterBounds.load(path)
        except AgtError:
            yield name, "refused"
        except Exception as error:
            yield name, f"{type(error).__name__} instead of a refusal: {error}"
        else:
            yield name, "same" if _same_bounds(loaded, bounds) else "other bounds"


def _same_bounds(a: ParameterBounds, b: ParameterBounds) -> bool:
    plain = [{name: [i.lower, i.upper] for name, i in sorted(bounds.items())} for bounds in (a, b)]
    return identical(*plain) and (a.weights, a.floats) == (b.weights, b.floats)


# --- runs --------------------------------------------------------------------------------------------------------


def tried(seed: int) -> Iterator[tuple[str, str]]:
    """Yield each damage of a seed's training, and what became of it.

    Raises:
        AssertionError: if the file that is not damaged is refused.
    """
    case, draw = training(seed), random.Random(seed)
    checkpoint = case.checkpoint()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = outcome(case, checkpoint, _content(checkpoint), folder)
        assert whole == "same", f"the whole file: {whole}"
        for damage, content in damages(case, checkpoint, draw):
            yield damage, outcome(case, checkpoint, content, folder)
        yield from bounds_file_outcomes(case, draw, folder)


def violations(seed: int, counts: Counter[str]) -> Iterator[str]:
    """Yield what is wrong at a seed, and count what became of all damage."""
    for damage, found in tried(seed):
        fine = found in ("refused", "same")
        counts[found if fine else "violations"] += 1
        if not fine:
            yield f"seed {seed}, {damage}: {found}"


def main() -> None:
    """Run until time is over, and print what was found; exit with 1 if something was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    end, seed = time.monotonic() + 60 * arguments.minutes, arguments.seed
    while time.monotonic() < end:
        for violation in violations(seed, counts):
            sys.stdout.write(f"{violation}\n")
            sys.stdout.flush()
        counts["trainings"] += 1
        seed += 1
    sys.stdout.write(f"{dict(counts)}\n")
    sys.exit(bool(counts["violations"] or counts["stopped"]))


if __name__ == "__main__":
    main()
