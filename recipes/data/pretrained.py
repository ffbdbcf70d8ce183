"""PilotNet after its first training, and what its convolutions make of every frame, kept in one file."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from recipes.data.tensors import load_tensors, save_tensors
from recipes.data.udacity import Drive, read_frame
from recipes.models.perceptron import perceptron
from recipes.models.pilotnet import HEAD, convolutions

_BATCH = 100
_RATE = 1e-3
_FORMAT = "agt_lightning pilotnet 1"
_FEATURES = "features"


@dataclass(frozen=True)
class Pretrained:
    """The frozen part of PilotNet, applied, and where its head starts.

    Args:
        features: of every frame of the drive, ``(frames, 1152)`` in float32.
        head: state of the dense layers by name, after the first training.
    """

    features: Tensor
    head: Mapping[str, Tensor]

    @classmethod
    def of(cls, drive: Drive, clean: int, epochs: int, seed: int, cache: Path) -> "Pretrained":
        """Read the file of exactly these frames, angles and settings in ``cache``, or train and write it.

        Args:
            drive: all frames; only the first ``clean`` are trained on, so later angles have no part in the result.
            clean: number of frames.
            epochs: over them, of Adam with rate 1e-3 on the squared error in batches of 100.
            seed: of the initial parameters and the order of frames.
            cache: folder for the file.

        Raises:
            ValueError: if a frame or the file is broken.
        """
        path = cache / f"pilotnet-{fingerprint(drive, clean, epochs, seed)[:16]}.safetensors"
        if path.is_file():
            return cls._load(path)
        frames = torch.stack([read_frame(frame) for frame in drive.frames])
        network = trained(frames[:clean], drive.angles[:clean].float(), epochs, seed)
        with torch.no_grad():
            features = torch.cat([network[0](pixels(part)) for part in frames.split(_BATCH)])
        result = cls(features, {name: value.detach() for name, value in network[1].state_dict().items()})
        save_tensors({_FEATURES: result.features, **result.head}, path)
        return result

    @classmethod
    def _load(cls, path: Path) -> "Pretrained":
        tensors = load_tensors(path)
        if _FEATURES not in tensors:
            raise ValueError(f"Expected `{_FEATURES}` in {path}, but got {', '.join(tensors)}. Delete it.")
        return cls(tensors.pop(_FEATURES), tensors)


def trained(frames: Tensor, angles: Tensor, epochs: int, seed: int) -> nn.Sequential:
    """Return convolutions and dense head after Adam on the squared error; the random state outside stays as it is.

    Args:
        frames: ``(frames, 3, 66, 200)`` of type uint8.
        angles: ``(frames,)``.
        epochs: over all frames, each in another order.
        seed: of the initial parameters and the orders.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = nn.Sequential(convolutions(), perceptron(HEAD, torch.float32))
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        for _ in trange(epochs, desc="Training the convolutions", unit="epoch", leave=False):
            for rows in torch.randperm(len(frames)).split(_BATCH):
                optimizer.zero_grad()
                F.mse_loss(network(pixels(frames[rows])).squeeze(-1), angles[rows]).backward()
                optimizer.step()
    return network


def pixels(frames: Tensor) -> Tensor:
    """Return bytes as float32 from -1 to 1."""
    return frames.float() / 127.5 - 1


def fingerprint(drive: Drive, *settings: int) -> str:
    """Return a digest of every frame's bytes, of the angles and of the settings."""
    digest = hashlib.sha256(f"{_FORMAT} {settings} {len(drive.frames)}\n".encode())
    digest.update(drive.angles.numpy().tobytes())
    for frame in drive.frames:
        digest.update(hashlib.sha256(frame.read_bytes()).digest())
    return digest.hexdigest()
