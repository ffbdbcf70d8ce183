"""Small trainings to attack."""

import torch
import torch.nn.functional as F

from agt_lightning import BoundedAdversary, UnboundedAdversary
from recipes.attacks.task import Task
from recipes.models.perceptron import perceptron


def regression(adversary: BoundedAdversary | UnboundedAdversary, steps: int = 4, samples: int = 30) -> Task:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(samples, 3, generator=generator, dtype=torch.float64),
            torch.rand(samples, 1, generator=generator, dtype=torch.float64),
        )
        for _ in range(2)
    ]
    torch.manual_seed(0)
    rates = [0.05 / (1 + 0.5 * step) for step in range(steps)]
    return Task(perceptron([3, 4, 1], torch.float64), F.mse_loss, batches, rates, adversary)


def classification(adversary: BoundedAdversary, steps: int = 3) -> Task:
    task = regression(adversary, steps)
    batches = [(x, (y > 0.5).double()) for x, y in task.batches]
    return Task(task.network, F.binary_cross_entropy_with_logits, batches, task.rates, adversary)
