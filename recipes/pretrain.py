"""Train the network for scans on what is known, so that its gradients can move little, before it is fine-tuned.

Adam on the cross-entropy and 0.3 times the width of its gradient's bounds, for moved inputs and parameters
(`agt_lightning.propagation.gradient_width`), without the new disease. The network is kept in ``data.cache`` in one
file, which ``recipes.train experiment=octmnist`` finds by images and settings, or makes itself.

    python -m recipes.pretrain
    python -m recipes.pretrain data=pneumoniamnist data.root=path/to/data    the stand-in
    python -m recipes.pretrain data.pretraining.penalty=0                    ordinary training
    python -m recipes.pretrain debug=fast                                    seconds, to see that it runs
"""

from collections.abc import Mapping
from time import perf_counter

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from recipes.data.medmnist import title
from recipes.data.scans import Scans
from recipes.models.scan_classifier import scan_network
from recipes.runs.job import run_experiment
from recipes.runs.run import table


def pretrain(config: DictConfig) -> dict[str, float]:
    """Train or find the network, and print its accuracy on the test images.

    Args:
        config: ``conf/pretrain.yaml``, composed.
    """
    datamodule: Scans = instantiate(config.data)
    start = perf_counter()
    datamodule.prepare_data()
    datamodule.setup()
    counts = {name: len(positions) for name, positions in datamodule.parts.items()}
    print(f"{title(datamodule.dataset)}: {counts['clean']} clean images, {counts['new']} new ones are left out")
    history = datamodule.pretrained.history.tolist()
    for epoch, (loss, width) in enumerate(history, 1):
        print(f"  epoch {epoch}: cross-entropy {loss:.4f}, width of the gradient {width:.4g}")
    found = accuracies(datamodule.pretrained.network, next(iter(datamodule.test_dataloader())))
    print(table(found | {"seconds": perf_counter() - start}), f"Kept in {datamodule.pretrained.path}", sep="\n")
    return found


@torch.no_grad()
def accuracies(state: Mapping[str, Tensor], batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Return the accuracy on all test images, on those of the new class and on the others.

    Args:
        state: of the network.
        batch: images, classes 0 and 1, which of them are of the new class.
    """
    images, abnormal, is_new = batch
    network = scan_network()
    network.load_state_dict(state)
    right = ((network(images.float()).squeeze(-1) > 0) == (abnormal > 0)).double()
    return {
        "accuracy": right.mean().item(),
        "accuracy, new class": right[is_new].mean().item(),
        "accuracy, other classes": right[~is_new].mean().item(),
    }


@hydra.main(config_path="../conf", config_name="pretrain", version_base="1.3")
def main(config: DictConfig) -> None:
    """Entry point of ``python -m recipes.pretrain``."""
    run_experiment(pretrain, config)


if __name__ == "__main__":
    main()
