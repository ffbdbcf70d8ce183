"""Plain CROWN for one sample and fixed parameters, unit by unit, as theorem F.1 of the paper has it."""

import math

import torch


def plain_crown(layers, lower, upper, alpha):
    """Bounds of every layer before its relu.

    Args:
        layers: weights and biases, lists of floats.
        lower: of the input, floats.
        upper: of the input.
        alpha: from l and u with l < 0 < u to the slope of the lower line.

    Returns:
        A list of pairs of lists.
    """
    bounds = []
    for depth in range(len(layers)):
        low, high = [], []
        for unit in range(len(layers[depth][1])):
            high.append(_bound(layers, bounds, depth, unit, lower, upper, alpha, sign=1.0))
            low.append(-_bound(layers, bounds, depth, unit, lower, upper, alpha, sign=-1.0))
        bounds.append((low, high))
    return bounds


def _bound(layers, bounds, depth, unit, lower, upper, alpha, sign):
    """Upper bound of ``sign · unit``."""
    weights, biases = layers[depth]
    row, constant = [sign * w for w in weights[unit]], sign * biases[unit]
    for below in range(depth - 1, -1, -1):
        weights, biases = layers[below]
        for j, (low, high) in enumerate(zip(*bounds[below], strict=True)):
            slope, offset = _line(low, high, alpha, above=row[j] >= 0)
            constant += row[j] * offset
            row[j] *= slope
        constant += sum(r * b for r, b in zip(row, biases, strict=True))
        row = [sum(row[j] * weights[j][k] for j in range(len(row))) for k in range(len(weights[0]))]
    return constant + sum(r * (upper[k] if r >= 0 else lower[k]) for k, r in enumerate(row))


def _line(low, high, alpha, *, above):
    if low >= 0:
        return 1.0, 0.0
    if high <= 0:
        return 0.0, 0.0
    if not above:
        return alpha(low, high), 0.0
    return high / (high - low), -low * high / (high - low)


ALPHAS = {
    "zero": lambda low, high: 0.0,
    "one": lambda low, high: 1.0,
    "parallel": lambda low, high: high / (high - low),
    "adaptive": lambda low, high: float(high > -low),
}


def printed_upper_bound(layers, lower, upper):
    """The upper bound of one hidden layer's single output as appendix C.2 prints it: a neuron whose coefficient
    interval contains zero gets λ = 0 and Δ = u, and Δ is multiplied by Λ ⊗ λ = 0.

    Args:
        layers: two pairs of weight and bias bounds ((WL, WU), (bL, bU)), tensors.
        lower: of the input.
        upper: of the input.
    """
    (w1, b1), (w2, b2) = layers
    corners = [w * x for w in w1 for x in (lower, upper)]
    low = torch.stack(corners).amin(0).sum(1) + b1[0]
    high = torch.stack(corners).amax(0).sum(1) + b1[1]
    total = float(b2[1])
    for unit in range(len(low)):
        coefficient = (float(w2[0][0, unit]), float(w2[1][0, unit]))
        if coefficient[0] < 0 < coefficient[1]:
            continue  # λ = 0: Λ^(1) = 0, so neither the preactivation nor Δ = u enters the bound
        assert low[unit] >= 0, "the example needs units that are always on"
        total += max(c * float(h[unit]) for c in coefficient for h in (low, high))
    return total if math.isfinite(total) else math.inf
