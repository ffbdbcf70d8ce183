"""Tables: floats, categories with embeddings, and both."""

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn

from tests.wild.registry import FAR, FLIPPED, MOVED, SHIFTED, wild
from tests.wild.rows import bits, classes, counts, floats, rows


@wild(rows(x=floats(5), y=classes(3)), MOVED, FLIPPED, quick=True)
class TabularClassifier(L.LightningModule):
    def __init__(self, in_features=5, hidden=(16, 8), num_classes=3, dropout=0.1, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        layers, width = [], in_features
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
            width = size
        self.model = nn.Sequential(*layers, nn.Linear(width, num_classes))
        self.train_acc = torchmetrics.Accuracy(task="multiclass", num_classes=num_classes)

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.train_acc(logits, y)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


@wild(rows(cat=classes(4, 2), x=floats(3), y=floats(1, scale=0.1)), MOVED, SHIFTED)
class EmbeddingsAndFloats(L.LightningModule):
    """Categories by entity embeddings, next to continuous columns."""

    def __init__(self, cardinalities=(4, 4), n_cont=3, emb_dim=2):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(c, emb_dim) for c in cardinalities])
        self.emb_dropout = nn.Dropout(0.05)
        n_emb = emb_dim * len(cardinalities)
        self.layers = nn.Sequential(nn.Linear(n_emb + n_cont, 12), nn.ReLU(), nn.LayerNorm(12), nn.Linear(12, 1))
        self.criterion = nn.HuberLoss(delta=0.5)

    def forward(self, x_cat, x_cont):
        embedded = torch.cat([emb(x_cat[:, i]) for i, emb in enumerate(self.embeddings)], dim=1)
        return self.layers(torch.cat([self.emb_dropout(embedded), x_cont], dim=1))

    def training_step(self, batch, _):
        x_cat, x_cont, target = batch
        loss = self.criterion(self(x_cat, x_cont), target)
        self.log("loss", loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=20)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@wild(rows(cat=classes(5, 3), x=floats(4), y=bits()), MOVED, FLIPPED)
class WideAndDeep(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.wide = nn.Embedding(15, 1)
        self.deep_emb = nn.Embedding(15, 4)
        self.deep = nn.Sequential(nn.Linear(3 * 4 + 4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        self.wide_linear = nn.Linear(4, 1)
        self.register_buffer("offsets", torch.tensor([0, 5, 10]))

    def forward(self, cat, cont):
        idx = cat + self.offsets
        wide = self.wide(idx).sum(dim=1) + self.wide_linear(cont)
        deep = self.deep(torch.cat([self.deep_emb(idx).flatten(1), cont], dim=-1))
        return (wide + deep).squeeze(-1)

    def training_step(self, batch, batch_idx):
        cat, cont, y = batch
        logit = self(cat, cont)
        loss = F.binary_cross_entropy_with_logits(logit, y)
        self.log_dict({"loss": loss, "auc_proxy": ((logit > 0).float() == y).float().mean()})
        return loss

    def configure_optimizers(self):
        return torch.optim.Adagrad(self.parameters(), lr=1e-2)


@wild(rows(x=floats(4), y=classes(2)), MOVED, FLIPPED)
class FeatureTokenTransformer(L.LightningModule):
    """One token for each column, a class token, and torch's encoder."""

    def __init__(self, n_features=4, d=8):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(n_features, d))
        self.bias = nn.Parameter(torch.zeros(n_features, d))
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        layer = nn.TransformerEncoderLayer(d, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.head = nn.Linear(d, 2)

    def forward(self, x):
        tokens = x.unsqueeze(-1) * self.weight + self.bias
        tokens = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens)[:, 0])

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-6)


class _Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.inner = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * d, d))

    def forward(self, x):
        return x + self.inner(self.norm(x))


@wild(rows(x=floats(5), y=floats()), MOVED, SHIFTED)
class TabularResNet(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.blocks = nn.Sequential(*[_Block(8) for _ in range(2)])
        self.head = nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
        self.train_mae = torchmetrics.MeanAbsoluteError()

    def forward(self, x):
        return self.head(self.blocks(self.first(x))).squeeze(1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self(x)
        self.train_mae.update(y_hat, y)
        self.log("train_mae", self.train_mae, on_epoch=True, on_step=False)
        return F.mse_loss(y_hat, y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@wild(rows(x=floats(6), y=classes(3)), MOVED, FLIPPED)
class GatedLinearUnits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 3))
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": self.loss_fn(self.net(x), y)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)


@wild(rows(cat=classes(6, 4), y=bits()), FLIPPED)
class DeepFactorizationMachine(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.first_order = nn.Embedding(6, 1)
        self.second_order = nn.Embedding(6, 3)
        self.mlp = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        first = self.first_order(x).sum(1)
        v = self.second_order(x)
        pairwise = 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)
        return (self.bias + first + pairwise + self.mlp(v.view(x.size(0), -1))).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.BCEWithLogitsLoss()(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=floats(1)), MOVED, SHIFTED)
class ElasticNetRegression(L.LightningModule):
    """Linear regression with penalties in the loss."""

    def __init__(self, l1_strength=1e-3, l2_strength=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.linear = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.linear(x), y)
        loss = loss + self.hparams.l1_strength * self.linear.weight.abs().sum()
        loss = loss + self.hparams.l2_strength * self.linear.weight.pow(2).sum()
        self.log("train_mse_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(x=floats(4), y=classes(2)), MOVED, FLIPPED)
class LogisticRegressionWithL2(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.reg = 1e-2

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.linear(x), y)
        l2 = sum(torch.norm(p) ** 2 for p in self.parameters())
        return loss + self.reg * l2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(x=floats(5), y=floats(1)), MOVED, SHIFTED)
class BatchNormRegressor(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("rmse", torch.sqrt(loss))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=floats()), MOVED, FAR)
class MixtureOfExperts(L.LightningModule):
    def __init__(self, n_experts=3):
        super().__init__()
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 1)) for _ in range(n_experts)]
        )
        self.gate = nn.Linear(4, n_experts)

    def forward(self, x):
        weights = self.gate(x).softmax(dim=-1)
        outputs = torch.stack([expert(x).squeeze(-1) for expert in self.experts], dim=-1)
        return (weights * outputs).sum(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.l1_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=counts()), MOVED, SHIFTED)
class PoissonRegression(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.loss = nn.PoissonNLLLoss(log_input=True)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self.net(x).squeeze(-1), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


@wild(rows(x=floats(4), y=classes(3)), MOVED, FLIPPED)
class SelfNormalizing(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(8, 8), nn.SELU())
        self.out = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.nll_loss(F.log_softmax(self.out(self.net(x)), dim=1), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(4), y=classes(3)), MOVED)
class RowNormalized(L.LightningModule):
    """Standardizes each row by its own mean and deviation."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = (x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-6)
        return self.fc2(F.leaky_relu(self.fc1(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)
