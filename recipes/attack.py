r"""Attacked trainings, inside what is certified about all poisoned ones (appendix E).

``attack=parameters`` pushes single parameters (figure 7), ``attack=outputs`` single outputs, ``attack=collision`` hides
one point (figure 8) and ``attack=flips`` flips random labels (figure 9). **An attack outside the bounds raises.**
Writes the attack's table of trainings as CSV, ``table.md`` and ``figure.png``.

    python -m recipes.attack attack=parameters data.root=path/to/data
    python -m recipes.attack attack=collision attack.n=500
    python -m recipes.attack attack=flips redraw=outputs/attack_flips/accuracies.csv    trains nothing
    python -m recipes.attack attack=flips debug=fast                                    seconds, to see that it runs
"""

from pathlib import Path
from typing import Protocol

import hydra
import lightning as L
import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig

from recipes.runs.job import run_experiment


class Attack(Protocol):
    """A family of attacks on one training."""

    @property
    def file(self) -> str:
        """Return the name of the table of trainings."""
        ...

    def run(self, datamodule: L.LightningDataModule, path: Path) -> str:
        """Certify and attack, write the table of trainings to ``path``, and return a summary in markdown.

        Raises:
            UnsoundBoundError: if an attacked training leaves its bounds.
        """
        ...

    def draw(self, rows: pd.DataFrame, path: Path) -> Path:
        """Draw the table of trainings to ``path``."""
        ...


def attack(config: DictConfig) -> None:
    """Run a family of attacks, or read an earlier table of theirs, and draw it.

    Args:
        config: ``conf/attack.yaml``, composed.
    """
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    chosen: Attack = instantiate(config.attack)
    path = folder / chosen.file
    if config.redraw is None:
        datamodule = instantiate(config.data)
        datamodule.prepare_data()
        datamodule.setup("fit")
        summary = chosen.run(datamodule, path)
        (folder / "table.md").write_text(summary + "\n")
        print(summary)
    chosen.draw(pd.read_csv(config.redraw or path), folder / "figure.png")
    print(f"Written to {folder}")


@hydra.main(config_path="../conf", config_name="attack", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.attack``."""
    run_experiment(attack, config)


if __name__ == "__main__":
    main()
