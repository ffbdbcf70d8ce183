"""Oldest versions come from the project file, and two builds of one commit have the same bytes."""

import shutil
import subprocess
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import agt_lightning
from release import distribution
from release.floors import floors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_each_dependency_has_an_oldest_version(project):
    pins = list(floors())
    assert len(pins) == len(project["dependencies"])
    assert "torch==2.6" in pins
    assert "lightning==2.6.4" in pins


def test_a_dependency_without_an_oldest_version_is_refused(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\ndependencies = ["torch<3"]\n', encoding="utf-8")
    with pytest.raises(ValueError, match="Expected one `>=` for each dependency, but got `torch<3`"):
        list(floors(path))


def test_no_entry_point_attaches_the_callback_to_every_trainer(project):
    assert set(project) & {"entry-points", "gui-scripts"} == set()
    assert set(project["scripts"]) == {"agt"}


def test_versions_agree(project):
    assert project["version"] == agt_lightning.__version__
    assert f"## [{project['version'].partition('.dev')[0]}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit, of a tenth of the real size."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "agt_lightning" / "certificates", root / "agt_lightning" / "certificates")
    (root / "agt_lightning" / "py.typed").touch()
    author = ("-c", "user.name=nobody", "-c", "user.email=nobody")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "Start")):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


@pytest.mark.skipif(not find_spec("hatchling") or not shutil.which("git"), reason="needs hatchling and git")
def test_builds_of_one_commit_have_the_same_bytes_and_hold_only_what_was_committed(repository, tmp_path):
    (repository / "agt_lightning" / "not_committed.py").touch()
    first = distribution.build(tmp_path / "first", repository)
    assert first == distribution.build(tmp_path / "second", repository)
    (wheel,) = (tmp_path / "first" / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"agt_lightning/py.typed", "agt_lightning/certificates/certificate-2.schema.json"} <= set(names)
    assert "agt_lightning/not_committed.py" not in names
