"""What a visit to a GPU is to measure, and how it says what it found."""

from collections.abc import Callable
from dataclasses import dataclass

from recipes.benchmark.report import Row

Write = Callable[[Row], None]
"""A function that keeps a row, even if the process is stopped right after."""


@dataclass(frozen=True)
class Request:
    """What is measured.

    Args:
        device: "cuda" or "cpu".
        scale: share of the samples.
        repeats: steps, and sums, of a median.
        tests: files of tests; empty for all that need a GPU.
    """

    device: str
    scale: float
    repeats: int
    tests: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The arguments of the command that make this request.

        Example:
            >>> Request("cpu", 0.1, 3).arguments
            ['--device', 'cpu', '--scale', '0.1', '--repeats', '3']
        """
        given = ["--device", self.device, "--scale", str(self.scale), "--repeats", str(self.repeats)]
        return [*given, "--tests", *self.tests] if self.tests else given

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a process needs beside its own: Triton reads who runs it when imported."""
        return {"TRITON_INTERPRET": "1"} if self.device == "cpu" else {}

    @property
    def patience(self) -> float:
        """Factor of the limits of time: nothing waits for a CPU."""
        return 1.0 if self.device == "cuda" else 10.0
