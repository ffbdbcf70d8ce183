"""The card and the versions that everything else is measured with."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from recipes.benchmark.cuda.request import Request, Write

_PACKAGES = ("torch", "triton", "numba", "lightning", "torchmetrics", "numpy", "pytest")


def measure(request: Request, write: Write) -> None:
    """Write one row."""
    versions = {name: _version(name) for name in _PACKAGES}
    libraries = {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    write({"card": card(request.device), "python": platform.python_version(), **versions, **libraries})


def card(device: str) -> str:
    """Return the name of the GPU, or that there is none."""
    return torch.cuda.get_device_name() if device == "cuda" else f"no GPU, {platform.machine()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
