"""Which certificates are about the same question but for n, so that they are points of one curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
"""A certificate of one adversary, of the form of the schema."""

ALIKE: Mapping[str, Callable[[Record], object]] = {
    "the adversary but for n": lambda record: {key: item for key, item in record["adversary"].items() if key != "n"},
    "the unit of n": lambda record: [record["budget"][key] for key in ("unit", "edits", "a_replaced_sample_counts")],
    "the float level": lambda record: record["floats"]["level"],
    "the optimizer": lambda record: record["optimizer"],
    "the number of steps": lambda record: record["steps"],
    "the training batches": lambda record: record["digests"]["training_batches"],
    "the validation data": lambda record: record["digests"]["validation_data"],
    "the source": lambda record: record["digests"]["source"],
    "the hyperparameters": lambda record: record["digests"]["hyperparameters"],
}
"""What must be the same, in words. Weights and domains may differ: each certificate holds for its own."""


def differences(records: Sequence[Record]) -> list[str]:
    """Return in words in what certificates differ besides n, of `ALIKE`.

    Example:
        >>> differences([])
        []
    """
    return [words for words, part in ALIKE.items() if any(part(record) != part(records[0]) for record in records[1:])]


def families(records: Sequence[Record]) -> list[list[int]]:
    """Return the positions of certificates that differ in n alone, together; families and members in order.

    Args:
        records: of one adversary each.
    """
    found: list[list[int]] = []
    for position, record in enumerate(records):
        home = next((family for family in found if not differences([records[family[0]], record])), None)
        if home is None:
            found.append([position])
        else:
            home.append(position)
    return found
