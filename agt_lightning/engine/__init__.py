"""One abstract training step (Algorithm 1): the gradient bounded, training's own step checked, every domain moved."""

from agt_lightning.engine.engine import AbstractGradientEngine

__all__ = ["AbstractGradientEngine"]
