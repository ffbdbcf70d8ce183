"""Measurements of the cost of certification, in time and in memory."""
