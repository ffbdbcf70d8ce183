"""Numbers for a terminal."""

from collections.abc import Mapping


def table(rows: Mapping[str, float | str]) -> str:
    """One line per name, names to the left and values in one column; numbers with four significant digits."""
    cells = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in rows.items()}
    left, right = max(map(len, cells), default=0), max(map(len, cells.values()), default=0)
    return "\n".join(f"  {name:<{left}}  {value:>{right}}" for name, value in cells.items())
