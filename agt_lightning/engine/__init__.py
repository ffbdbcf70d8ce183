"""The abstract training step (Algorithm 1): bound the gradient, check training's own step, move every domain."""

from agt_lightning.engine.engine import AbstractGradientEngine

__all__ = ["AbstractGradientEngine"]
