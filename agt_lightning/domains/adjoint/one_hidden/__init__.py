"""One hidden layer: units that switch, and both layers together, beside the loss's third derivative."""

from agt_lightning.domains.adjoint.one_hidden.step import OneHiddenStep

__all__ = ["OneHiddenStep"]
