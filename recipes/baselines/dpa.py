r"""Deep partition aggregation for flipped labels (SS-DPA of Levine and Feizi).

The training set is cut into k parts by a hash of the features, one base model is trained on each, and the models vote.

**Theorem.** Let part, order and training of each model be functions of its own samples, and parts not depend on labels.
If ``N_c`` models vote for class c, the prediction ĉ has the most votes, the lower index first among equals, and

    gap = N_ĉ − max over k ≠ ĉ of (N_k + [k < ĉ]),

then no change of ``floor(gap / 2)`` labels of the whole training set alters the prediction.

*Proof.* A label belongs to one part, so n labels change at most n models, each of which takes at most one vote from ĉ
and gives at most one to k. ``N_ĉ − N_k`` falls by at most 2 n ≤ gap, so ``N_ĉ ≥ N_k + [k < ĉ]`` still holds for each k:
ĉ has more votes than every lower class, and no fewer than every higher one. ∎

The adversary can do whatever it likes to the labels of n samples of the **whole data set**, but cannot touch features.

**Insertions and deletions.** If parts are a hash of the features, an inserted or deleted sample belongs to one part as
well, so the same number of them is certified, whatever their features; a replaced sample is two. Features must be a
fixed map of the samples.

Axis letters: ``k`` base models, ``m`` samples of the largest part, ``d`` features, ``c`` classes, ``t`` test samples.

Reference:
    Levine and Feizi, "Deep partition aggregation: provable defenses against general poisoning attacks", ICLR 2021,
    where it is stated for insertions and deletions too.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 500  # test samples whose votes are counted together
_NEAREST_CHUNK = 100  # the same for votes of nearest neighbors


def partition(features: Tensor, parts: int) -> Tensor:
    """Return the part of each sample, integers ``(samples,)`` below ``parts``: a hash of its features modulo ``parts``.

    Args:
        features: ``(samples, features)``.
        parts: number of parts.

    Example:
        >>> partition(torch.zeros(3, 2), 7)
        tensor([5, 5, 5])
    """
    if parts < 1:
        raise ValueError(f"Expected at least one part, but got {parts}.")
    return torch.tensor([number % parts for number in _numbers(features)])


def _numbers(features: Tensor) -> list[int]:
    """Return a hash of each row, of 64 bits."""
    rows = features.detach().cpu().double().numpy()
    return [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") for row in rows]


def train_base_models(features: Tensor, labels: Tensor, part: Tensor, parts: int, classes: int, steps: int) -> Tensor:
    """Return the heads of all base models, ``(k, d + 1, c)``, bias last, trained at once by batched products.

    Softmax regression by full-batch gradient descent from zero, with rate 1 / L, L a smoothness constant of the model's
    own part. A part without samples leaves its model at zero, which votes for class 0 whatever the labels are.

    Args:
        features: ``(samples, d)``.
        labels: classes ``(samples,)``.
        part: part of each sample, ``(samples,)``.
        parts: number of parts k.
        classes: number of classes c.
        steps: steps of gradient descent.
    """
    x, target, weight = _padded(with_bias(features), labels, part, parts, classes)
    # The Hessian of softmax regression is at most half the mean of x xᵀ, whose largest eigenvalue its trace bounds.
    smoothness = 0.5 * torch.einsum("kmd,kmd,km->k", x, x, weight).clamp(min=torch.finfo(x.dtype).tiny)
    rate = 1 / smoothness[:, None, None]
    heads = torch.zeros(parts, x.shape[2], classes, dtype=x.dtype)
    for _ in range(steps):
        error = (torch.bmm(x, heads).softmax(dim=2) - target) * weight[:, :, None]
        heads = heads - rate * torch.bmm(x.mT, error)
    return heads


def class_sum_models(features: Tensor, labels: Tensor, part: Tensor, parts: int, classes: int) -> Tensor:
    """Return heads like `train_base_models`: the sum of the features of each class in the part, without a bias.

    Args:
        features: ``(samples, d)``.
        labels: classes ``(samples,)``.
        part: part of each sample, ``(samples,)``.
        parts: number of parts k.
        classes: number of classes c.

    Example:
        >>> class_sum_models(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]), torch.tensor([0, 0]), 1, 2)
        tensor([[[1., 2.],
                 [0., 0.]]])
    """
    sums = torch.zeros(parts * classes, features.shape[1], dtype=features.dtype)
    sums.index_add_(0, part * classes + labels, features)
    return F.pad(sums.reshape(parts, classes, -1).mT, (0, 0, 0, 1))


def votes(heads: Tensor, features: Tensor) -> Tensor:
    """Return the number of base models that predict each class, integers ``(t, c)``.

    Args:
        heads: ``(k, d + 1, c)``.
        features: test samples, ``(t, d)``.
    """
    models, inputs, classes = heads.shape
    flat = heads.transpose(0, 1).reshape(inputs, models * classes)
    counts = [
        F.one_hot((chunk @ flat).view(-1, models, classes).argmax(dim=2), classes).sum(dim=1)
        for chunk in with_bias(features).split(_CHUNK)
    ]
    return torch.cat(counts)


def nearest_votes(features: Tensor, labels: Tensor, part: Tensor, parts: int, classes: int, x: Tensor) -> Tensor:
    """Return votes like `votes`, of the sample in each part that has the largest inner product with a test point.

    Among equals the one of the lower hash counts, and of the lower class: where a sample stands in the data set has no
    part in it. A part without samples votes for class 0.

    Args:
        features: ``(samples, d)``, of unit norm.
        labels: classes ``(samples,)``.
        part: part of each sample, ``(samples,)``.
        parts: number of parts k.
        classes: number of classes c.
        x: test points, ``(t, d)``.

    Example:
        >>> x = torch.eye(2)
        >>> nearest_votes(x, torch.tensor([0, 1]), torch.tensor([0, 0]), 2, 2, x)
        tensor([[2, 0],
                [1, 1]])
    """
    numbers = _numbers(features)
    order = sorted(range(len(features)), key=lambda row: (int(part[row]), numbers[row], int(labels[row])))
    rows = torch.tensor(order, dtype=torch.int64)
    places, there = _places(part[rows], parts)
    ordered, own = features[rows], F.pad(labels[rows], (0, 1))
    counts = []
    for chunk in x.split(_NEAREST_CHUNK):
        products = F.pad(chunk @ ordered.T, (0, 1), value=-torch.inf)[:, places]
        nearest = places.expand_as(products).gather(2, products.argmax(dim=2, keepdim=True)).squeeze(2)
        counts.append(F.one_hot(own[nearest].where(there, 0), classes).sum(dim=1))
    return torch.cat(counts)


def _places(part: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Return positions of the samples of each part ``(k, m)``, with their number for none, and which parts have some.

    Args:
        part: of each sample, in order.
        parts: number of parts k.
    """
    sizes = torch.bincount(part, minlength=parts)
    columns = torch.arange(len(part)) - (sizes.cumsum(0) - sizes)[part]
    places = torch.full((parts, max(1, int(sizes.max()))), len(part))
    places[part, columns] = torch.arange(len(part))
    return places, sizes > 0


