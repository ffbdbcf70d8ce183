"""Build the site of these pages, and check it without a network: warnings are errors, and every inner link has an end.

python -m docs.build outputs/site
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).parent


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site anew in a folder; what Sphinx says is in the result, whose exit status is not zero if it warns."""
    with tempfile.TemporaryDirectory() as parsed:
        words = ["-b", "html", "-W", "--keep-going", "-q", "-d", parsed, str(DOCS), str(folder)]
        return subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False)


@dataclass
class _Page(HTMLParser):
    """Links and anchors of one page."""

    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            if value and name in ("id", "name"):
                self.anchors.add(value)


def broken_links(folder: Path) -> Iterator[str]:
    """Yield each link of a built site that leads to no file or no anchor; links into the network are not followed."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        pages[path.resolve()] = page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{path.relative_to(folder.resolve())}: no file for {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(folder.resolve())}: no anchor for {link}"


def main(folder: Path) -> int:
    """Build, check, print what is wrong, and return the exit status."""
    built = build(folder)
    print(built.stdout + built.stderr, end="")
    broken = list(broken_links(folder)) if built.returncode == 0 else []
    print(*broken, sep="\n", end="\n" * bool(broken))
    return built.returncode or int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
