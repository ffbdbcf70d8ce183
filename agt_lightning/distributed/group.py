"""The group of processes that train one model, each on its own part of every batch."""

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
    """A group of processes, of which this is one.

    Every method is a collective: each process must call it, in the same order. Code that can fail in one process alone
    therefore runs inside `collective_errors`, which lets all of them fail instead of leaving the others to wait.
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
        """Return the messages of all processes, by rank; names, shapes and types may differ between them."""

    @abstractmethod
    def sum(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over the processes, the same bits in each of them; names, shapes and types must agree."""

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """If the body raises in any process, raise in all of them. The body must not call a collective.

        Raises:
            ProcessError: if another process failed with an error that is not this package's; else that error itself.
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
        """Return the names that any process gives, in order of rank."""
        texts = self._texts(json.dumps(list(names)))
        return list(dict.fromkeys(name for text in texts for name in json.loads(text)))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true in any process."""
        return bool(self.union(["yes"] if flag else []))

    def require_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise unless these tensors have the same bits in all processes, by comparing fingerprints.

        Args:
            tensors: the same number in each process.
            what: what they are, for the message.

        Raises:
            UnsoundBoundError: in every process.
        """
        received = self.gather({"fingerprint": str(fingerprint(tensors))})
        fingerprints = [str(message["fingerprint"]) for message in received]
        if len(set(fingerprints)) > 1:
            others = [rank for rank, each in enumerate(fingerprints) if each != fingerprints[0]]
            raise UnsoundBoundError(
                f"Expected {what} with the same bits in all processes, but those of {others} differ from process 0. "
                "Different hardware or libraries, or a hook that acts in some processes only, can cause this."
            )

    def _texts(self, text: str) -> list[str]:
        return [str(message["text"]) for message in self.gather({"text": text})]


class SingleProcess(ProcessGroup):
    """A training in a single process.

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
        """Return the message itself."""
        return (message,)

    def sum(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors themselves."""
        return dict(tensors)

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """Let errors pass: there is nobody to agree with."""
        yield

    def require_same(self, tensors: Iterable[Tensor], what: str) -> None:
        """Do nothing: there is nobody to compare with."""


SINGLE_PROCESS = SingleProcess()
"""The usual case."""
