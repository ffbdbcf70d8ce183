"""What is done for a release: oldest versions, reproducible files, and a look at what was installed."""
