"""Certified robustness to data poisoning for PyTorch Lightning.

While a model trains, an interval is kept for every parameter that contains the parameter of every run an adversary
could have caused (Abstract Gradient Training). From it follow certified predictions, accuracy and loss.
"""

from agt_lightning.interval import Interval

__all__ = ["Interval"]
__version__ = "0.1.0"
