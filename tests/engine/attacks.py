"""Poisoned trainings of small networks, by four kinds of attack.

Each attack trains for real, in float64, with plain torch gradients and the adversary's own means: up to n samples of
each batch, features in the ε-ball, labels in the ν-ball or flipped, or samples replaced outright and clipped.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from agt_lightning import UnboundedAdversary

ROUNDING = 1e-9
"""Far above float64 rounding of these short runs (1e-13), far below any bound that is broken on purpose (1e-4)."""

RUNS = 60
"""Trainings side by side, unless a test asks for another number."""

FEATURES, CLASSES, BATCH, STEPS = 3, 3, 6, 5

LOSSES = {
    "mse": lambda out, y: nn.functional.mse_loss(out, y),
    "huber": lambda out, y: nn.functional.huber_loss(out, y, delta=0.3),
    "ce": lambda out, y: nn.functional.cross_entropy(out, y),
    "bce": lambda out, y: nn.functional.binary_cross_entropy_with_logits(out, y),
}


def network(kind: str, hidden: tuple[int, ...]) -> nn.Sequential:
    widths = [FEATURES, *hidden, 1 if kind == "bce" else CLASSES]
    layers = [nn.Linear(i, o, dtype=torch.float64) for i, o in zip(widths[:-1], widths[1:], strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def data(kind: str, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    batches = []
    for step in range(STEPS):
        size = BATCH if step % 3 < 2 else 4  # a short batch now and then
        x = torch.randn(size, FEATURES, dtype=torch.float64, generator=generator)
        if kind == "bce":
            x = x.clamp(-4, 0.2)  # the range that one of the adversaries has to keep
        index = torch.randint(0, CLASSES, (size,), generator=generator)
        y = {"ce": index, "bce": (index > 0).double()[:, None]}.get(kind)
        batches.append((x, torch.randn(size, CLASSES, dtype=torch.float64, generator=generator) if y is None else y))
    return batches


class Attacks:
    """Parallel poisoned trainings; run r follows attack r modulo four: random, corner, and twice gradient ascent.

    Each run pushes the trained parameters along a direction of its own, every ``alone``-th a single coordinate.
    """

    def __init__(self, module, kind, adversary, rate, decay, generator, count=RUNS, alone=5):
        self.module, self.kind, self.adversary = module, kind, adversary
        self.rate, self.decay, self.generator, self.count = rate, decay, generator, count
        parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self.fixed = {k: p for k, p in parameters.items() if not module.get_parameter(k).requires_grad}
        self.runs = {k: p.expand(count, *p.shape).clone() for k, p in parameters.items() if k not in self.fixed}
        self.direction = {k: self.noise(p.shape) for k, p in self.runs.items()}
        for r in range(0, count, alone):
            name = list(self.runs)[r // alone % len(self.runs)]
            for d in self.direction.values():
                d[r] = 0
            flat = self.direction[name][r].view(-1)
            flat[r % len(flat)] = 1.0 if r % 2 else -1.0
        self.attack = torch.arange(count) % 4
        self.classes = CLASSES

    def noise(self, shape):
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def loss(self, parameters, x, y):
        output = functional_call(self.module, parameters | self.fixed, (x[None],))
        return LOSSES[self.kind](output, y[None])

    def push(self, parameters, direction, x, y):
        """How much one sample's gradient step moves the parameters along the direction."""
        gradient = grad(self.loss)(parameters, x, y)
        return -sum((gradient[k] * direction[k]).sum() for k in gradient)

    def gradients(self, x, y):
        """Per run and sample; data of shape (runs, b, ...)."""
        return vmap(vmap(grad(self.loss), in_dims=(None, 0, 0)))(self.runs, x, y)

    def pushes(self, x, y):
        return vmap(vmap(self.push, in_dims=(None, None, 0, 0)))(self.runs, self.direction, x, y)

    def gain(self, worst, clean):
        """What poisoning each sample adds along each run's direction, (runs, b)."""
        return -sum(
            ((worst[k] - clean[k]) * self.direction[k].unsqueeze(1)).reshape(*clean[k].shape[:2], -1).sum(2)
            for k in clean
        )

    def step(self, x: Tensor, y: Tensor) -> None:
        x, y = x.expand(self.count, *x.shape), y.expand(self.count, *y.shape)
        clean = self.gradients(x, y)
        if isinstance(self.adversary, UnboundedAdversary):
            clean, worst = self.substituted(clean)
        else:
            worst = self.gradients(*self.poison(x, y))
        gain = self.gain(worst, clean)
        gain[self.attack == 0] = torch.rand(gain[self.attack == 0].shape, dtype=gain.dtype, generator=self.generator)
        chosen = self.chosen(gain)
        for k, p in self.runs.items():
            mask = chosen.view(*chosen.shape, *[1] * (clean[k].ndim - 2))
            mean = torch.where(mask, worst[k], clean[k]).mean(1)
            self.runs[k] = (1 - self.rate * self.decay) * p - self.rate * mean

    def chosen(self, gain):
        """The n samples of each run with the largest gains, (runs, b)."""
        n = min(self.adversary.n, gain.shape[1])
        return torch.zeros_like(gain, dtype=torch.bool).scatter_(1, gain.topk(n, dim=1).indices, value=True)

    def poison(self, x, y):
        interior = 2 * torch.rand(x.shape, dtype=torch.float64, generator=self.generator) - 1
        slope = vmap(vmap(grad(self.push, argnums=2), in_dims=(None, None, 0, 0)))
        slope_value = slope(self.runs, self.direction, x, y)
        ascent = torch.sign(slope_value)
        move = torch.stack([interior, torch.sign(self.noise(x.shape)), ascent, ascent])
        if self.adversary.p != float("inf"):
            move = torch.stack([interior, self.noise(x.shape), slope_value, slope_value])
            move = inside_ball(move.flatten(3), self.adversary.p).view(move.shape)
        bad_x = x + self.adversary.epsilon * move[self.attack, torch.arange(self.count)]
        if self.adversary.bounds is not None:
            bad_x = bad_x.clamp(*self.adversary.bounds)
        return bad_x, self.poisoned_labels(bad_x, y) if self.adversary.nu else y

    def poisoned_labels(self, x, y):
        if self.kind in ("ce", "bce"):
            kinds = range(self.classes) if self.kind == "ce" else (0.0, 1.0)
            choices = torch.stack([torch.full_like(y, value) for value in kinds])
        else:
            choices = torch.stack([y + self.adversary.nu * self.unit(self.noise(y.shape)) for _ in range(4)])
        best = torch.stack([self.pushes(x, choice) for choice in choices]).argmax(0)
        best[self.attack == 0] = torch.randint(0, len(choices), best[self.attack == 0].shape, generator=self.generator)
        rows, samples = torch.meshgrid(torch.arange(self.count), torch.arange(x.shape[1]), indexing="ij")
        return choices[best, rows, samples]

    def unit(self, move):
        q = self.adversary.q
        return torch.sign(move) if q == float("inf") else inside_ball(move, q)

    def substituted(self, clean):
        """Clipped gradients, and the gradient within the clip that serves each run's direction best."""
        kappa = self.adversary.kappa
        if self.adversary.clip == "value":
            clean = {k: v.clamp(-kappa, kappa) for k, v in clean.items()}
            best = {k: -kappa * torch.sign(d) for k, d in self.direction.items()}
        else:
            norm = sum(v.flatten(2).square().sum(2) for v in clean.values()).sqrt()
            scale = (kappa / norm).clamp(max=1)
            clean = {k: v * scale.view(*scale.shape, *[1] * (v.ndim - 2)) for k, v in clean.items()}
            size = sum(d.flatten(1).square().sum(1) for d in self.direction.values()).sqrt()
            best = {k: -kappa * d / size.view(-1, *[1] * (d.ndim - 1)) for k, d in self.direction.items()}
        return clean, {k: best[k].unsqueeze(1).expand_as(v) for k, v in clean.items()}


def inside_ball(move: Tensor, p: float) -> Tensor:
    """Directions scaled to the surface of the unit ball; for p = 1 along the largest coordinate."""
    if p == 2:
        return move / move.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    largest = nn.functional.one_hot(move.abs().argmax(-1), move.shape[-1])
    return torch.sign(move) * largest


def assert_contained(engine, runs):
    """Raise if a run leaves the box of the engine."""
    for name, values in runs.items():
        box = engine.box[name]
        outside = torch.maximum(box.lower - values, values - box.upper)
        assert float(outside.max()) <= ROUNDING, f"{name} left its bounds by {float(outside.max())}"
