"""The same training executed in many ways: orders of samples and of sums, memory layouts, threads, implementations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agt_lightning import BoundedAdversary
from tests.floats.configurations import Batch, Configuration

Poison = Callable[[nn.Module, Batch, random.Random], Batch]


@dataclass(frozen=True)
class Execution:
    """A way to execute a training.

    Args:
        order: how linear layers sum: "torch", "permuted", "sequential" or "chunks".
        permuted: whether samples are permuted within each batch.
        threads: number of threads.
        strided: whether inputs are views of larger memory.
        implementation: of the optimizer: "loop", "foreach" or "fused".
        by_hand: whether the mean over samples is a sum of halves that are differentiated one after another.
    """

    order: str
    permuted: bool
    threads: int
    strided: bool
    implementation: str
    by_hand: bool

    @classmethod
    def drawn(cls, draw: random.Random) -> Execution:
        """Draw a way."""
        return cls(
            draw.choice(["torch", "torch", "permuted", "sequential", "chunks"]),
            draw.random() < 0.7,
            draw.choice([1, 1, 2]),
            draw.random() < 0.3,
            draw.choice(["loop", "foreach", "fused"]),
            draw.random() < 0.3,
        )


def executed(case: Configuration, way: Execution, poison: Poison, seed: int) -> dict[str, Tensor]:
    """Return the parameters after the training on poisoned batches."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    module = case.module()
    with _linear_order(way.order, generator), _threads(way.threads):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = case.optimizer(parameters, **case.settings, **_implementation(case, way))
        for batch in case.batches:
            x, y = poison(module, batch, draw)
            order = torch.randperm(len(x), generator=generator) if way.permuted else torch.arange(len(x))
            x, y = x[order], y[order]
            x = _strided(x) if way.strided else x
            optimizer.zero_grad()
            _differentiate(case, module, (x, y), by_hand=way.by_hand)
            optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _differentiate(case: Configuration, module: nn.Module, batch: Batch, *, by_hand: bool) -> None:
    """Leave the gradient of the loss in ``.grad``; by hand as the sum of those of two halves of the batch."""
    if not by_hand or len(batch[0]) % 2 or case.loss.__name__ == "_log_likelihood":
        case.loss(module, batch).backward()
        return
    for half in range(2):
        part = tuple(tensor.chunk(2)[half] for tensor in batch)
        (case.loss(module, part) / 2).backward()


def _implementation(case: Configuration, way: Execution) -> dict[str, bool]:
    if way.implementation == "fused" and case.optimizer is not torch.optim.RMSprop:
        return {"fused": True}
    return {"foreach": way.implementation == "foreach"}


def _strided(x: Tensor) -> Tensor:
    """Return the same numbers, every other one of a larger tensor."""
    wide = x.new_empty(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _linear_order(order: str, generator: torch.Generator) -> Iterator[None]:
    """Let linear layers sum their products in another order, forward and backward."""
    if order == "torch":
        yield
        return
    kept = F.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shuffled = torch.randperm(weight.shape[1], generator=generator)
        if order == "permuted":
            result = kept(x[..., shuffled], weight[:, shuffled])
        elif order == "chunks":
            result = sum(kept(x[..., part], weight[:, part]) for part in shuffled.split(2))  # type: ignore[assignment]
        else:
            result = x[..., shuffled[0], None] * weight[:, shuffled[0]]
            for entry in shuffled[1:]:
                result = result + x[..., entry, None] * weight[:, entry]
        return result if bias is None else result + bias

    F.linear = linear
    try:
        yield
    finally:
        F.linear = kept


# --- poisons ----------------------------------------------------------------------------------------------------------


def poisons(case: Configuration) -> Sequence[Poison]:
    """Return attacks: none, at random corners, and along the gradient of the loss or of a parameter."""
    return (lambda module, batch, draw: batch, _corner(case), _corner(case), _gradient(case), _parameter(case))


def _chosen(case: Configuration, size: int, draw: random.Random) -> Tensor:
    return torch.tensor(draw.sample(range(size), min(case.adversary.n, size)), dtype=torch.long)


def _moved(case: Configuration, batch: Batch, rows: Tensor, toward: Tensor, draw: random.Random) -> Batch:
    """Move features along a direction as far as the adversary may, and labels anywhere."""
    adversary = case.adversary
    assert isinstance(adversary, BoundedAdversary)
    x, y = batch[0].clone(), batch[1].clone()
    epsilon = float(adversary.epsilon)
    if epsilon and len(rows):
        x[rows] = (x[rows].double() + epsilon * _unit(toward[rows].double(), adversary.p)).to(x.dtype)
    if adversary.nu and len(rows):
        if case.labels == "class":
            y[rows] = torch.tensor([draw.randrange(int(batch[1].max()) + 1) for _ in rows])
        else:
            signs = torch.tensor([[draw.choice([-1.0, 1.0]) for _ in range(y.shape[1])] for _ in rows])
            y[rows] = (y[rows].double() + adversary.nu * signs.double()).to(y.dtype)
    return x, y


def _unit(direction: Tensor, p: float) -> Tensor:
    flat = direction.flatten(1)
    if p == float("inf"):
        return direction.sign()
    if p == 1:
        largest = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).reshape(direction.shape)
    flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)  # squares of tiny slopes underflow
    norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp(min=1e-30)
    return (flat / norm * (1 - 1e-15)).reshape(direction.shape)


def _corner(case: Configuration) -> Poison:
    def poison(module: nn.Module, batch: Batch, draw: random.Random) -> Batch:
        generator = torch.Generator().manual_seed(draw.randrange(2**31))
        toward = torch.randn(batch[0].shape, generator=generator, dtype=torch.float64)
        return _moved(case, batch, _chosen(case, len(batch[0]), draw), toward, draw)

    return poison


def _gradient(case: Configuration) -> Poison:
    def poison(module: nn.Module, batch: Batch, draw: random.Random) -> Batch:
        x = batch[0].clone().requires_grad_()
        (toward,) = torch.autograd.grad(case.loss(module, (x, batch[1])), x)
        return _moved(case, batch, _chosen(case, len(x), draw), draw.choice([-1, 1]) * toward, draw)

    return poison


def _parameter(case: Configuration) -> Poison:
    """Move samples so that the gradient of one parameter grows."""

    def poison(module: nn.Module, batch: Batch, draw: random.Random) -> Batch:
        x = batch[0].clone().requires_grad_()
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        target = draw.choice(parameters)
        (gradient,) = torch.autograd.grad(case.loss(module, (x, batch[1])), target, create_graph=True)
        entry = gradient.flatten()[draw.randrange(gradient.numel())]
        toward = None
        if entry.requires_grad:
            with suppress(RuntimeError):  # attention has no second derivative
                (toward,) = torch.autograd.grad(entry, x, allow_unused=True)
        if toward is None:
            return _corner(case)(module, batch, draw)
        return _moved(case, batch, _chosen(case, len(x), draw), draw.choice([-1, 1]) * toward, draw)

    return poison
