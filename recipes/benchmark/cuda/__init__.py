"""Everything that is to be checked and measured on a GPU, prepared for a machine that is at hand for minutes."""
