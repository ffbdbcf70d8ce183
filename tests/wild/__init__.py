"""LightningModules as people write them, each certified and poisoned, or refused for a reason that is true."""
