"""Users and items: factorizations, two towers, rankings."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, wild
from tests.wild.rows import bits, classes, floats, rows, unit


@wild(rows(user=classes(5), item=classes(6), y=unit()), SHIFTED, quick=True)
class MatrixFactorization(L.LightningModule):
    def __init__(self, n_users=5, n_items=6, k=3):
        super().__init__()
        self.user, self.item = nn.Embedding(n_users, k), nn.Embedding(n_items, k)
        self.user_bias, self.item_bias = nn.Embedding(n_users, 1), nn.Embedding(n_items, 1)
        self.mean = nn.Parameter(torch.zeros(1))

    def forward(self, u, i):
        dot = (self.user(u) * self.item(i)).sum(-1)
        return dot + self.user_bias(u).squeeze(-1) + self.item_bias(i).squeeze(-1) + self.mean

    def training_step(self, batch, batch_idx):
        u, i, rating = batch
        loss = F.mse_loss(self(u, i), rating)
        if torch.isnan(loss):
            return None
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2, weight_decay=1e-4)


@wild(rows(user=classes(5), item=classes(6), y=unit()), SHIFTED)
class RegularizedFactorization(L.LightningModule):
    """Penalizes the vectors of the users and items of the batch."""

    def __init__(self):
        super().__init__()
        self.P, self.Q = nn.Parameter(0.3 * torch.randn(5, 3)), nn.Parameter(0.3 * torch.randn(6, 3))

    def training_step(self, batch, batch_idx):
        u, i, rating = batch
        p, q = self.P[u], self.Q[i]
        error = rating - torch.einsum("bk,bk->b", p, q)
        return (error**2 + 0.01 * (p.norm(dim=1) ** 2 + q.norm(dim=1) ** 2)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(user=classes(5), item=classes(6), y=bits()), FLIPPED)
class NeuralCollaborativeFiltering(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.user_gmf, self.item_gmf = nn.Embedding(5, 3), nn.Embedding(6, 3)
        self.user_mlp, self.item_mlp = nn.Embedding(5, 3), nn.Embedding(6, 3)
        self.mlp = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU())
        self.predict = nn.Linear(6, 1)

    def training_step(self, batch, batch_idx):
        u, i, y = batch
        gmf = self.user_gmf(u) * self.item_gmf(i)
        mlp = self.mlp(torch.cat([self.user_mlp(u), self.item_mlp(i)], dim=-1))
        logit = self.predict(torch.cat([gmf, mlp], dim=-1))
        return nn.BCELoss()(torch.sigmoid(logit).view(-1), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x1=floats(5), x2=floats(4), y=bits()), MOVED, FLIPPED)
class TwoTowers(L.LightningModule):
    """Normalized embeddings of both sides, and their scaled product."""

    def __init__(self):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
        self.candidate = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        q, c, y = batch
        q, c = F.normalize(self.query(q), dim=-1), F.normalize(self.candidate(c), p=2, dim=-1)
        return F.binary_cross_entropy_with_logits((q * c).sum(-1) * self.temperature.exp(), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), positive=classes(6), negative=classes(6)), MOVED)
class BayesianPersonalizedRanking(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.tower, self.items = nn.Linear(4, 3), nn.Embedding(6, 3)

    def training_step(self, batch, batch_idx):
        x, positive, negative = batch
        u = self.tower(x)
        margin = (u * self.items(positive)).sum(-1) - (u * self.items(negative)).sum(-1)
        return -F.logsigmoid(margin).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(6), y=bits(1)), MOVED, FLIPPED)
class FactorizationMachine(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 1)
        self.V = nn.Parameter(0.1 * torch.randn(6, 3))

    def forward(self, x):
        square_of_sum = torch.mm(x, self.V).pow(2)
        sum_of_square = torch.mm(x.pow(2), self.V.pow(2))
        return self.linear(x) + 0.5 * (square_of_sum - sum_of_square).sum(1, keepdim=True)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
