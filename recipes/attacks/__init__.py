"""Poisoned trainings, checked against the bounds on all of them (appendix E)."""
