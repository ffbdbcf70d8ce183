"""Small modules in float64, and data for them, that the cases of this folder vary."""

import lightning as L
import torch
from torch import Tensor, nn

from agt_lightning import BoundedAdversary
from tests.trust.harness import Case, flipped_labels, moved_labels


class Regressor(L.LightningModule):
    """Three inputs, squared error, plain SGD; cases override what they are about."""

    outputs = 1
    hidden = 0
    bias = True
    rate = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.net = self.network().double()

    def network(self) -> nn.Module:
        if not self.hidden:
            return nn.Linear(3, self.outputs, bias=self.bias)
        return nn.Sequential(nn.Linear(3, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.outputs))

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Classifier(Regressor):
    """The same for three classes."""

    outputs = 3

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)


def variant(base: type = Regressor, **members) -> type:
    """A module class with other methods or attributes."""
    return type("Variant", (base,), members)


def numbers(size: int = 8, inputs: int = 3, scale: float = 0.3) -> dict[str, Tensor]:
    """Features and real-valued labels, small enough that clean residuals of an untrained network stay below 1."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, inputs, generator=generator, dtype=torch.float64)
    return {"x": x, "y": scale * torch.randn(size, 1, generator=generator, dtype=torch.float64)}


def classes(size: int = 8, kinds: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, kinds, (size,), generator=generator)}


def binary(size: int = 8) -> dict[str, Tensor]:
    rows = classes(size, 2)
    return rows | {"y": rows["y"].double()[:, None]}


LABELS = BoundedAdversary(n=1, nu=5.0)
"""One label moved far beyond all clean residuals."""

FEATURES = BoundedAdversary(n=1, epsilon=0.1)

FLIPS = BoundedAdversary(n=1, nu=1, q=0)


def regression(module: type | None = None, adversary=LABELS, **changes) -> Case:
    return Case(module or Regressor, adversary, numbers()).but(**changes)


def classification(module: type | None = None, adversary=FLIPS, **changes) -> Case:
    return Case(module or Classifier, adversary, classes()).but(**changes)


def apart(case: Case) -> Case:
    """A case in which the adversary reaches the first weights alone: whatever else moves in a poisoned run is outside.

    The first sample of each batch has the first feature alone, the others have the other two, and there is no bias.
    Only that sample can be poisoned. Its gradient and those of the others are of different weights, so the bounds of
    the others' weights are points, and code that looks at the whole gradient, loss or batch shows at once.
    """
    x = case.data["x"].clone()
    x[:, 0] = 0
    x[:: case.batch_size] = torch.eye(3, dtype=x.dtype)[0]
    case = case.but(
        module=variant(case.module, bias=False),
        data={**case.data, "x": x},
        settings={**case.settings, "poisonable": lambda batch: batch[0][:, 0] != 0},
    )
    if case.adversary.q == 0:
        case = case.but(attacks=[flipped_labels(case, 0, shift) for shift in (1, 2)])
    else:
        case = case.but(attacks=[moved_labels(case, 0, sign) for sign in (1, -1)])
    return case
