"""Poisoned trainings, to hold against what is certified about all of them (appendix E)."""
