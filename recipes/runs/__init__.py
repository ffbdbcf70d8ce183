"""Files of one training, and the sweeps that collect them."""
