"""Frozen networks in the style of transformers and timm, with random weights, below a trained head."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Self-attention of two heads, with an additive mask."""

    def __init__(self, size: int = 4):
        super().__init__()
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x, mask=0.0):
        samples, length, size = x.shape
        q, k, v = self.qkv(x).reshape(samples, length, 3, 2, size // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (size // 2) ** -0.5 + mask
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(samples, length, size))


class Block(nn.Module):
    def __init__(self, size: int = 4):
        super().__init__()
        self.attention, self.norms = Attention(size), nn.ModuleList([nn.LayerNorm(size) for _ in range(2)])
        self.mlp = nn.Sequential(nn.Linear(size, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, size))

    def forward(self, x, mask=0.0):
        x = x + self.attention(self.norms[0](x), mask)
        return x + self.mlp(self.norms[1](x))


class TextEncoder(nn.Module):
    """An encoder of token ids like BERT: tables of words, positions and types, a mask of padding, and a pooler."""

    def __init__(self, size: int = 4):
        super().__init__()
        self.words, self.positions, self.types = nn.Embedding(11, size), nn.Embedding(6, size), nn.Embedding(2, size)
        self.register_buffer("position_ids", torch.arange(6)[None])
        self.block, self.norm, self.pooler = Block(size), nn.LayerNorm(size), nn.Linear(size, size)

    def forward(self, ids):
        attended = ids.ne(0)
        if not attended.any():
            raise ValueError("There are no words.")
        mask = (1.0 - attended[:, None, None, :].to(dtype=self.words.weight.dtype)) * -1e4
        types = torch.zeros(ids.shape, dtype=torch.long, device=ids.device)
        embedded = self.words(ids) + self.positions(self.position_ids[:, : ids.shape[1]]) + self.types(types)
        hidden = self.block(self.norm(embedded), mask)
        return {"hidden": hidden, "pooled": torch.tanh(self.pooler(hidden[:, 0]))}


class ImageEncoder(nn.Module):
    """A vision transformer with a class token and a table of positions, on images of 1 × 4 × 4.

    At its end is a function that has no rule.
    """

    def __init__(self, size: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(1, size, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, size)), nn.Parameter(torch.randn(1, 5, size))
        self.block, self.norm = Block(size), nn.LayerNorm(size)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.positions
        return torch.special.i1(self.norm(self.block(tokens))[:, 0])


class SequenceFirst(nn.Module):
    """torch's own transformer layer, with the samples as second axis."""

    def __init__(self, size: int = 4):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(size, 2, 8, dropout=0.0)

    def forward(self, x):
        return self.layer(x.squeeze(1).transpose(0, 1)).mean(0)


class BatchNormed(nn.Module):
    """A convolution, normalized by the statistics of the batch in `train` mode."""

    def __init__(self, size: int = 4):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, size, 2, stride=2), nn.BatchNorm2d(size), nn.ReLU())

    def forward(self, x):
        return self.layers(x).mean((2, 3))


class Probe(L.LightningModule):
    """A linear head on a frozen encoder."""

    encoder: type = ImageEncoder
    without_gradients = True
    rate = 0.1

    def __init__(self):
        super().__init__()
        self.backbone = self.encoder().double().requires_grad_(False)
        self.head = nn.Linear(4, 3).double()

    def features(self, x):
        out = self.backbone(x)
        return out["pooled"] if isinstance(out, dict) else out

    def forward(self, x):
        with torch.set_grad_enabled(not self.without_gradients):
            features = self.features(x)
        return self.head(features)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=self.rate)
