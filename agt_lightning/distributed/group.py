"""What the engine asks of the processes that train together; it knows of no other."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from agt_lightning.distributed.errors import decode_error, encode_error
from agt_lightning.distributed.fingerprint import fingerprint
from agt_lightning.distributed.message import Entry, Message
from agt_lightning.errors import UnsoundBoundError


class ProcessGroup(ABC):
    """All processes of a training, one of them this one.

    Every method is a collective: each process must call it, in the same order. What can fail in one process alone must
    therefore be inside `collective_errors`, which lets all of them fail, instead of leaving the others to wait forever.
    """

    @property
    @abstractmethod
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of processes."""

    @abstractmethod
    def gather(self, message: Message) -> tuple[Mapping[str, Entry], ...]:
        """The messages of all processes, by rank; names, shapes and types may differ between them."""

    @abstractmethod
    def sum(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the processes, the same bits in each of them; names, shapes and types must agree."""

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """Raise in every process what one raises inside; there must be no collective inside.

        Raises:
            ProcessError: if another process stopped for a reason of its own; its own error if it is one of ours.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        shared = decode_error(self._texts(encode_error(error)))
        if error is not None and not isinstance(shared, type(error)):
            raise error
        if shared is not None:
            raise shared from error

    def union(self, names: Iterable[str]) -> list[str]:
        """Names that some process has, in order of rank."""
        texts = self._texts(json.dumps(list(names)))
        return list(dict.fromkeys(name for text in texts for name in json.loads(text)))

    def any(self, flag: bool) -> bool:
        """Whether it is true in some process."""
        return bool(self.union(["yes"] if flag else []))

    def require_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise unless these tensors have the same bits in all processes; compares fingerprints.

        Args:
            tensors: the same number in each process.
            what: what they are, for the message.

        Raises:
            UnsoundBoundError: in every process.
        """
        marks = [str(entry["mark"]) for entry in self.gather({"mark": str(fingerprint(tensors))})]
        if len(set(marks)) > 1:
            others = [rank for rank, mark in enumerate(marks) if mark != marks[0]]
            raise UnsoundBoundError(
                f"Expected {what} with the same bits in all processes, but those of {others} differ from process 0. "
                "Different hardware or libraries, or a hook that acts in some processes only, can cause this."
            )

    def _texts(self, text: str) -> list[str]:
        return [str(message["text"]) for message in self.gather({"text": text})]


class SingleProcess(ProcessGroup):
    """A training in this process alone.

    Example:
        >>> SINGLE_PROCESS.size, SINGLE_PROCESS.gather({"note": "hello"}), SINGLE_PROCESS.union(["b", "a"])
        (1, ({'note': 'hello'},), ['b', 'a'])
    """

    @property
    def rank(self) -> int:
        """Zero."""
        return 0

    @property
    def size(self) -> int:
        """One."""
        return 1

    def gather(self, message: Message) -> tuple[Mapping[str, Entry], ...]:
        """The message itself."""
        return (message,)

    def sum(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves."""
        return dict(tensors)

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """Nothing to agree on."""
        yield

    def require_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Nothing to compare with."""


SINGLE_PROCESS = SingleProcess()
"""The usual case."""
