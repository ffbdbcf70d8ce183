"""Series: recurrent networks, residual stacks, convolutions in time, and likelihoods."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from tests.wild.registry import FLIPPED, MOVED, SHIFTED, wild
from tests.wild.rows import classes, floats, rows

SERIES = rows(x=floats(6, 2, scale=0.5), y=floats(2, scale=0.5))
UNIVARIATE = rows(x=floats(8, scale=0.5), y=floats(3, scale=0.5))


class _Forecaster(L.LightningModule):
    """What forecasters share: squared error, and Adam."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(SERIES, MOVED, SHIFTED)
class LSTMForecaster(_Forecaster):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(input_size=2, hidden_size=5, num_layers=1, batch_first=True)
        self.fc = nn.Linear(5, 2)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])


@wild(SERIES, MOVED, SHIFTED)
class StackedGRU(_Forecaster):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 4, num_layers=2, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        _, h = self.gru(x)
        return self.fc(h[-1])


@wild(SERIES, MOVED, SHIFTED)
class LSTMWithInitialState(_Forecaster):
    """Hidden and cell state are made by hand, as in many tutorials."""

    def __init__(self):
        super().__init__()
        self.hidden_size, self.num_layers = 4, 1
        self.lstm = nn.LSTM(2, self.hidden_size, self.num_layers, batch_first=True)
        self.fc = nn.Linear(self.hidden_size, 2)

    def forward(self, x):
        h0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        c0 = torch.zeros(self.num_layers, x.size(0), self.hidden_size).to(x.device)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1])


@wild(SERIES, MOVED, SHIFTED)
class LSTMWithDropout(_Forecaster):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 4, num_layers=2, dropout=0.2, batch_first=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1])


