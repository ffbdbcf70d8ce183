"""The tests that are marked `gpu`, each as a row as soon as it has run."""

import importlib.util
from pathlib import Path

import pytest

from recipes.benchmark.cuda.request import Request, Write

_TESTS = Path(__file__).parents[3] / "tests"

_WORKERS = "6"
"""Processes that share the GPU, if `pytest-xdist` is there."""

_REASON = 300
"""Characters of a failure's reason."""


def measure(request: Request, write: Write) -> None:
    """Run the tests, and write one row for each; on a CPU they are skipped.

    Args:
        request: which files; by default all that have a test for a GPU.
        write: keeps a row.

    Raises:
        RuntimeError: if pytest does not run them.
    """
    several = ["-n", _WORKERS] if importlib.util.find_spec("xdist") and request.device == "cuda" else []
    # Other versions of packages warn of other things, and pytest of settings that it does not know yet.
    options = ["-q", "-m", "gpu and not slow", "-W", "default", *several]
    code = pytest.main([*options, *(request.tests or files())], plugins=[_Recorder(write)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"Expected tests to run, but pytest ended with {code!r}. Its messages are above.")


def files() -> tuple[str, ...]:
    """Return the files of tests of which some need a GPU."""
    return tuple(str(path) for path in sorted(_TESTS.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text())


class _Recorder:
    """A plugin of pytest that writes a row for each test, and for each file that cannot be read."""

    def __init__(self, write: Write) -> None:
        self.write = write

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._record(report.nodeid, report.outcome, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._record(report.nodeid, "failed", report)

    def _record(self, name: str, outcome: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = {"reason": report.longreprtext[-_REASON:]} if outcome == "failed" else {}
        self.write({"test": name, "outcome": outcome, "seconds": getattr(report, "duration", 0.0), **reason})
