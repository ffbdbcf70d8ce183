"""Physics: surrogates of equations, operators, derivatives in the loss."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from tests.wild.registry import MOVED, SHIFTED, Refusal, wild
from tests.wild.rows import floats, rows, unit


@wild(rows(x=floats(3), y=floats(3)), MOVED, SHIFTED, settings={"features": "batch[0]", "labels": "batch[1]"})
class LorenzSurrogate(L.LightningModule):
    """The next state, and the equations of motion as a second loss."""

    def __init__(self, dt=0.01):
        super().__init__()
        self.dt = dt
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))

    @staticmethod
    def lorenz(state):
        x, y, z = state[:, 0], state[:, 1], state[:, 2]
        return torch.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z], dim=1)

    def training_step(self, batch, batch_idx):
        state, target = batch
        pred = state + self.dt * self.net(state)
        physics = F.mse_loss((pred - state) / self.dt, self.lorenz(state))
        data = F.mse_loss(pred, target)
        loss = data + 1e-3 * physics
        self.log_dict({"data": data, "physics": physics})
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(xb=floats(6), xt=unit(1), y=floats()), MOVED, SHIFTED)
class DeepONet(L.LightningModule):
    def __init__(self, p=4):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, p))
        self.trunk = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, p))
        self.b = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        u, t, y = batch
        out = torch.einsum("bi,bi->b", self.branch(u), self.trunk(t)) + self.b
        return F.mse_loss(out, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(2), y=floats(2)), MOVED, SHIFTED)
class NeuralODE(L.LightningModule):
    """Four steps of Euler's method through one network."""

    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))

    def training_step(self, batch, batch_idx):
        z, target = batch
        for k in range(4):
            t = torch.full((z.size(0), 1), k / 4)
            z = z + 0.25 * self.f(torch.cat([z, t], dim=1))
        return F.mse_loss(z, target)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=unit(2), y=floats(1)), MOVED, SHIFTED)
class FourierFeatures(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.register_buffer("B", torch.randn(2, 4))
        self.net = nn.Sequential(nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        proj = 2 * torch.pi * x @ self.B
        return F.mse_loss(self.net(torch.cat([proj.sin(), proj.cos()], dim=-1)), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=unit(2), y=floats(1)), MOVED, SHIFTED)
class RadialBasisFunctions(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.rand(5, 2))
        self.log_sigmas = nn.Parameter(torch.zeros(5))
        self.linear = nn.Linear(5, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        distances = (x.unsqueeze(1) - self.centers.unsqueeze(0)).pow(2).sum(-1)
        phi = torch.exp(-distances / (2 * torch.exp(self.log_sigmas) ** 2))
        return F.mse_loss(self.linear(phi), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    rows(x=unit(1), y=floats(1)),
    MOVED,
    SHIFTED,
    refused=Refusal("gradients inside the loss", "autograd|gradient|export", located=False, impossible=False),
)
class PhysicsInformed(L.LightningModule):
    """The residual of u' = -u by autograd."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        t, u0 = batch
        t = t.clone().requires_grad_(True)
        u = self.u(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return F.mse_loss(u, u0) + 0.1 * (du + u).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