@wild(rows(x=floats(5, 2), xs=floats(3), y=floats()), MOVED, SHIFTED)
class RNNWithStaticFeatures(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(2, 4, batch_first=True)
        self.head = nn.Sequential(nn.Linear(4 + 3, 6), nn.ReLU(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        seq, static, y = batch
        out, _ = self.rnn(seq)
        y_hat = self.head(torch.cat([out[:, -1], static], dim=-1)).squeeze(-1)
        return F.smooth_l1_loss(y_hat, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-5)


class _NBeatsBlock(nn.Module):
    def __init__(self, lookback, horizon, width):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(lookback, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.backcast, self.forecast = nn.Linear(width, lookback), nn.Linear(width, horizon)

    def forward(self, x):
        h = self.fc(x)
        return self.backcast(h), self.forecast(h)


@wild(UNIVARIATE, MOVED, SHIFTED)
class NBeats(_Forecaster):
    def __init__(self, lookback=8, horizon=3):
        super().__init__()
        self.horizon = horizon
        self.blocks = nn.ModuleList([_NBeatsBlock(lookback, horizon, 6) for _ in range(2)])

    def forward(self, x):
        forecast = torch.zeros(x.size(0), self.horizon, device=x.device, dtype=x.dtype)
        for block in self.blocks:
            b, f = block(x)
            x = x - b
            forecast = forecast + f
        return forecast


class _Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


@wild(SERIES, MOVED, SHIFTED)
class TemporalConvolutions(_Forecaster):
    def __init__(self):
        super().__init__()
        layers, channels = [], 2
        for dilation in (1, 2):
            conv = nn.utils.parametrizations.weight_norm(
                nn.Conv1d(channels, 4, kernel_size=2, padding=dilation, dilation=dilation)
            )
            layers += [conv, _Chomp(dilation), nn.ReLU(), nn.Dropout(0.1)]
            channels = 4
        self.network = nn.Sequential(*layers)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.network(x.transpose(1, 2))[:, :, -1])


@wild(SERIES, MOVED, SHIFTED)
class PlainTemporalConvolutions(_Forecaster):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(2, 4, kernel_size=3, dilation=1)
        self.conv2 = nn.Conv1d(4, 4, kernel_size=2, dilation=2)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        x = x.permute(0, 2, 1)
        x = F.relu(self.conv1(F.pad(x, (2, 0))))
        x = F.relu(self.conv2(F.pad(x, (2, 0))))
        return self.out(x[..., -1])


@wild(UNIVARIATE, MOVED, SHIFTED)
class DLinear(_Forecaster):
    """Trend by a moving average, and a linear layer for each part."""

    def __init__(self):
        super().__init__()
        self.seasonal, self.trend = nn.Linear(8, 3), nn.Linear(8, 3)
        self.avg = nn.AvgPool1d(kernel_size=3, stride=1)

    def forward(self, x):
        padded = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
        trend = self.avg(padded.unsqueeze(1)).squeeze(1)
        return self.seasonal(x - trend) + self.trend(trend)


@wild(UNIVARIATE, MOVED, SHIFTED)
class NLinear(_Forecaster):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        last = x[:, -1:].detach()
        x = x - last
        return self.linear(x) + last


@wild(UNIVARIATE, MOVED, SHIFTED)
class InPlaceNLinear(_Forecaster):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        x = x.clone()
        last = x[:, -1:].clone()
        x[:, :] -= last
        out = self.linear(x)
        out += last
        return out


@wild(UNIVARIATE, MOVED, SHIFTED)
class ReversibleInstanceNorm(_Forecaster):
    """Normalizes each window by its own mean and variance, and takes that back at the end."""

    def __init__(self):
        super().__init__()
        self.affine_weight = nn.Parameter(torch.ones(1))
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True).detach()
        stdev = torch.sqrt(torch.var(x, dim=-1, keepdim=True, unbiased=False) + 1e-5).detach()
        x = (x - mean) / stdev * self.affine_weight
        return self.net(x) * stdev + mean


@wild(SERIES, MOVED, SHIFTED)
class QuantileForecaster(L.LightningModule):
    """Pinball loss over three quantiles."""

    def __init__(self, quantiles=(0.1, 0.5, 0.9)):
        super().__init__()
        self.quantiles = quantiles
        self.gru = nn.GRU(2, 4, batch_first=True)
        self.fc = nn.Linear(4, len(quantiles))

    def quantile_loss(self, preds, target):
        losses = []
        for i, q in enumerate(self.quantiles):
            errors = target - preds[:, i]
            losses.append(torch.max((q - 1) * errors, q * errors).unsqueeze(1))
        return torch.mean(torch.sum(torch.cat(losses, dim=1), dim=1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        out, _ = self.gru(x)
        loss = self.quantile_loss(self.fc(out[:, -1]), y[:, 0])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class _PositionalEncoding(nn.Module):
    def __init__(self, d_model, max_len=16):
        super().__init__()
        position = torch.arange(max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * (-torch.log(torch.tensor(10000.0)) / d_model))
        pe = torch.zeros(1, max_len, d_model)
        pe[0, :, 0::2] = torch.sin(position * div_term)
        pe[0, :, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x):
        return x + self.pe[:, : x.size(1)]


@wild(SERIES, MOVED, SHIFTED)
class TransformerForecaster(_Forecaster):
    def __init__(self):
        super().__init__()
        self.proj, self.pos = nn.Linear(2, 4), _PositionalEncoding(4)
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.Linear(4, 2)

    def forward(self, src):
        return self.decoder(self.encoder(self.pos(self.proj(src)))[:, -1])


@wild(SERIES, MOVED, SHIFTED)
class CausalTransformerForecaster(_Forecaster):
    """With dropout, and the mask that torch generates."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 4)
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.Linear(4, 2)

    def forward(self, src):
        mask = nn.Transformer.generate_square_subsequent_mask(src.size(1))
        return self.decoder(self.encoder(self.proj(src), mask=mask)[:, -1])


@wild(rows(x=floats(5, 2), y=floats(3, 1)), MOVED, SHIFTED)
class SequenceToSequence(L.LightningModule):
    """An encoder, and a cell that decodes step by step with teacher forcing off."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(2, 4, batch_first=True)
        self.cell = nn.GRUCell(1, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, x, steps):
        _, h = self.encoder(x)
        h = h[0]
        y = x[:, -1, :1]
        outputs = []
        for _ in range(steps):
            h = self.cell(y, h)
            y = self.out(h)
            outputs.append(y)
        return torch.stack(outputs, dim=1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x, y.shape[1]), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(UNIVARIATE, MOVED, SHIFTED)
class GaussianForecaster(L.LightningModule):
    """Mean and variance by torch's likelihood."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        self.mu, self.sigma = nn.Linear(6, 3), nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = self.body(x)
        return F.gaussian_nll_loss(self.mu(h), y, F.softplus(self.sigma(h)) + 1e-2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(UNIVARIATE, MOVED, SHIFTED)
class DistributionForecaster(L.LightningModule):
    """A likelihood of `torch.distributions`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x):
        loc, raw_scale = self.net(x).chunk(2, dim=-1)
        return torch.distributions.Normal(loc, F.softplus(raw_scale) + 0.1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = -self(x).log_prob(y).mean()
        self.log("nll", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(rows(x=floats(1, 8), y=classes(3)), MOVED, FLIPPED)
class BidirectionalLSTMClassifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.lstm = nn.LSTM(3, 3, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = F.max_pool1d(F.relu(self.conv(x)), 2).permute(0, 2, 1)
        out, _ = self.lstm(x)
        return F.cross_entropy(self.fc(out.mean(dim=1)), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(
    UNIVARIATE,
    MOVED,
    SHIFTED,
)
class RootMeanSquaredError(L.LightningModule):
    """The root of the batch's mean squared error."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return torch.sqrt(F.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
