"""Probes: the recorded step compared with the step itself where an adversary can lead training.

Every step compares both on the data as they are. Code that acts above a threshold only (a spike that is skipped, a
gradient that is clipped inside of the model) does nothing there. A probe is no proof, but it finds such code before the
first step, if the threshold lies within its reach.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from agt_lightning.adversaries import Adversary
from agt_lightning.capture import flatten
from agt_lightning.capture.dropout import RandomState, noting_masks
from agt_lightning.capture.replica import independent_replica
from agt_lightning.distributed import SINGLE_PROCESS
from agt_lightning.engine.nominal_step import NominalPass
from agt_lightning.engine.reach import reach
from agt_lightning.engine.self_checks import differs
from agt_lightning.errors import NOT_WHAT_IS_TRAINED, AgtError, UncertifiableError, UnsoundBoundError
from agt_lightning.interval import require_inside
from agt_lightning.propagation.evaluated import Moves
from agt_lightning.propagation.loss_capture import LossCapture
from agt_lightning.propagation.objective import BoundedObjective, Loss
from agt_lightning.propagation.samples import MicroBatch, poisonable_rows
from agt_lightning.rules import RULES

LARGEST_GRAPH = 2**21
"""Number of elements of all values of a recorded loss up to which it is probed with the whole batch."""

PART = 64
"""Number of samples of the part with which larger ones are probed; the loss is recorded once more for it."""

_BEYOND = (1.0, 16.0)
"""Largest magnitudes of an entry by which the farthest probes move it: a threshold can come from other batches."""

_PARAMETERS = 0.25
"""Share of its mean magnitude by which a probe moves each parameter."""

_SLACK = 2.0**-10
"""Difference, as a share of the largest gradient here or on the data, that counts as none: units saturate far away."""

_LEAST = 1e-12
"""Gradient that counts as none: the slope of a unit that saturates is zero in floating point."""

_SEED = 2147483647


def step_problems(
    nominal: NominalPass, adversaries: Sequence[Adversary], batch: MicroBatch, recorded: Loss, loss: Loss
) -> list[str]:
    """Return a problem if the recorded step and the step itself differ on batches that an adversary can make.

    All samples of the batch that can be poisoned are moved at once: features to corners of their ball, up and down the
    gradient, away from zero and at random, and far beyond it; labels to both ends of their range. At one more point the
    parameters are moved. The module, its gradients and the random state stay as they are.

    Args:
        nominal: the training's module, captured losses and settings.
        adversaries: all threat models of the training.
        batch: an example; nothing is written to it.
        recorded: the loss that the captured ones were recorded from.
        loss: the loss as training computes it.

    Returns:
        The problems at the first point with a difference; none if nothing can be poisoned.
    """
    poisoning = [adversary for adversary in adversaries if adversary.n > 0]
    if not poisoning:
        return []
    probe = _probe(nominal, adversaries, batch, recorded, loss)
    return next(filter(None, map(probe.problems, _points(probe, poisoning))), [])


_THRESHOLD = (
    "Some code acts above a threshold only, such as a batch that is skipped or weighed by its loss, clipping inside of "
    "the model, a caught error, or `torch.compiler.is_compiling()`. A poisoned run can cross it. Remove that code, or "
    "write it as torch operations on each sample, such as `torch.where` or `clamp`."
)


@dataclass(frozen=True)
class _Point:
    """A batch, and parameters, at which recording and step are compared.

    Args:
        where: for messages.
        batch: in the structure of the training's batches.
        move: maps a parameter to its moved value; None if parameters stay.
        reachable: whether the adversary can make that batch at these parameters.
    """

    where: str
    batch: object
    move: Callable[[Tensor], Tensor] | None = None
    reachable: bool = True


@dataclass(frozen=True)
class _Probe:
    """A comparison of one recording with the step that it records.

    Args:
        nominal: evaluates the recording, for one process.
        bounded: the recording.
        batch: as training has it, or a part of it.
        rows: positions of samples that can be poisoned; None means all.
        loss: runs the step.
        state: of the random number generators in all runs.
        slopes: gradient of the loss for each batch entry, on the data as they are; ones where there is none.
        largest: magnitude of the parameters' gradients there.
    """

    nominal: NominalPass
    bounded: BoundedObjective
    batch: object
    rows: Tensor | None
    loss: Loss
    state: RandomState
    slopes: list[Tensor]
    largest: float

    def problems(self, point: _Point) -> list[str]:
        """Return how recording and step differ at a point; nothing if one of them has no finite gradient there.

        Where the recording has a gradient but no bounds, such as ``log(1 - sigmoid(f))`` at a large f, nothing can be
        compared: that is a problem if an adversary gets there, and none otherwise, as the step that does is refused.
        """
        try:
            return self._difference(point)
        except UncertifiableError as error:
            return list(error.problems) if point.reachable else []

    def _difference(self, point: _Point) -> list[str]:
        custom, different = self.compared(point)
        if custom:
            return [
                f"`{name}` is a `torch.autograd.Function` whose backward pass could differ from that of the recorded "
                "calls in a poisoned run. Write it as plain torch code, and let autograd differentiate it."
                for name in custom
            ]
        if not different:
            return []
        _, clean = self.compared(_Point("", self.batch))
        names, where, advice = (clean, "", NOT_WHAT_IS_TRAINED) if clean else (different, point.where, _THRESHOLD)
        return [f"The recorded program and `training_step` have different gradients of `{names[0]}`{where}. {advice}"]

    def compared(self, point: _Point) -> tuple[list[str], list[str]]:
        """Return the functions with their own backward pass, and the parameters whose gradients differ."""
        twin = independent_replica(self.nominal.module)
        if point.move is not None:
            _move(twin, point.move)
        recorded = replace(self.nominal, module=independent_replica(twin))
        state = replace(self.state, at_masks=[], after=[])
        try:
            value = _run(self.loss, state, twin, _copied(point.batch))
        except Exception:  # the user's own code may refuse a batch, as training then would
            return [], []
        gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
        return custom_functions(value), _different(recorded, MicroBatch(point.batch, state), gradients, self.largest)


def _run(loss: Loss, state: RandomState, twin: nn.Module, batch: object) -> Tensor:
    """Return the loss of a copy of the module, and leave its gradients in the copy; note in ``state`` what it draws."""
    with undisturbed(state), noting_masks(twin, state):
        value = loss(twin, batch)
        value.backward()
    return value


def _probe(
    nominal: NominalPass, adversaries: Sequence[Adversary], micro_batch: MicroBatch, recorded: Loss, loss: Loss
) -> _Probe:
    bounded, batch = nominal.objectives(micro_batch), micro_batch.data
    part = _part(bounded, batch)
    if part is not None:
        rules = RULES if nominal.config.rules is None else nominal.config.rules
        with contextlib.suppress(Exception):  # code for one batch size has no part; the whole is slower
            capture = LossCapture(rules, named=nominal.config.roles, moves=Moves.of(adversaries), mixes=True)
            smaller = capture.of(nominal.module, recorded, part)
            if not smaller.problems:
                bounded, batch = smaller, part
    device = next(nominal.module.parameters()).device
    rows = poisonable_rows(nominal.config.poisonable, batch, bounded.size(batch), device)
    config = replace(nominal.config, poisonable=None, sample_ids=None, sources=None)
    alone = replace(nominal, objectives=lambda _: bounded, config=config, processes=SINGLE_PROCESS)
    state = RandomState.now()
    return _Probe(alone, bounded, batch, rows, loss, state, *_clean_slopes(nominal.module, batch, loss, state))


def _part(bounded: BoundedObjective, batch: object) -> object | None:
    """Return a part of a large batch, with the samples of the largest features; None if the batch is small."""
    graph, size = bounded.program.graph, bounded.size(batch)
    elements = sum(torch.Size(graph.shapes[call.name]).numel() for call in graph.calls)
    if elements <= LARGEST_GRAPH or size <= PART:
        return None
    leaves, rebuild = flatten(batch)
    features = [leaves[graph.leaves[name]] for name in bounded.objective.features if name in graph.leaves]
    extreme = [leaf.detach().abs().flatten(1).amax(1).argmax().item() for leaf in features if leaf.numel()]
    evenly = torch.linspace(0, size - 1, PART - len(extreme)).long().tolist()
    rows = sorted({int(row) for row in (*extreme, *evenly)})
    return rebuild([leaf[rows] if leaf.shape[:1] == (size,) else leaf for leaf in leaves])


def _different(
    nominal: NominalPass, batch: MicroBatch, gradients: Mapping[str, Tensor | None], largest: float
) -> list[str]:
    """Return the parameters whose gradients differ; none if the recording has no finite gradient to compare.

    Args:
        nominal: evaluates the recording.
        batch: the batch, and the random state of the step.
        gradients: the step's, by parameter name.
        largest: magnitude of the gradients on the data as they are.

    Raises:
        UncertifiableError: if the recording's gradient has no bounds.
    """
    try:
        step, local = nominal.step([batch], 1.0)
        tolerance = nominal.tolerances(local, step.samples)
    except (AgtError, ValueError):  # a label out of range, or an overflow
        return []
    every = [gradient for gradient in (*gradients.values(), *step.gradient.values()) if gradient is not None]
    if not all(bool(gradient.isfinite().all()) for gradient in every):
        return []
    slack = _SLACK * max(largest, _magnitude(every)) + _LEAST
    different = []
    for name, gradient in gradients.items():
        try:
            if differs(name, gradient, step.gradient.get(name), tolerance.get(name)):
                assert gradient is not None
                bounds, allowed = nominal.rounded_gradient(name, [batch], 1.0)
                require_inside(name, gradient.to(bounds.dtype), bounds, allowed[name].largest + slack)
        except UnsoundBoundError:
            different.append(name)
    return different


def _move(module: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(move(parameter))


def _copied(batch: object) -> object:
    leaves, rebuild = flatten(batch)
    return rebuild([leaf.detach().clone() for leaf in leaves])


# --- points ----------------------------------------------------------------------------------------------------------


Direction = Callable[[Tensor, Tensor], Tensor]
"""Maps a batch entry, and the gradient of the loss for it, to the direction of its move; only signs count."""


def _points(probe: _Probe, adversaries: Sequence[Adversary]) -> Iterator[_Point]:
    """Yield the points to compare at; those that several adversaries reach, once."""
    seen: list[list[Tensor]] = []
    for adversary in adversaries:
        for point in _poisoned_points(probe, adversary):
            leaves, _ = flatten(point.batch)
            if not any(all(map(torch.equal, leaves, others)) for others in seen):
                seen.append(leaves)
                yield point
    yield _Point(" at other parameters", probe.batch, _larger, reachable=False)


def _poisoned_points(probe: _Probe, adversary: Adversary) -> Iterator[_Point]:
    """Yield points at data that an adversary can make, or beyond them."""
    leaves, rebuild = flatten(probe.batch)
    graph = probe.bounded.program.graph
    reaches = {graph.leaves[name]: entry for name, entry in reach(adversary, probe.bounded.objective, leaves).items()}
    generator = torch.Generator().manual_seed(_SEED)

    def moved(direction: Direction, beyond: float = 0.0) -> object:
        entries = [leaf.detach().clone() for leaf in leaves]
        for position, limits in reaches.items():
            target = limits.toward(direction(entries[position], probe.slopes[position]), beyond)
            entries[position] = _in_rows(entries[position], target, probe.rows)
        return rebuild(entries)

    if reaches:
        inside = ", not on the data as they are, but on a batch that the adversary can make"
        yield _Point(inside, moved(lambda _, slope: slope))
        yield _Point(inside, moved(lambda _, slope: -slope))
        yield _Point(inside, moved(lambda entry, _: torch.where(entry < 0, -1, 1)))
        yield _Point(inside, moved(lambda entry, _: _signs(entry, generator)))
        for beyond in _BEYOND:
            far = moved(lambda entry, _: _signs(entry, generator), beyond)
            yield _Point(", not on the data as they are, but far away", far, reachable=False)


def _clean_slopes(module: nn.Module, batch: object, loss: Loss, state: RandomState) -> tuple[list[Tensor], float]:
    """Return the gradient of the loss for each batch entry, and the magnitude of those for the parameters."""
    leaves, rebuild = flatten(batch)
    entries = [leaf.detach().clone().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
    twin = independent_replica(module)
    with contextlib.suppress(Exception):  # code that writes to its batch, or refuses it
        _run(loss, state, twin, rebuild(entries))
    slopes = [torch.ones_like(entry, dtype=torch.float64) if entry.grad is None else entry.grad for entry in entries]
    return slopes, _magnitude([parameter.grad for parameter in twin.parameters() if parameter.grad is not None])


def _magnitude(tensors: Sequence[Tensor]) -> float:
    return max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def _signs(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tensor.shape, generator=generator).mul(2).sub(1).to(tensor.device)


def _larger(parameter: Tensor) -> Tensor:
    """Return a parameter whose elements are farther from zero, by a share of their mean magnitude."""
    return parameter + _PARAMETERS * parameter.abs().mean() * torch.where(parameter < 0, -1, 1)


def _in_rows(entry: Tensor, target: Tensor, rows: Tensor | None) -> Tensor:
    if rows is None:
        return target
    changed = entry.clone()
    changed[rows] = target[rows]
    return changed


# --- running the step ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def undisturbed(state: RandomState) -> Iterator[None]:
    """Run user code with the given random state, eagerly and without its output; random states are put back."""
    python, numbers = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if state.cuda is not None else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.compiler.set_stance("force_eager"),
        contextlib.redirect_stdout(io.StringIO()),
        torch.enable_grad(),
    ):
        torch.set_rng_state(state.cpu)
        if state.cuda is not None:
            torch.cuda.set_rng_state(state.cuda)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def custom_functions(value: Tensor) -> list[str]:
    """Return the names of the `torch.autograd.Function` classes besides torch's own that computed a value.

    Example:
        >>> custom_functions(torch.ones(2, requires_grad=True).sum())
        []
    """
    names: dict[str, None] = {}
    seen: set[object] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            forward = type(node)._forward_cls
            if not forward.__module__.startswith("torch."):
                names[forward.__name__] = None
    return list(names)
