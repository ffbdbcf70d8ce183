"""Frozen feature maps, fitted on training inputs without labels.

No map depends on a label. A certificate against label flips of a head that is trained on the features therefore covers
the whole predictor, map included. It does not cover poisoned inputs, which would move the map itself.

Inputs are ``(samples, ...)``, flattened to ``(samples, inputs)`` unless stated otherwise. Bytes are pixels and divided
by 255, floating point numbers are taken as they are. Everything is computed in float64, thousands of samples at a time.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

_CHUNK = 4096
_NEGLIGIBLE = 1e-10  # variance, relative to the largest, that is rounding error


class Features(Protocol):
    """A choice of features that is not fitted yet."""

    def fit(self, inputs: Tensor) -> "FeatureMap":
        """Return the map for these training inputs; it depends on nothing else."""


class FeatureMap(ABC):
    """A map from inputs to features that does not change any more."""

    @torch.no_grad()
    def transform(self, x: Tensor) -> Tensor:
        """Return features ``(samples, width)`` in float64, detached, on the device of ``x``.

        Args:
            x: inputs ``(samples, ...)`` like those of `fit`.
        """
        return torch.cat([self._transform(_pixels(chunk)) for chunk in x.split(_CHUNK)])

    @torch.no_grad()
    def of_training(self, inputs: Tensor) -> Tensor:
        """Return the features of the inputs of `fit`; those of `transform` unless `fit` has found others for them."""
        return self.transform(inputs)

    @abstractmethod
    def _transform(self, x: Tensor) -> Tensor:
        """Return the features of one chunk in float64, whose shape is still that of the inputs."""


@dataclass(frozen=True)
class PCA:
    """Principal components: exact, by eigenvalues of the covariance.

    Features are centered and uncorrelated over the training inputs, in order of falling variance. The entry of largest
    magnitude of each direction is positive, so directions of distinct variance are the same in every run.

    Args:
        components: number of features.
        whiten: divide each feature by its standard deviation.
        base: components of these features instead of the inputs themselves.
    """

    components: int
    whiten: bool = False
    base: Features | None = None

    def __post_init__(self) -> None:
        _at_least_one("components", self.components)

    def fit(self, inputs: Tensor) -> "Affine | Composed":
        """Return the projection for these training inputs.

        Raises:
            ValueError: if the inputs have fewer dimensions than ``components``, or with ``whiten`` less rank.
        """
        if self.base is None:
            return self._projection(inputs)
        base = self.base.fit(inputs)
        return Composed(base, self._projection(base.of_training(inputs)))

    @torch.no_grad()
    def _projection(self, inputs: Tensor) -> "Affine":
        mean, covariance = _moments(inputs)
        variances, directions = (values.flip(-1) for values in torch.linalg.eigh(covariance))
        limit = int((variances > _NEGLIGIBLE * variances[0]).sum()) if self.whiten else len(variances)
        if self.components > limit:
            raise ValueError(
                f"Expected `components` to be at most {limit}, the {'rank' if self.whiten else 'dimension'} of the "
                f"training inputs, but got {self.components}. Use fewer components."
            )
        variances, directions = variances[: self.components], directions[:, : self.components]
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        scale = variances.sqrt() if self.whiten else 1.0
        return Affine(mean, directions * largest.sign() / scale)


@dataclass(frozen=True)
class Affine(FeatureMap):
    """(x - ``mean``) ``matrix``.

    Args:
        mean: ``(inputs,)``.
        matrix: ``(inputs, width)``.
    """

    mean: Tensor
    matrix: Tensor

    @override
    def _transform(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"Expected inputs with {len(self.mean)} numbers each, but got {rows.shape[1]}.")
        return (rows - self.mean.to(rows.device)) @ self.matrix.to(rows.device)


@dataclass(frozen=True)
class Composed(FeatureMap):
    """``last``(``base``(x)).

    Args:
        base: the map of inputs.
        last: the map of its features.
    """

    base: FeatureMap
    last: FeatureMap

    @override
    def of_training(self, inputs: Tensor) -> Tensor:
        return self.last.transform(self.base.of_training(inputs))

    @override
    def _transform(self, x: Tensor) -> Tensor:
        return self.last.transform(self.base.transform(x))


@dataclass(frozen=True)
class UnitNorm:
    """Features of Euclidean norm one; zeros stay zeros.

    Args:
        base: the features to scale, sample by sample.
    """

    base: Features

    def fit(self, inputs: Tensor) -> "UnitRows":
        """Return the map for these training inputs."""
        return UnitRows(self.base.fit(inputs))


@dataclass(frozen=True)
class UnitRows(FeatureMap):
    """``base``(x) / ‖``base``(x)‖.

    Args:
        base: the map before.
    """

    base: FeatureMap

    @override
    def of_training(self, inputs: Tensor) -> Tensor:
        return unit_rows(self.base.of_training(inputs))

    @override
    def _transform(self, x: Tensor) -> Tensor:
        return unit_rows(self.base.transform(x))


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows of norm one; rows of zeros stay.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, rows)


@dataclass(frozen=True)
class RandomReLU:
    """Random features relu(u W + b), minus their mean over the training inputs.

    u are the centered inputs or their principal components, divided by one number so that the mean variance of a
    coordinate is 1. W is normal with variance 1 / dim(u), b is normal with standard deviation ``offset``. Centering
    lets a head with a bias learn in few steps: the mean of the features would else be its one steep direction.

    Args:
        width: number of features.
        seed: of W and b.
        components: number of principal components to start from; None for the inputs themselves.
        whiten: give each of these components variance 1; needs ``components``.
        offset: standard deviation of b.
    """

    width: int
    seed: int = 0
    components: int | None = None
    whiten: bool = False
    offset: float = 1.0

    def __post_init__(self) -> None:
        _at_least_one("width", self.width)
        if self.components is not None:
            _at_least_one("components", self.components)
        elif self.whiten:
            raise ValueError("Expected `components` beside `whiten`, but got None. Say how many to whiten.")

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> "ReLUFeatures":
        """Return the map for these training inputs; its random numbers depend on ``seed`` and the width of u only.

        Raises:
            ValueError: if the inputs have too few dimensions, or do not vary at all.
        """
        if self.components is not None:
            base = PCA(self.components, self.whiten).fit(inputs)
        else:
            mean = _mean(inputs)
            base = Affine(mean, torch.eye(len(mean), dtype=torch.float64, device=mean.device))
        variance = _mean(base.transform(inputs).square()).mean()
        if not variance > 0:
            raise ValueError("Expected training inputs that vary, but got the same one in every row.")
        base = Affine(base.mean, base.matrix / variance.sqrt())
        generator = torch.Generator().manual_seed(self.seed)
        dimension = base.matrix.shape[1]
        weight = torch.randn(dimension, self.width, generator=generator, dtype=torch.float64) / dimension**0.5
        bias = self.offset * torch.randn(self.width, generator=generator, dtype=torch.float64)
        uncentered = ReLUFeatures(base, weight, bias, torch.zeros_like(bias))
        return ReLUFeatures(base, weight, bias, _mean(uncentered.transform(inputs)).cpu())


@dataclass(frozen=True)
class ReLUFeatures(FeatureMap):
    """relu(``base``(x) ``weight`` + ``bias``) - ``mean``.

    Args:
        base: the map before the layer.
        weight: ``(dimension, width)``.
        bias: ``(width,)``.
        mean: ``(width,)``.
    """

    base: Affine
    weight: Tensor
    bias: Tensor
    mean: Tensor

    @override
    def _transform(self, x: Tensor) -> Tensor:
        u = self.base._transform(x)
        return (u @ self.weight.to(u.device) + self.bias.to(u.device)).relu() - self.mean.to(u.device)


@dataclass(frozen=True)
class Penultimate:
    """Inputs of the last linear layer of a module, in `eval` mode: the usual features of a pretrained network.

    The module is copied, so training it further changes nothing here. Poison of *its* training is outside of
    every certificate: use a module that was trained on other data than the labels that can be flipped.

    Args:
        module: the module; its forward maps a batch of inputs to outputs, the last linear layer among its operations.
        checkpoint: file of Lightning's whose ``state_dict`` is loaded into the copy; None to use the module as it is.
        shape: shape of one input, such as ``[1, 28, 28]``; None to give inputs as they come.
    """

    module: L.LightningModule = field(repr=False)
    checkpoint: str | Path | None = None
    shape: Sequence[int] | None = None

    @torch.no_grad()
    def fit(self, inputs: Tensor) -> "ModuleFeatures":
        """Return the map; only the first input is used, to find the last linear layer that runs.

        Raises:
            ValueError: if no linear layer runs, or the last one has more than one row per sample.
            RuntimeError: if the checkpoint is of another module.
        """
        module = copy.deepcopy(self.module)
        if self.checkpoint is not None:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            module.load_state_dict(state["state_dict"])
        module = module.double().eval().requires_grad_(False).to(inputs.device)
        shape = None if self.shape is None else tuple(self.shape)
        return ModuleFeatures(module, _last_linear(module, _shaped(_pixels(inputs[:1]), shape)), shape)


@dataclass(frozen=True)
class ModuleFeatures(FeatureMap):
    """Input of the linear layer ``head`` of ``module``.

    Args:
        module: the module, in `eval` mode and float64.
        head: name of its layer.
        shape: shape of one input; None to give inputs as they come.
    """

    module: nn.Module = field(repr=False)
    head: str
    shape: tuple[int, ...] | None

    @override
    def _transform(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.module.get_submodule(self.head).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.module(_shaped(x, self.shape))
        finally:
            handle.remove()
        features = seen[-1]
        if features.shape[:-1] != (len(x),):
            raise ValueError(
                f"Expected one row for each of {len(x)} samples before the layer `{self.head}`, but got the shape "
                f"{tuple(features.shape)}. Pool or flatten before it."
            )
        return features


def _last_linear(module: nn.Module, x: Tensor) -> str:
    """Return the name of the linear layer that runs last on ``x``."""
    ran: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: ran.append(name)

    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers]
    try:
        module(x)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise ValueError(f"Expected a linear layer in the forward of {type(module).__name__}, but none runs.")
    return ran[-1]


def _shaped(x: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    return x if shape is None else x.reshape(len(x), *shape)


def _pixels(x: Tensor) -> Tensor:
    """Return float64 values, bytes in units of their largest value."""
    if x.dtype == torch.uint8:
        return x.double() / 255
    if not x.is_floating_point():
        raise ValueError(f"Expected pixels of type uint8 or floating point inputs, but got {x.dtype}.")
    return x.double()


def _mean(inputs: Tensor) -> Tensor:
    """Return the mean over the samples, ``(inputs,)``."""
    if len(inputs) == 0:
        raise ValueError("Expected training inputs to fit the features to, but got none.")
    sums = torch.stack([_pixels(chunk).flatten(1).sum(dim=0) for chunk in inputs.split(_CHUNK)])
    return sums.sum(dim=0) / len(inputs)


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean ``(inputs,)`` and covariance ``(inputs, inputs)``, divided by the number of samples."""
    mean = _mean(inputs)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=mean.device)
    for chunk in inputs.split(_CHUNK):
        centered = _pixels(chunk).flatten(1) - mean
        covariance += centered.T @ centered
    return mean, covariance / len(inputs)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"Expected `{name}` to be at least 1, but got {value}.")
