"""Experiments with agt_lightning: short scripts over the package, configured by the Hydra groups in ``conf/``."""
