"""Capture of a module's training step as one graph of ATen calls, with the role of each input."""

from agt_lightning.capture.batch import flatten
from agt_lightning.capture.export import capture
from agt_lightning.capture.graph import Call, Graph, Reference
from agt_lightning.capture.reached import reached
from agt_lightning.capture.roles import LabelKind, LossRoles, analyze
from agt_lightning.capture.terms import LossTerm

__all__ = [
    "Call",
    "Graph",
    "LabelKind",
    "LossTerm",
    "LossRoles",
    "Reference",
    "analyze",
    "capture",
    "flatten",
    "reached",
]
