"""Code of the pages, run as a reader would: files are saved, blocks follow each other, commands are called."""

import re
import runpy
import shlex
from pathlib import Path

from agt_lightning.command.main import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page, language="python"):
    """Return the blocks of a page in a language; a page is a path below the root."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run_script(path, code, names=None):
    """Write a script, run it with some names known, and return its names."""
    path.write_text(code, encoding="utf-8")
    return runpy.run_path(str(path), init_globals=names, run_name="__main__")


def follow(page, folder, names=None):
    """Do in a folder what a page says: save blocks that begin with a file's name, run the others as one script."""
    script = []
    for block in blocks(page):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (folder / file[1]).write_text(block, encoding="utf-8")
        else:
            script.append(block)
    return run_script(folder / f"{Path(page).stem}.py", "\n".join(script), names)


def shown(page):
    """Return what a page says that its blocks print."""
    return "".join(blocks(page, "text"))


def commands(page):
    """Yield the words of each command of a page, and its exit status here."""
    for line in "".join(blocks(page, "sh")).splitlines():
        program, *words = shlex.split(line)
        assert program == "agt"
        yield line, main(words)


def without_numbers(text):
    """Words of each line; digits, and the line numbers of joined blocks, are left out: processors round otherwise."""
    return [re.sub(r"[\d.e+-]+", "#", line).split() for line in text.splitlines()]
