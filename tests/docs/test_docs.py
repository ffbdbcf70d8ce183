"""The documents say what the code does: their code runs, and the table of operations is the table of rules."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(code):
    """In a process of its own, since rules that are registered stay registered."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_table_of_operations_is_up_to_date():
    printed = run_python("from docs.support_table import document; import sys; sys.stdout.write(document())")
    assert printed.returncode == 0, printed.stderr
    committed = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    assert printed.stdout == committed, "Expected the table of the rules; run `python docs/support_table.py`."


def test_example_of_a_rule_obeys_the_laws():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    result = run_python("\n".join(blocks))
    assert result.returncode == 0, result.stderr


def test_example_with_a_wrong_turn_breaks_the_laws():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), re.DOTALL)
    result = run_python("\n".join(blocks).replace("[(0.0, 1.0)]", "[(0.0, 0.5)]"))
    assert "leaves its bounds" in result.stderr
