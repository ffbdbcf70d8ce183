"""Identify training samples across epochs: the label of a sample is changed once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from agt_lightning.errors import UncertifiableError

_REMEDY = (
    "So which samples are the same is not known, and a budget for the data set has no meaning. Give each sample an id "
    "(`sample_ids`; `ids` of a `HeadRecorder`), or use the budget for each batch."
)

_EQUAL = (
    "Expected each distinct pair of features and target in one step of every epoch, always equally often, but {count} "
    "are in several steps, in some steps more often than in others, or not in every step of unknown epoch (`epoch=`): "
    "samples of equal content, which cannot be told apart, or samples that are drawn several times. "
    f"{_REMEDY}"
)

_TWO_TARGETS = (
    "Expected one target for each id, but the one at position {position} of the batch came with two. Give each sample "
    "an id of its own, and do not change targets during training."
)


class SampleTable:
    """A table of distinct rows of features, each stored once, with the sample that each belongs to.

    A sample is identified by its id, or without ids by its content, features and target together. Samples of equal
    content then count as one. That makes an adversary who changes some of them no stronger only if all of them have the
    same influence: in each epoch they must be in one step together, all of them. If not, `problem` states it.

    Content does not identify samples whose features change from epoch to epoch. If an epoch has content that the first
    epoch did not have, rows cannot be attributed to samples, and `problem` states why. A batch of an unknown epoch is
    an epoch of its own.

    Rows are compared by a cryptographic digest of 128 bits. The 64-bit `distributed.fingerprint` compares processes
    that are honest; here an adversary could construct samples of equal fingerprint, which would be taken for one.

    Attributes:
        problem: why rows cannot be attributed to samples; None if they can.

    Example:
        >>> table = SampleTable()
        >>> table.rows(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([[0.0], [1.0], [0.0]])).tolist()
        [0, 1, 0]
        >>> table.rows(torch.tensor([[3.0]]), torch.tensor([[0.0]]), epoch=1).tolist(), table.problem is None
        ([2], False)
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._uses_ids: bool | None = None
        self._first_epoch: int | None = None
        self._started = False
        self._epoch: int | None = None  # of the last batch
        self._of_epoch: set[int] = set()  # samples in the batches of that epoch so far
        self._times: dict[int, int] = {}  # in its step, by sample that no id names
        self._row_of: dict[bytes, int] = {}
        self._sample_of: dict[bytes, int] = {}
        self._label_of: list[bytes] = []
        self._samples: list[int] = []
        self._features: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._poisonable: list[bool] = []

    def rows(
        self,
        features: Tensor,
        targets: Tensor,
        *,
        ids: Tensor | None = None,
        epoch: int | None = None,
        poisonable: Tensor | None = None,
        sources: Tensor | None = None,
    ) -> Tensor:
        """Look a batch up in the table, and add its new rows and samples.

        Args:
            features: (b, d).
            targets: (b, K).
            ids: integers (b,) that identify the samples in all epochs; None to identify them by content, which must
                then hold for all batches.
            epoch: number of the epoch; None for an epoch of its own.
            poisonable: boolean (b,); None for all. A sample that is poisonable once stays so.
            sources: `content_digests` of what the features were computed from, which is the content of samples without
                ids; None if it is the features. Computed features of equal samples can differ by rounding.

        Returns:
            Rows of `features`, int64 (b,), on the device of the batch.

        Raises:
            UncertifiableError: if one id comes with two targets.
            ValueError: if only some batches have ids.
        """
        self._check_ids(ids)
        contents, labels = _digests(features), _digests(targets)
        origins = contents if sources is None else _digests(sources)
        names = [o + t for o, t in zip(origins, labels, strict=True)] if ids is None else _digests(ids[:, None])
        samples, new_samples = self._add_samples(names, labels)
        rows, new_rows = self._add_rows(samples, [n + c for n, c in zip(names, contents, strict=True)])
        for sample, allowed in zip(samples, _flags(poisonable, len(samples)), strict=True):
            self._poisonable[sample] |= allowed
        self._targets.append(targets[new_samples])
        self._features.append(features[new_rows])
        self._check_epoch(epoch, len(new_samples), ids)
        if ids is None and self.problem is None:
            self.problem = self._equal_content(epoch, samples)
        return torch.tensor(rows, dtype=torch.int64, device=features.device)

    @property
    def named(self) -> bool:
        """Whether samples are identified by ids."""
        return bool(self._uses_ids)

    @property
    def features(self) -> Tensor:
        """Distinct rows of features, (rows, d)."""
        return torch.cat(self._features)

    @property
    def targets(self) -> Tensor:
        """Label of each sample, (N, K)."""
        return torch.cat(self._targets)

    @property
    def sample_of_row(self) -> Tensor:
        """Sample of each row of features, int64 (rows,)."""
        return torch.tensor(self._samples, dtype=torch.int64, device=self._features[0].device)

    @property
    def poisonable(self) -> Tensor:
        """Samples whose label can be changed, boolean (N,)."""
        return torch.tensor(self._poisonable, dtype=torch.bool, device=self._features[0].device)

    def state(self) -> dict[str, Any]:
        """Return tensors, numbers and strings for a checkpoint, with the digests of samples and rows as bytes."""
        if not self._features:
            return {}
        self._features, self._targets = [self.features], [self.targets]  # shared with the state, not kept twice
        return {
            "features": self._features[0],
            "targets": self._targets[0],
            "samples": self.sample_of_row,
            "poisonable": self.poisonable,
            "names": _bytes_tensor(list(self._sample_of)),
            "labels": _bytes_tensor(self._label_of),
            "keys": _bytes_tensor(list(self._row_of)),
            "uses_ids": self.named,
            "first_epoch": self._first_epoch,
            "epoch": self._epoch,
            "of_epoch": torch.tensor(sorted(self._of_epoch), dtype=torch.int64),
            "times": torch.tensor(sorted(self._times.items()), dtype=torch.int64).reshape(-1, 2),
            "problem": self.problem or "",
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> SampleTable:
        """Return the table of a checkpoint.

        Example:
            >>> table = SampleTable()
            >>> batch = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
            >>> rows = table.rows(*batch)
            >>> SampleTable.restored(table.state()).rows(*batch).tolist() == rows.tolist()
            True
        """
        table = cls()
        if not state:
            return table
        table._features, table._targets = [state["features"]], [state["targets"]]
        table._samples, table._poisonable = state["samples"].tolist(), state["poisonable"].tolist()
        table._sample_of = {name: number for number, name in enumerate(_bytes_list(state["names"]))}
        table._row_of = {key: number for number, key in enumerate(_bytes_list(state["keys"]))}
        table._label_of = _bytes_list(state["labels"])
        first = state["first_epoch"]
        table._uses_ids, table._first_epoch = bool(state["uses_ids"]), None if first is None else int(first)
        table._started, table.problem = True, state["problem"] or None
        table._epoch, table._of_epoch = (
            state.get("epoch"),
            set(state["of_epoch"].tolist() if "of_epoch" in state else ()),
        )
        table._times = dict(state["times"].tolist() if "times" in state else ())
        if "times" not in state and not table.named and table.problem is None:
            table.problem = f"The checkpoint does not say how often each step holds samples of equal content. {_REMEDY}"
        return table

    def _add_samples(self, names: list[bytes], labels: list[bytes]) -> tuple[list[int], list[int]]:
        """Return the sample at each position, and the positions of new samples."""
        samples: list[int] = []
        new: list[int] = []
        for position, (name, label) in enumerate(zip(names, labels, strict=True)):
            sample = self._sample_of.setdefault(name, len(self._label_of))
            if sample == len(self._label_of):
                self._label_of.append(label)
                self._poisonable.append(False)
                new.append(position)
            if self._label_of[sample] != label:
                raise UncertifiableError([_TWO_TARGETS.format(position=position)])
            samples.append(sample)
        return samples, new

    def _add_rows(self, samples: list[int], keys: list[bytes]) -> tuple[list[int], list[int]]:
        """Return the row of features at each position, and the positions of new rows."""
        rows: list[int] = []
        new: list[int] = []
        for position, (sample, key) in enumerate(zip(samples, keys, strict=True)):
            row = self._row_of.setdefault(key, len(self._samples))
            if row == len(self._samples):
                self._samples.append(sample)
                new.append(position)
            rows.append(row)
        return rows, new

    def _check_ids(self, ids: Tensor | None) -> None:
        uses_ids = ids is not None
        if self._uses_ids is None:
            self._uses_ids = uses_ids
        if self._uses_ids != uses_ids:
            raise ValueError("Expected `ids` with every batch or with none, but got both. Give them with every batch.")

    def _equal_content(self, epoch: int | None, samples: list[int]) -> str | None:
        """Return why samples of equal content have influences of their own; None if they have none.

        Without the number of an epoch, each step must hold all samples.
        """
        times = Counter(samples)
        earlier = self._of_epoch if epoch is not None and epoch == self._epoch else set()
        apart = [sample for sample, count in times.items() if self._times.setdefault(sample, count) != count]
        apart += times.keys() & earlier
        if epoch is None:
            apart += self._times.keys() - times.keys()
        self._epoch, self._of_epoch = epoch, earlier | times.keys()
        return _EQUAL.format(count=len(set(apart))) if apart else None

    def _check_epoch(self, epoch: int | None, new_samples: int, ids: Tensor | None) -> None:
        """Note a problem if a batch after the first epoch has new samples that no ids name."""
        if not self._started:
            self._started, self._first_epoch = True, epoch
            return
        in_first = epoch is not None and epoch == self._first_epoch
        if ids is None and not in_first and new_samples and self.problem is None:
            self.problem = _new_content(self._first_epoch, epoch, new_samples)


def _new_content(first: int | None, epoch: int | None, count: int) -> str:
    """Return why content that the first epoch did not have leaves samples unknown, and the ways out."""
    if first is None or epoch is None:
        return (
            f"Expected to know which samples are the same, but a step of an unknown epoch, or after one, brought "
            f"{count} samples with features or targets not seen before. An epoch is unknown without `epoch=`, and with "
            "an iterable data set, samplers or a `collate_fn` of the user's own, which may draw a sample repeatedly. "
            f"If each pass takes every sample once and unchanged, give each step its number (`epoch=`). {_REMEDY}"
        )
    return (
        f"Expected every epoch to hold the samples of epoch {first}, but epoch {epoch} brought {count} samples with "
        "features or targets not seen there: random augmentation, `drop_last` with shuffling, a first epoch that was "
        f"interrupted, or more data. {_REMEDY}"
    )


def _flags(mask: Tensor | None, count: int) -> list[bool]:
    return [True] * count if mask is None else [bool(flag) for flag in mask.tolist()]


def _digests(rows: Tensor) -> list[bytes]:
    """Return a digest of each row, equal for equal values; 1e6 rows collide with probability below 1e-25."""
    values = (rows + 0).detach().cpu().contiguous().numpy()  # -0.0 + 0 is 0.0
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in values]


def content_digests(entries: Sequence[Tensor]) -> Tensor:
    """Return a digest of each sample's content, uint8 (b, 16).

    Args:
        entries: of a batch, each with samples along axis 0.

    Example:
        >>> first, second, third = content_digests([torch.tensor([1.0, 1.0, 2.0]), torch.tensor([[0], [0], [0]])])
        >>> torch.equal(first, second), torch.equal(first, third)
        (True, False)
    """
    rows = [_digests(_readable(entry).reshape(len(entry), -1)) for entry in entries]
    return _bytes_tensor([blake2b(b"".join(parts), digest_size=16).digest() for parts in zip(*rows, strict=True)])


def _readable(entry: Tensor) -> Tensor:
    """Return the same values in a type that NumPy has."""
    return entry.float() if entry.dtype == torch.bfloat16 else entry


def _bytes_tensor(digests: Sequence[bytes]) -> Tensor:
    """Return digests of one length as rows of bytes, (digests, length)."""
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).reshape(len(digests), -1)


def _bytes_list(digests: Tensor) -> list[bytes]:
    return [row.tobytes() for row in digests.cpu().numpy()]
