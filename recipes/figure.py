r"""Draw the figure of a sweep from its gathered tables; nothing is trained.

python -m recipes.figure outputs/household
python -m recipes.figure outputs/household --output household.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from recipes.gather import gather

SWEEP = "multirun.yaml"


def draw(folder: Path, path: Path | None = None) -> Path:
    """Draw a sweep as its configuration says.

    Args:
        folder: of the sweep, with the configuration that Hydra left and the tables of `gather`.
        path: the file to write; None means ``figure.png`` in ``folder``.

    Raises:
        FileNotFoundError: if there is no configuration or no table.
        ValueError: if the configuration names no drawing.
    """
    if not (folder / SWEEP).is_file():
        raise FileNotFoundError(f"Expected {folder / SWEEP}, which a sweep leaves behind. Use the folder of a sweep.")
    config = OmegaConf.load(folder / SWEEP)
    if not config.get("drawing"):
        raise ValueError(f"Expected a sweep with a drawing of its own in {folder}. Choose one of conf/sweep.")
    panels = OmegaConf.to_container(config.panels, resolve=False)
    return instantiate(config.drawing)(folder, panels, path or folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m recipes.figure``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument(
        "--output", type=Path, default=None, help="picture to write; figure.png in the folder if left out"
    )
    chosen = parser.parse_args(arguments)
    gather(chosen.folder)
    print("Written:", draw(chosen.folder, chosen.output), sep="\n  ")


if __name__ == "__main__":
    main()
