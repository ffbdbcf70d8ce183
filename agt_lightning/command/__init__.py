"""The command ``agt``: certificates checked, wrapped for signing, and modules examined, from a shell."""
