"""Autoencoders, variational ones, denoisers, flows, and adversarial networks."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from tests.wild.registry import MOVED, Refusal, wild
from tests.wild.rows import floats, rows, unit

VECTORS = rows(x=unit(8))
IMAGES = rows(x=unit(1, 8, 8))


@wild(VECTORS, MOVED, quick=True)
class LitAutoEncoder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        x = x.view(x.size(0), -1)
        z = self.encoder(x)
        x_hat = self.decoder(z)
        loss = F.mse_loss(x_hat, x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(IMAGES, MOVED)
class ConvolutionalAutoEncoder(L.LightningModule):
    """Summed over pixels, averaged over the batch."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(32, 3))
        self.linear = nn.Sequential(nn.Linear(3, 32), nn.GELU())
        self.decoder = nn.ConvTranspose2d(2, 1, kernel_size=3, output_padding=1, padding=1, stride=2)

    def forward(self, x):
        h = self.linear(self.encoder(x))
        return torch.tanh(self.decoder(h.reshape(h.shape[0], -1, 4, 4)))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        loss = F.mse_loss(x, self(x), reduction="none")
        return loss.sum(dim=[1, 2, 3]).mean(dim=[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(VECTORS, MOVED)
class VAE(L.LightningModule):
    """The reparametrization trick by hand."""

    def __init__(self, latent=2, kl_coeff=0.1):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        self.fc_mu, self.fc_var = nn.Linear(6, latent), nn.Linear(6, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 6), nn.ReLU(), nn.Linear(6, 8), nn.Sigmoid())
        self.kl_coeff = kl_coeff

    def reparameterize(self, mu, log_var):
        std = torch.exp(0.5 * log_var)
        eps = torch.randn_like(std)
        return eps * std + mu

    def training_step(self, batch, batch_idx):
        (x,) = batch
        h = self.encoder(x)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        x_hat = self.decoder(self.reparameterize(mu, log_var))
        recon = F.mse_loss(x_hat, x)
        kld = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
        self.log_dict({"recon": recon.detach(), "kl": -kld.detach()})
        return recon + self.kl_coeff * kld

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(VECTORS, MOVED)
class DistributionVAE(L.LightningModule):
    """The same by `torch.distributions`."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        mu, log_var = self.encoder(x).chunk(2, dim=1)
        std = torch.exp(log_var / 2)
        p = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(std))
        q = torch.distributions.Normal(mu, std)
        z = q.rsample()
        recon = F.mse_loss(self.decoder(z), x, reduction="mean")
        kl = (q.log_prob(z) - p.log_prob(z)).mean()
        return recon + 0.1 * kl

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(VECTORS, MOVED)
class DenoisingAutoEncoder(L.LightningModule):
    def __init__(self, noise=0.1):
        super().__init__()
        self.noise = noise
        self.net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        noisy = x + self.noise * torch.randn_like(x)
        return F.mse_loss(self.net(noisy), x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(VECTORS, MOVED)
class MaskedAutoEncoder(L.LightningModule):
    """Reconstructs what a random mask hides."""

    def __init__(self, ratio=0.5):
        super().__init__()
        self.ratio = ratio
        self.net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        mask = (torch.rand(x.shape) < self.ratio).float()
        x_hat = self.net(x * (1 - mask))
        return ((x_hat - x) ** 2 * mask).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(VECTORS, MOVED)
class DiffusionModel(L.LightningModule):
    """Predicts the noise of a random step."""

    def __init__(self, steps=10):
        super().__init__()
        self.steps = steps
        betas = torch.linspace(1e-2, 0.2, steps)
        self.register_buffer("alpha_bar", torch.cumprod(1 - betas, dim=0))
        self.time = nn.Embedding(steps, 4)
        self.net = nn.Sequential(nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 8))

    def training_step(self, batch, batch_idx):
        (x0,) = batch
        t = torch.randint(0, self.steps, (x0.size(0),), device=self.device)
        noise = torch.randn_like(x0)
        a = self.alpha_bar[t].unsqueeze(-1)
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        return F.mse_loss(self.net(torch.cat([x_t, self.time(t)], dim=-1)), noise)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class _Coupling(nn.Module):
    def __init__(self, dim, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(dim // 2, 6), nn.ReLU(), nn.Linear(6, dim))

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, dim=1)
        s = torch.tanh(s)
        b = b * s.exp() + t
        return torch.cat([b, a] if self.flip else [a, b], dim=1), s.sum(dim=1)


@wild(rows(x=floats(4)), MOVED)
class NormalizingFlow(L.LightningModule):
    """Affine couplings, and the likelihood of a standard normal prior."""

    def __init__(self):
        super().__init__()
        self.flows = nn.ModuleList([_Coupling(4, flip=i % 2 == 1) for i in range(2)])

    def training_step(self, batch, batch_idx):
        (z,) = batch
        log_det = torch.zeros(z.size(0), device=self.device)
        for flow in self.flows:
            z, ld = flow(z)
            log_det = log_det + ld
        log_prior = -0.5 * (z**2 + 1.8378770664093453).sum(dim=1)
        return -(log_prior + log_det).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@wild(VECTORS, MOVED, refused=Refusal("two optimizers", "optimizer|manual", located=False))
class GAN(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        z = torch.randn(real.size(0), 2)
        g_loss = F.softplus(-self.discriminator(self.generator(z))).mean()
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        d_loss = F.softplus(-self.discriminator(real)).mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
            torch.optim.Adam(self.discriminator.parameters(), lr=1e-3),
        ]


@wild(VECTORS, MOVED, refused=Refusal("a discrete choice in the network", "argmin|no bound rule"))
class VQVAE(L.LightningModule):
    """The nearest code, and a straight-through gradient: it jumps where two codes are equally near."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 2), nn.Linear(2, 8)
        self.codebook = nn.Embedding(4, 2)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        z = self.encoder(x)
        distances = (z.unsqueeze(1) - self.codebook.weight.unsqueeze(0)).pow(2).sum(-1)
        q = self.codebook(distances.argmin(dim=1))
        commit = F.mse_loss(q.detach(), z) + F.mse_loss(q, z.detach())
        q = z + (q - z).detach()
        return F.mse_loss(self.decoder(q), x) + 0.25 * commit

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
