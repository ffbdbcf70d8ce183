"""Settings of Sphinx for the site. The pages are also readable as they are, in a folder or on a code host.

``make docs`` builds it and checks its links. The build asks no network; browsers fetch MathJax for formulas.
References to the documentation of torch, Lightning and torchmetrics become links only with ``AGT_DOCS_ONLINE=1``.
"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = "agt_lightning"
author = "The agt_lightning developers"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
root_doc = "index"
html_theme = "furo"
html_show_copyright = False
html_title = f"agt_lightning {release}"
highlight_language = "text"  # of blocks that name none

nb_execution_mode = "force"  # notebooks are kept without outputs: what the site shows was computed by its build
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # what Lightning logs, with paths of the machine

myst_heading_anchors = 4  # as code hosts make them
suppress_warnings = ["myst.header"]  # a page may begin with the second level

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
default_role = "code"  # docstrings put names between single backquotes, as in Markdown
napoleon_use_ivar = True

_ONLINE = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", None),
}
intersphinx_mapping = _ONLINE if os.environ.get("AGT_DOCS_ONLINE") == "1" else {}

OUTSIDE = {
    "CHANGELOG.md": "project/changelog",
    "CONTRIBUTING.md": "project/contributing",
    "SECURITY.md": "project/security",
    "README.md": "index",
}
"""Files above this folder, and the pages of the site that show them, or stand for them."""


def _targets_of_the_site(text: str, folder: Path) -> str:
    """Return a page whose links to files above ``docs/`` lead to the pages that show them, and all others stay."""

    def target(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        page = OUTSIDE.get(path.name) if path.parent == ROOT else None
        if page is None and path.is_relative_to(DOCS) and path.exists() and folder != DOCS:
            return f"](/{path.relative_to(DOCS).as_posix()}{match[2] or ''})"
        return f"](/{page}.md{match[2] or ''})" if page else match[0]

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", target, text)


def _read(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Show the files above this folder on their pages, and let links of all pages lead inside of the site."""
    shown = next((file for file, page in OUTSIDE.items() if page == docname and page != "index"), None)
    text = (ROOT / shown).read_text(encoding="utf-8") if shown else source[0]
    source[0] = _targets_of_the_site(text, ROOT if shown else (DOCS / docname).parent)


def setup(app: "Sphinx") -> None:
    """Register what reads the pages."""
    app.connect("source-read", _read)
