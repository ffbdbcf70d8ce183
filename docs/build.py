"""Build the site of these pages, and check it without a network.

Warnings are errors, every link inside of the site has an end, and every public name is in the reference.

python -m docs.build outputs/site
"""

import pkgutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import agt_lightning

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


def public_names() -> set[str]:
    """Return the full names that packages have in ``__all__``, those up to two levels below the root."""
    packages = [p.name for p in pkgutil.walk_packages(agt_lightning.__path__, "agt_lightning.") if p.ispkg]
    return {
        f"{package}.{name}"
        for package in packages
        if package.count(".") <= 2
        for name in getattr(import_module(package), "__all__", ())
    }


def missing_names(folder: Path) -> Iterator[str]:
    """Yield each public name that the inventory of a built site lacks; of the root, each name that no package has."""
    content = (folder / "objects.inv").read_bytes().split(b"\n", 4)[4]
    listed = {line.split(" ", 1)[0] for line in zlib.decompress(content).decode().splitlines()}
    last = {name.rpartition(".")[2] for name in listed}
    yield from sorted(f"no entry in the reference for {name}" for name in public_names() - listed)
    yield from sorted(f"no entry in the reference for {name}" for name in set(agt_lightning.__all__) - last)


def main(folder: Path) -> int:
    """Build, check, print what is wrong, and return the exit status."""
    built = build(folder)
    print(built.stdout + built.stderr, end="")
    wrong = [*broken_links(folder), *missing_names(folder)] if built.returncode == 0 else []
    print(*wrong, sep="\n", end="\n" * bool(wrong))
    return built.returncode or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
