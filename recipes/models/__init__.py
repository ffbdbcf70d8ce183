"""Ordinary LightningModules; none of them depends on certificates."""

from recipes.models.binary_classifier import BinaryClassifier
from recipes.models.classifier import Classifier
from recipes.models.pilotnet import SteeringHead
from recipes.models.regressor import Regressor
from recipes.models.scan_classifier import ScanClassifier

__all__ = ["BinaryClassifier", "Classifier", "Regressor", "ScanClassifier", "SteeringHead"]
