"""The step's bound by plain loops over samples, units and outputs, with a dense Hessian; no kernel, no bins."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from tests.domains.adjoint.one_step import curved
from tests.domains.adjoint.problems import Problem

PIECES = 4000
"""Movements of a unit that the search for the best shares tries."""


class Oracle:
    """One direction of one step, docs/theory.md, eq. (13.8) to (13.17), in exact arithmetic but for float64.

    It has no rounding slack, so its parts are below those of the package, and close.
    """

    def __init__(self, problem: Problem, direction: Tensor) -> None:
        self.problem, self.direction = problem, direction * problem.trained
        self.first, self.second = problem.split(self.direction)
        self.W1, self.W2 = (layer.weight for layer in problem.layers)
        one = [float(layer.trains_bias) for layer in problem.layers]
        inputs, radius = problem.inputs, problem.radius
        self.x = torch.cat([inputs, torch.full((len(inputs), 1), one[0])], dim=1)
        self.h = inputs @ self.W1.T + problem.layers[0].bias
        self.z = torch.cat([self.h.relu(), torch.full((len(inputs), 1), one[1])], dim=1)
        self.f = self.h.relu() @ self.W2.T + problem.layers[1].bias
        self.m = (self.h > 0).double()
        self.N = self.x.norm(dim=1)
        self.near = self.h.abs() <= radius * self.N[:, None] + 1e-12
        self.open = self.h.abs() <= 1e-12
        self.u = self.x @ self.first.T
        self.g = self.slope(self.f, problem.targets)
        self.phi = (self.m * self.u) @ self.W2.T + self.z @ self.second.T
        self.psi = torch.stack([self.hessian(f) @ phi for f, phi in zip(self.f, self.phi, strict=True)])
        self.e = self.g @ self.W2
        reach = self.near | (self.h > 0)
        self.columns = self.second[:, :-1].norm(dim=0)
        self.reach = [
            float(((u**2 + (self.columns * N) ** 2) * on).sum()) ** 0.5
            for u, N, on in zip(self.u, self.N, reach, strict=True)
        ]
        norms = self.W2.norm(dim=0)
        self.switched = [float((norms * u.abs() * near).sum()) for u, near in zip(self.u, self.near, strict=True)]
        self.change = [radius * r + s for r, s in zip(self.reach, self.switched, strict=True)]
        lipschitz = [math.hypot(float(z.norm()), float((norms * on).norm()) * float(N)) for z, on, N in
                     zip(self.z, reach, self.N, strict=True)]  # fmt: skip
        self.D = [radius * s + radius**2 / 2 * float(N) for s, N in zip(lipschitz, self.N, strict=True)]

    def slope(self, f: Tensor, y: Tensor) -> Tensor:
        kind = self.problem.form.loss
        if kind == "ce":
            share = self.problem.form.smoothing
            return f.softmax(dim=1) - (1 - share) * torch.nn.functional.one_hot(y, f.shape[1]) - share / f.shape[1]
        return f.sigmoid() - y if kind == "bce" else f - y

    def hessian(self, f: Tensor) -> Tensor:
        kind = self.problem.form.loss
        if kind == "ce":
            p = f.softmax(dim=0)
            return torch.diag(p) - torch.outer(p, p)
        return torch.diag(torch.sigmoid(f) * torch.sigmoid(-f)) if kind == "bce" else torch.eye(len(f), dtype=f.dtype)

    @property
    def curved(self) -> Tensor:
        """``H c``."""
        return curved(self.problem, self.direction)

    def switches(self, sign: float) -> float:
        """``sup Σ_j Φ_j(r_j)``, by the best shares of two units or three on a fine grid."""
        return self.best_share([lambda r, j=j: self.unit(j, r, sign) for j in range(self.u.shape[1])])

    def unit(self, j: int, r: float, sign: float) -> float:
        total = 0.0
        for i in range(len(self.u)):
            t = abs(float(self.h[i, j])) / max(float(self.N[i]), 1e-300)
            if not bool(self.near[i, j]) or t > r + 1e-15:
                continue
            jump = float(self.e[i, j] * self.u[i, j])
            aside = abs(jump) if bool(self.open[i, j]) else max(-sign * float(self.h[i, j].sign()) * jump, 0.0)
            slip = float(self.g[i] @ self.second[:, j] + self.psi[i] @ self.W2[:, j])
            total += float(self.problem.weights[i]) * (aside + max(sign * slip, 0.0) * float(self.N[i]) * max(r - t, 0))
        return total

    def cross(self) -> float:
        """``R (sup Σ_j Ψ_j²)^½ + R²/2 max_j ‖Q_j‖``."""
        shares = [lambda r, j=j: self.crossed(j, r) ** 2 for j in range(self.u.shape[1])]
        outer = [
            torch.einsum("i,ik,il->kl", self.problem.weights * self.m[:, j], self.psi, self.x).norm()
            for j in range(self.u.shape[1])
        ]
        radius = self.problem.radius
        return radius * self.best_share(shares) ** 0.5 + radius**2 / 2 * float(max(outer))

    def crossed(self, j: int, r: float) -> float:
        total = 0.0
        for i in range(len(self.u)):
            t = abs(float(self.h[i, j])) / max(float(self.N[i]), 1e-300)
            if bool(self.near[i, j]) and t <= r + 1e-15:
                jump = float(self.g[i].norm() * self.u[i, j].abs())
                total += float(self.problem.weights[i]) * (
                    jump + float(self.psi[i].norm()) * float(self.N[i]) * max(r - t, 0)
                )
        return total

    def best_share(self, shares) -> float:
        """A lower bound on ``sup Σ_j φ_j(r_j)`` over ``Σ r² <= R²``, at squares in steps of a twelfth of R²."""
        radius, parts, best = self.problem.radius, 12, 0.0
        grid = [[share(radius * (k / parts) ** 0.5) for k in range(parts + 1)] for share in shares]
        for chosen in itertools.product(range(parts + 1), repeat=len(shares)):
            if sum(chosen) <= parts:
                best = max(best, sum(values[k] for values, k in zip(grid, chosen, strict=True)))
        return best

    def bilinear(self) -> float:
        """``Σ w λ D Φ`` for squared error."""
        weights = self.problem.weights.tolist()
        return sum(w * d * c for w, d, c in zip(weights, self.D, self.change, strict=True))

    def labels(self, sign: float) -> float:
        """The n largest of labels alone, eq. (13.15)."""
        problem, values = self.problem, []
        for i in problem.poisonable.tolist():
            kind, phi = problem.form.labels, self.phi[i]
            if problem.form.loss == "ce":
                share = 1 - problem.form.smoothing
                best = max(0.0, *(share * sign * float(phi[problem.targets[i]] - other) for other in phi))
                size = share * math.sqrt(2)
            elif kind == "flip":
                q = float(2 * problem.targets[i, 0] - 1)
                best, size = max(0.0, sign * q * float(phi[0])), 1.0
            elif kind == "ball":
                best, size = problem.nu * float(phi.norm()), problem.nu
            else:
                best, size = problem.nu * float(phi.abs().sum()), problem.nu * len(phi) ** 0.5
            values.append(float(problem.weights[i]) * (best + size * self.change[i]))
        return sum(sorted(values)[-problem.form.n :])
