import hashlib
import io
from http.client import IncompleteRead
from urllib.error import URLError

import pytest

from recipes.data.download import download

URL = "https://data.example/file.zip"
CONTENT = b"content" * 1000


class Response(io.BytesIO):
    def __init__(self, content, length=None):
        super().__init__(content)
        self.headers = {} if length is None else {"Content-Length": str(length)}


def serve(monkeypatch, answer):
    def urlopen(url, timeout):
        assert url == URL
        assert timeout > 0
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("recipes.data.download.urlopen", urlopen)


def accept(path):
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [None, len(CONTENT)])
def test_file_appears_complete_with_progress(tmp_path, monkeypatch, capsys, length):
    serve(monkeypatch, Response(CONTENT, length))
    target = tmp_path / "new" / "file.zip"
    download(URL, target, accept, sha256=hashlib.sha256(CONTENT).hexdigest().upper())
    assert [path.name for path in target.parent.iterdir()] == ["file.zip"]
    assert target.read_bytes() == CONTENT
    assert "Downloading new" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        URLError("no route to host"),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        IncompleteRead(b""),
        Response(CONTENT, len(CONTENT) + 1),
    ],
    ids=["no network", "timeout", "reset", "incomplete", "short"],
)
def test_broken_connection_names_the_address_and_the_folder(tmp_path, monkeypatch, answer):
    serve(monkeypatch, answer)
    with pytest.raises(ConnectionError) as caught:
        download(URL, tmp_path / "file.zip", accept)
    message = str(caught.value)
    assert URL in message
    assert str(tmp_path) in message
    assert "AGT_DATA_ROOT" in message
    assert list(tmp_path.iterdir()) == []


def test_wrong_checksum_leaves_nothing(tmp_path, monkeypatch):
    serve(monkeypatch, Response(CONTENT))
    with pytest.raises(ValueError, match=r"Expected sha256 00ff for https://data.example/file.zip, but got "):
        download(URL, tmp_path / "file.zip", accept, sha256="00ff")
    assert list(tmp_path.iterdir()) == []


def test_refused_file_leaves_nothing(tmp_path, monkeypatch):
    serve(monkeypatch, Response(CONTENT))

    def refuse(path):
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one It was not kept.*AGT_DATA_ROOT") as caught:
        download(URL, tmp_path / "file.zip", refuse)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
