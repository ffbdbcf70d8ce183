"""Ordinary LightningModules; none of them knows of certificates."""

from recipes.models.classifier import Classifier
from recipes.models.pilotnet import SteeringHead
from recipes.models.regressor import Regressor

__all__ = ["Classifier", "Regressor", "SteeringHead"]
