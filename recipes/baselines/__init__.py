"""Other certified defenses against flipped labels, to compare with."""
