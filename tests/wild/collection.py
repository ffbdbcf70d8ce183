"""Every family of the collection, imported so that its modules are in the registry."""

from importlib.util import find_spec

from tests.wild import (
    forecasting,
    generative,
    objectives,
    physics,
    recommenders,
    tabular,
    text,
    trainers,
    vision,
)
from tests.wild.registry import COLLECTION, cells

FAMILIES = [tabular, forecasting, text, vision, generative, objectives, recommenders, physics, trainers]

if find_spec("pytorch_lightning") is not None:
    from tests.wild import mirror

    FAMILIES.append(mirror)

__all__ = ["COLLECTION", "FAMILIES", "cells"]