def predicted(counts: Tensor) -> Tensor:
    """Return the class with the most votes, the lower index first among equals, ``(t,)``.

    Args:
        counts: votes, ``(t, c)``.

    Example:
        >>> predicted(torch.tensor([[2, 5, 5]]))
        tensor([1])
    """
    order = torch.arange(counts.shape[1], 0, -1)
    return (counts * (counts.shape[1] + 1) + order).argmax(dim=1)


def certified_flips(counts: Tensor) -> Tensor:
    """Return the number of training labels whose change leaves the prediction as it is, integers ``(t,)``.

    Args:
        counts: votes, ``(t, c)``, of at least two classes.

    Example:
        >>> certified_flips(torch.tensor([[1, 8, 2], [5, 5, 0], [4, 5, 0]]))
        tensor([3, 0, 0])
    """
    classes = torch.arange(counts.shape[1])
    winner = predicted(counts)[:, None]
    rivals = counts + (classes < winner)
    rivals = rivals.scatter(1, winner, -1)
    gap = counts.gather(1, winner).squeeze(1) - rivals.max(dim=1).values
    return gap.div(2, rounding_mode="floor")


def with_bias(features: Tensor) -> Tensor:
    """Return features with a column of ones, ``(samples, d + 1)``."""
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


def _padded(x: Tensor, labels: Tensor, part: Tensor, parts: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs ``(k, m, d + 1)``, one-hot targets ``(k, m, c)`` and weights ``(k, m)``, padded by zeros.

    A sample's weight is 1 / size of its part; within a part samples keep their order.
    """
    order = part.argsort(stable=True)
    sizes = torch.bincount(part, minlength=parts)
    starts = sizes.cumsum(0) - sizes
    rows = part[order]
    columns = torch.arange(len(part)) - starts[rows]
    shape = (parts, int(sizes.max()))
    inputs = torch.zeros(*shape, x.shape[1], dtype=x.dtype)
    targets = torch.zeros(*shape, classes, dtype=x.dtype)
    weights = torch.zeros(shape, dtype=x.dtype)
    inputs[rows, columns] = x[order]
    targets[rows, columns] = F.one_hot(labels[order], classes).to(x.dtype)
    weights[rows, columns] = 1 / sizes[rows].to(x.dtype)
    return inputs, targets, weights
