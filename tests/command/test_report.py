"""`agt report`: what the page says, that certificates cannot put markup into it, and a real browser that opens it."""

import copy
import json
import math
import shutil
import socket
import subprocess
import threading
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch

from agt_lightning import BoundedAdversary, UnboundedAdversary
from agt_lightning.certificates.document import plain, with_digest
from agt_lightning.certificates.record import certificates
from agt_lightning.command.pictures import curve, strip
from agt_lightning.command.words import adversary_in_words, budget_in_words
from tests.command.test_budget import one, sibling

VOID = {"meta", "link", "br", "img", "input"}

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """A page as a parser reads it; an element that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.attributes, self.text, self.open = Counter(), [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " * (tag in ("td", "th", "caption", "li"))

    def handle_data(self, data):
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def reported(agt, tmp_path, *words) -> Page:
    output = tmp_path / "page.html"
    code, printed = agt("report", *words, "-o", output)
    assert code == 0, printed
    return Page(output.read_text("utf-8"))


def written(folder, record) -> object:
    path = folder / "certificate.json"
    path.write_text(json.dumps(with_digest(record)))
    return path


# --- what the page says ----------------------------------------------------------------------------------------------


def test_the_page_says_what_the_certificate_states(agt, trained, tmp_path):
    record, page = one(trained), reported(agt, tmp_path, trained.certificate)
    metric = record["metrics"][0]
    for expected in (
        f"{metric['nominal']:.6g} for the trained module; {metric['certified']:.6g} certified",
        "at most 1 sample of each batch, others in every step if it likes. A batch has 8 samples",
        "so that is up to 12.5 % of a batch",
        "the largest change of a feature is at most 0.02",
        "batch[1] label: class",
        "val_certified_accuracy at least 0.1 " + str(record["acceptance"][0]["value"]) + " before the first step met",
        "All criteria are met.",
        "box decided 100 %",
        "Level of rounding, “run”",
        *(" ".join(each.replace("`", "").split()) for each in (*record["assumptions"], *record["not_certified"])),
        record["digests"]["weights"]["sha256_of_parameters"],
        record["sha256_of_content"],
        record["versions"]["torch"],
        "net.2.weight",
    ):
        assert expected in page.words, expected


def test_the_page_is_one_file_that_people_can_read_in_any_way(agt, several, tmp_path):
    page = reported(agt, tmp_path, several.certificate)
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert {link.removeprefix("#") for link in page.values("href")} <= set(ids)
    assert not page.values("src")
    assert not {"script", "img", "link", "iframe", "object", "base", "form"} & set(page.elements)
    text = (tmp_path / "page.html").read_text()
    assert not any(word in text for word in ("http:", "https:", "url(", "@import", "javascript:"))
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")  # a browser requests nothing
    assert page.elements["svg"] == len(page.values("aria-label")) - 1 + page.values("aria-hidden").count("true")
    assert page.elements["caption"] == page.elements["table"]
    assert page.elements["h1"] == page.elements["title"] - page.values("role").count("img") == 1


def test_the_page_says_what_was_checked_and_no_more(agt, files, tmp_path):
    page = reported(agt, tmp_path, files.certificate)
    assert "digests and mean width of the intervals too" in page.words
    assert "Not checked for this page: whether weights, training data, validation data and code" in page.words
    assert "verified" not in page.words.lower()
    files.bounds.unlink()
    page = reported(agt, tmp_path, files.certificate)
    assert "digests and mean width of the intervals were not checked, since they were not there" in page.words
    assert "Not shown: no file of intervals with the digest of this certificate was there" in page.words


def test_bounds_of_another_certificate_beside_one_are_not_taken(agt, files, several, tmp_path):
    shutil.copy(several.bounds, files.bounds)
    assert "no file of intervals with the digest" in reported(agt, tmp_path, files.certificate).words
    code, printed = agt("report", files.certificate, "--bounds", files.bounds, "-o", tmp_path / "other.html")
    assert code == 1
    assert "no file of `--bounds` has the digest" in printed
    assert not (tmp_path / "other.html").exists()


def test_widest_parameters_come_first(agt, trained, tmp_path):
    from agt_lightning import ParameterBounds

    bounds = ParameterBounds.load(trained.bounds)
    ordered = sorted(bounds, key=lambda name: -float(bounds[name].width.mean()))
    page = reported(agt, tmp_path, trained.certificate, "--bounds", trained.bounds)
    table = page.words[page.words.index("Mean width, drawn") :]
    assert [table.index(name) for name in ordered] == sorted(table.index(name) for name in ordered)


def test_criteria_that_are_not_met_or_late_are_told_first(agt, trained, tmp_path):
    record = one(trained)
    record["acceptance"][0] |= {"at_least": 0.9999999, "met": False}
    page = reported(agt, tmp_path, written(tmp_path, record))
    assert "Criteria not met: val_certified_accuracy at least 0.9999999." in page.words
    record["acceptance"][0] |= {"at_least": 0.0, "met": True, "set_after_step": 3, "set_before_the_first_step": False}
    page = reported(agt, tmp_path, written(tmp_path, record))
    assert "All criteria are met. Not all of them were set before the first step." in page.words
    assert "after step 3, not before the first" in page.words


def test_several_certificates_make_a_curve(agt, several, tmp_path):
    page = reported(agt, tmp_path, several.certificate)
    assert "How results change with n" in page.words
    record = json.loads(several.certificate.read_text())
    for point in record["curve"]:
        assert f"n={point['settings']['n']}: certified {point['results']['val_certified_accuracy']:.6g}" in page.text
    assert page.elements["polyline"] == 2


def test_certificates_that_differ_in_more_than_n_make_none(agt, trained, tmp_path):
    paths = []
    for n, epsilon in ((1, 0.02), (2, 0.5)):
        record = sibling(one(trained), n, 0.1)
        record["adversary"]["epsilon"] = epsilon
        (tmp_path / str(n)).mkdir()
        paths.append(written(tmp_path / str(n), record))
    page = reported(agt, tmp_path, *paths)
    assert "How results change with n" not in page.words
    assert "differ in more than n, in the adversary but for n: those are not joined" in page.words


def test_the_worst_of_several_loaders_is_named(agt, trained, tmp_path):
    record = sibling(one(trained), 1, 0.2)
    record["results"] |= {"val_nominal_accuracy/dataloader_idx_1": 0.5, "val_certified_accuracy/dataloader_idx_1": 0.1}
    second = {"loader": 1, "nominal": 0.5, "certified": 0.1, "decided_by": {}}
    record["metrics"].append(record["metrics"][0] | second)
    page = reported(agt, tmp_path, written(tmp_path, record))
    assert "The worst certified accuracy is that of validation loader 1: 0.1." in page.words


def test_classes_with_the_smallest_certified_share_come_first(agt, trained, tmp_path):
    record = one(trained)
    samples = sum(each["samples"] for each in record["by_class"])
    assert sum(each["certified"] for each in record["by_class"]) / samples == record["metrics"][0]["certified"]
    shares = {each["class"]: each["certified"] / each["samples"] for each in record["by_class"]}
    page = reported(agt, tmp_path, trained.certificate)
    table = page.words[page.words.index("Classes by their certified share") :]
    assert f"certified share {min(shares, key=shares.get)} " in table
    record["by_class"] = []
    page = reported(agt, tmp_path, written(tmp_path, record))
    assert "no results of single classes" in page.words


# --- what makes no page ----------------------------------------------------------------------------------------------


def test_what_contradicts_itself_or_cannot_be_read_makes_no_page(agt, files, tmp_path):
    output = tmp_path / "page.html"
    content = files.certificate.read_text()
    for text, expected in ((content.replace("0.02", "0.01"), 1), (content[:-9], 2), ("{}", 2)):
        files.certificate.write_text(text)
        assert agt("report", files.certificate, "-o", output)[0] == expected
    files.certificate.write_text(content)
    assert agt("report", files.certificate, "--bounds", tmp_path / "none", "-o", output)[0] == 2
    (tmp_path / "empty").mkdir()
    assert agt("report", tmp_path / "empty", "-o", output)[0] == 2
    code, printed = agt("report", files.certificate, "-o", files.certificate)
    assert code == 2
    assert "Expected another file for the page" in printed
    assert not output.exists()
    assert files.certificate.read_text() == content


# --- hostile certificates --------------------------------------------------------------------------------------------


def hostile(record: dict, payload: str) -> dict:
    """Return a certificate with a payload wherever its form leaves text free."""
    record = copy.deepcopy(record)
    record["adversary"] |= {"type": payload, payload: payload, "at": [payload]}
    record["budget"]["meaning"] = record["floats"]["meaning"] = payload
    record["floats"]["types_of_the_run"] = [payload]
    record["roles"] = [{"features": [payload], "labels": {payload: payload}, "not_moved": {payload: payload}}]
    record["optimizer"] = {"type": payload, "param_groups_at_the_end": [{payload: {payload: [payload]}}]}
    record["bounds"]["domains"]["in_use"][payload] = {payload: payload}
    record["bounds"]["domains"]["left_out"][payload] = payload
    for part in [record["bounds"]["domains"]["decided_validation_bounds"]["0"], record["metrics"][0]["decided_by"]]:
        part[payload] = 0.0
    record["digests"]["domains"][payload] = "0" * 64
    record["digests"]["source"][0]["module"] = payload
    record["earlier_results"] = [
        {"steps": 1, "digest_of_the_weights": "0" * 32, "results": {payload.replace("/", ""): 1.0}}
    ]
    for part in ("frozen_parameters", "remarks", "assumptions", "not_certified"):
        record[part].append(payload)
    record["versions"][payload] = payload
    record["made"] |= {"system": payload, "processor": payload, "started": payload, "command": [payload]}
    record["acceptance"].append(
        {"metric": payload, "at_least": 1.0, "set_after_step": 0, "set_before_the_first_step": True}
        | {"value": None, "met": None}
    )
    return record


PAYLOADS = (
    "\"'></title></style></svg><script>console.error('in')</script><img src='http://127.0.0.1:{port}/x' onerror=x>",
    "{{{{ 7 * 7 }}}}{{% for x in y %}} `</code><script>console.error(`in`)</script>",
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_certificate_puts_no_markup_into_the_page(payload, agt, trained, tmp_path):
    payload = payload.format(port=9)
    plain_page = reported(agt, tmp_path, written(tmp_path, one(trained)))
    record = hostile(one(trained), payload)
    name = "<b onclick=x>"
    both = certificates(
        [BoundedAdversary(n=1), BoundedAdversary(n=2)], {name: with_digest(record), "b": with_digest(record)}
    )
    both["curve"][0]["settings"] = both["curve"][1]["settings"] = {}
    folder = tmp_path / "<i>"
    folder.mkdir()
    for path in (written(tmp_path, record), written(folder, both)):
        page = reported(agt, tmp_path, path)
        assert set(page.elements) <= set(plain_page.elements) | {"nav", "polyline", "code"}
        assert {key for key, _ in page.attributes} <= {key for key, _ in plain_page.attributes} | {"points", "href"}
        assert page.text.count(payload) + page.text.count(payload.replace("`", "")) > 20


def test_characters_that_hide_or_turn_text_are_shown(agt, trained, tmp_path):
    page = reported(agt, tmp_path, written(tmp_path, hostile(one(trained), "a\u202eb\u200b\x07\ud800")))
    assert r"a\u202eb\u200b\x07\ud800" in page.text
    assert not any(mark in page.text for mark in "\u202e\u200b\x07")


# --- words and pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adversary", "expected"),
    [
        (BoundedAdversary(n=1, epsilon=0.5, p=2), "the Euclidean length of the change is at most 0.5"),
        (BoundedAdversary(n=1, epsilon=torch.tensor([0.1, 0.25])), "a number for each feature, between 0.1 and 0.25"),
        (BoundedAdversary(n=1, epsilon=0.5, bounds=(0, 1)), "They stay between 0 and 1."),
        (BoundedAdversary(n=1, epsilon=0.5, at="backbone"), "The outputs of the part backbone are moved"),
        (BoundedAdversary(n=1), "Features stay as they are. Labels stay as they are."),
        (BoundedAdversary(n=1, nu=1, q=0), "The label of such a sample becomes any other label."),
        (
            BoundedAdversary(n=1, nu=1, q=0, target_classes=(2,), source_classes=(0, 1)),
            "The label of such a sample, if it is one of 0, 1, becomes one of 2.",
        ),
        (BoundedAdversary(n=1, nu=0.3), "Labels of such a sample are moved: the largest change is at most 0.3"),
        (UnboundedAdversary(n=1, kappa=0.5), "replaced by any other at all. What that can do is limited by clipping"),
        (UnboundedAdversary(n=1, kappa=0.5, clip="norm", edits="insert-delete"), "Inserted samples can be any at all."),
    ],
)
def test_adversaries_are_put_into_words(adversary, expected):
    settings = plain({"type": type(adversary).__name__, **vars(adversary)})
    assert expected in " ".join(adversary_in_words(json.loads(json.dumps(settings))))


def test_an_adversary_of_another_form_is_not_interpreted():
    for settings in (
        {"type": "Own"},
        {"type": "BoundedAdversary", "epsilon": {"a": 1}},
        {"type": "UnboundedAdversary"},
    ):
        assert "which this page does not know" in adversary_in_words(settings)[0]


def test_budgets_are_put_into_words():
    budget = {"n": 3, "unit": "batch", "edits": "insert-delete", "samples_per_step": None}
    budget["share_of_the_smallest_batch"] = None
    assert "inserts and deletes together at most 3 samples of each batch" in budget_in_words(budget)
    assert "there is no share" in budget_in_words(budget)
    assert "at most 3 samples of the whole data set" in budget_in_words(budget | {"unit": "dataset"})
    assert "any samples of at most 3 sources in each batch" in budget_in_words(budget | {"unit": "sources per batch"})
    owned = budget | {"n": 1, "unit": "sources per dataset"}
    assert "any samples of at most 1 source, the same in every step" in budget_in_words(owned)


@pytest.mark.parametrize(
    "values", [(0.2, 0.9), (0.0, 0.0), (-3.0, 1e308), (5e-324, 0.0), (math.inf, 2.0), (1e-9, 3e-9)]
)
def test_marks_are_on_the_picture_whatever_the_values(values):
    drawn = strip({"certified": values[0], "nominal": values[1], "best": None})
    assert all(20 <= pixel <= 500 for pixel in (*drawn.marks.values(), *drawn.span))
    assert 2 <= len(drawn.axis.ticks) <= 12
    line = curve([(1, {"certified": values[0]}), (10**18, {"certified": values[1]})])
    assert all(60 <= x <= 540 and 20 <= y <= 240 for x, y in line.points["certified"])


def test_there_is_no_picture_without_values():
    assert strip({"certified": math.inf, "nominal": None}) is None
    assert curve([(1, {"certified": 0.5})]) is None
    assert curve([(1, {"certified": math.inf}), (2, {"certified": math.inf})]) is None


# --- a browser -------------------------------------------------------------------------------------------------------


class Listener:
    """Counts connections to a port of this machine."""

    def __init__(self) -> None:
        self.socket, self.connections = socket.create_server(("127.0.0.1", 0)), 0
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return
            self.connections += 1


@pytest.fixture
def listener():
    listening = Listener()
    yield listening
    listening.socket.close()


def opened(page, folder, *words) -> tuple[str, str]:
    """Open a page in a browser that reaches this machine alone; return the document it shows and its console."""
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *(
            "--hide-scrollbars",
            "--window-size=900,1400",
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'user'}",
        ),
        *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *words, page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode(), "\n".join(line for line in done.stderr.decode().splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome")
def test_a_browser_shows_the_page(agt, several, trained, listener, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(PAYLOADS[0].format(port=listener.port))
    assert "in" in opened(bad, tmp_path, "--dump-dom")[1]  # the errors and requests that the pages must not have
    assert listener.connections > 0
    listener.connections = 0
    payload = PAYLOADS[0].format(port=listener.port)
    for path in (several.certificate, written(tmp_path, hostile(one(trained), payload))):
        page = reported(agt, tmp_path, path)
        shown, console = opened(tmp_path / "page.html", tmp_path, "--dump-dom")
        assert console == ""
        assert Page(shown).words == page.words
        assert Page(shown).elements["rect"] == page.elements["rect"]
    assert listener.connections == 0
    picture = tmp_path / "page.png"
    opened(tmp_path / "page.html", tmp_path, f"--screenshot={picture}")
    assert picture.stat().st_size > 10_000
