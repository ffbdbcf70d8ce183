import hashlib
import io
from email.message import Message
from urllib.error import URLError

import pytest

from recipes.data.download import download

URL = "https://data.example/file.zip"
CONTENT = b"content" * 1000


class Response(io.BytesIO):
    def info(self):
        return Message()


def serve(monkeypatch, answer):
    def urlopen(request):
        assert request.full_url == URL
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("torch.hub.urlopen", urlopen)


def accept(path):
    assert path.read_bytes() == CONTENT


def test_file_appears_complete_with_progress(tmp_path, monkeypatch, capsys):
    serve(monkeypatch, Response(CONTENT))
    target = tmp_path / "new" / "file.zip"
    download(URL, target, accept, sha256=hashlib.sha256(CONTENT).hexdigest().upper())
    assert [path.name for path in target.parent.iterdir()] == ["file.zip"]
    assert target.read_bytes() == CONTENT
    assert "B/s" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [URLError("no route to host"), TimeoutError("timed out"), ConnectionResetError()])
def test_broken_connection_names_the_address_and_the_folder(tmp_path, monkeypatch, answer):
    serve(monkeypatch, answer)
    with pytest.raises(ConnectionError) as caught:
        download(URL, tmp_path / "file.zip", accept)
    message = str(caught.value)
    assert URL in message
    assert str(tmp_path) in message
    assert "AGT_DATA_ROOT" in message
    assert list(tmp_path.iterdir()) == []


def refuse(path):
    raise ValueError("not this one")


@pytest.mark.parametrize(
    ("verify", "sha256", "message"),
    [(accept, "00ff", "invalid hash value .*00ff"), (refuse, None, "not this one.*It was not kept")],
)
def test_another_file_leaves_nothing(tmp_path, monkeypatch, verify, sha256, message):
    serve(monkeypatch, Response(CONTENT))
    with pytest.raises(ValueError, match=f"Refused {URL}: {message}.*AGT_DATA_ROOT") as caught:
        download(URL, tmp_path / "file.zip", verify, sha256=sha256)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
