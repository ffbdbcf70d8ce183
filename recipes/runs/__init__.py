"""What one training leaves behind, and the sweeps that collect it."""
