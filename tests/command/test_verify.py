"""`agt verify`: what it accepts, and every way in which a certificate can be wrong."""

import json
import random
import re
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from agt_lightning import Acceptance, BoundedAdversary, BoundsMismatchError, ParameterBounds
from agt_lightning.certificates.document import DIGEST, canonical_digest, parsed, with_digest
from agt_lightning.certificates.findings import status
from agt_lightning.certificates.verification import StoredWeights, bounds_findings, document_findings, weights_findings
from agt_lightning.errors import AgtError
from tests.command.conftest import DATA, MODULE, train
from tests.command.modules import Classifier, Head, rows

RESULTS = ("--module", MODULE, "--data", DATA)
ALONE = ("--without-results",)


def rewritten(files, change):
    """Change a certificate, and let it have the digest of what it says then, as a forger would."""
    record = json.loads(files.certificate.read_text())
    change(record)
    files.certificate.write_text(json.dumps(with_digest(record), indent=2))


# --- what holds ------------------------------------------------------------------------------------------------------


def test_a_certificate_holds_whatever_the_size_of_the_batches(agt, trained):
    for data in (DATA, "tests.command.modules:in_batches_of_five"):
        code, printed = agt("verify", *trained.arguments("--module", MODULE, "--data", data))
        assert code == 0, printed
    for about in ("schema", "bounds", "weights", "source", "data of loader 0", "val_certified_accuracy", "acceptance"):
        assert f"holds: {about}:" in printed


def test_data_can_be_a_file_of_tensors(agt, trained, tmp_path):
    x, y = rows(seed=8)
    save_file({"0": x, "1": y}, tmp_path / "data.safetensors")
    assert agt("verify", *trained.arguments("--module", MODULE, "--data", tmp_path / "data.safetensors"))[0] == 0


def test_without_data_nothing_is_claimed_of_results(agt, trained):
    code, printed = agt("verify", *trained.arguments())
    assert code == 2
    assert "not checked: results: give `--module` and `--data`" in printed
    assert "acceptance" not in printed
    assert agt("verify", *trained.arguments(*ALONE))[0] == 0


def test_several_adversaries_have_a_file_of_bounds_each(agt, tmp_path):
    adversaries = [BoundedAdversary(n=n, epsilon=0.02) for n in (1, 2)]
    files = train(tmp_path, adversaries, domains="box", epochs=1)
    every = [tmp_path / "bounds-n_2.safetensors", tmp_path / "bounds-n_1.safetensors"]
    words = ("verify", files.certificate, "--weights", files.weights, *RESULTS, "--bounds")
    code, printed = agt(*words, *every)
    assert code == 0, printed
    assert printed.count("holds: val_certified_accuracy:") == 2
    record = json.loads(files.certificate.read_text())
    record["curve"][0]["settings"]["n"] = 2
    found = document_findings(with_digest(record))
    assert any("`curve` states other settings" in finding.message for finding in found if status([finding]) == 1)
    code, printed = agt(*words, every[0])
    assert code == 2
    assert "certificate n_1: no file of `--bounds` has its intervals" in printed


# --- a byte that is changed ------------------------------------------------------------------------------------------


def test_every_changed_byte_that_says_something_is_found(trained):
    """Keys, names, digits, signs, words and the digest itself; white space between them says nothing."""
    content, draw = trained.certificate.read_bytes(), random.Random(0)
    record, found = parsed(content), 0
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] = draw.choice([byte for byte in range(256) if byte != content[position]])
        try:
            read = parsed(bytes(changed))
            assert read == record or canonical_digest(read) != read.get(DIGEST), f"byte {position}"
            found += read != record
        except AgtError:
            found += 1
    assert found > len(content) / 6


@pytest.mark.parametrize("word", ["schema_version", '"n"', "0.02", '"run"', "batch[0]", "true", "null", DIGEST])
@pytest.mark.thinned(1)
def test_a_changed_byte_of_each_class_fails(word, agt, files):
    content = files.certificate.read_text()
    position = content.index(word) + len(word) // 2
    files.certificate.write_text(
        content[:position] + ("7" if content[position] != "7" else "8") + content[position + 1 :]
    )
    assert agt("verify", *files.arguments(*ALONE))[0] != 0


def test_every_changed_byte_of_bounds_is_found(trained, tmp_path):
    """The length of the header, its names and shapes, the space behind it, and the numbers."""
    record, content = json.loads(trained.certificate.read_text()), trained.bounds.read_bytes()
    header = int.from_bytes(content[:8], "little")
    positions = [*range(0, 16), *range(16, 8 + header, 23), 7 + header, *range(8 + header, len(content), 37)]
    for position in [*positions, len(content) - 1]:
        changed = bytearray(content)
        changed[position] ^= 1
        (tmp_path / "bounds.safetensors").write_bytes(changed)
        assert status(bounds_findings(record, tmp_path / "bounds.safetensors")[0]) == 1, f"byte {position}"


def test_every_changed_byte_of_weights_is_found(trained, tmp_path):
    record, bounds = json.loads(trained.certificate.read_text()), ParameterBounds.load(trained.bounds)
    content, state = trained.weights.read_bytes(), StoredWeights.load(trained.weights).state
    inside = [content.index(state[name].numpy().tobytes()) + 5 for name in state]
    for position in [*inside, *range(0, len(content), 97)]:
        changed = bytearray(content)
        changed[position] ^= 4
        (tmp_path / "model.ckpt").write_bytes(changed)
        try:
            weights = StoredWeights.load(tmp_path / "model.ckpt")
        except BoundsMismatchError:
            continue
        same = all(torch.equal(weights.state[name], state[name]) for name in state)
        assert same or status(weights_findings(record, weights, bounds)) == 1, f"byte {position}"
        assert position not in inside


# --- what a forger would write ---------------------------------------------------------------------------------------


def better(record):
    record["results"]["val_certified_accuracy"] = record["metrics"][0]["certified"] = 0.0
    record["results"]["val_nominal_accuracy"] = record["metrics"][0]["nominal"] = 1.0
    record["results"]["val_certified_accuracy"] = record["metrics"][0]["certified"] = 1.0
    record["acceptance"][0]["value"] = 1.0


def narrower(record):
    record["results"]["mean_width"] /= 2


def to_two(record):
    record["budget"]["n"] = 2


def fewer_in_a_class(record):
    most_certified(record)[0]["certified"] -= 1


def moved_to_another_class(record):
    """One right and certified sample of a class is said to be of another one."""
    first, *others = most_certified(record)
    for key in ("samples", "nominal", "certified"):
        first[key] -= 1
        others[0][key] += 1


def most_certified(record):
    return sorted(record["by_class"], key=lambda each: -each["certified"])


FORGED = {
    "results": (better, RESULTS, r"contradicted: val_certified_accuracy: 1.0 is claimed"),
    "width": (narrower, ALONE, r"contradicted: mean_width: it is"),
    "a result alone": (
        lambda record: record["results"].update(val_certified_accuracy=1.0),
        ALONE,
        r"`metrics` and `results` have different values",
    ),
    "certified above nominal": (
        lambda record: (
            record["results"].update(val_certified_accuracy=1.0),
            record["metrics"][0].update(certified=1.0),
            record["acceptance"][0].update(value=1.0),
        ),
        ALONE,
        r"certified accuracy 1.0 is better than the nominal one",
    ),
    "budget": (to_two, ALONE, r"`budget.n` is 2, but `adversary.n` is 1"),
    "share": (
        lambda record: record["budget"].update(share_of_the_smallest_batch=0.001),
        ALONE,
        r"share_of_the_smallest_batch` should be 0.125",
    ),
    "unit": (lambda record: record["budget"].update(edits="insert-delete"), ALONE, r"the adversary's is replace"),
    "place": (lambda record: record["budget"].update(unit="dataset"), ALONE, r"but the adversary's n is of batch"),
    "counting": (lambda record: record["budget"].update(a_replaced_sample_counts=2), ALONE, r"does not fit"),
    "steps": (lambda record: record.update(steps=7), ALONE, r"`steps` is 7, but `results_are_of.steps` is 6"),
    "phases": (
        lambda record: record["phases"][0].update(steps=[2, 6]),
        ALONE,
        r"`phases` leave out steps, or count some twice",
    ),
    "batches": (
        lambda record: record["digests"]["training_batches"].update(steps=5),
        ALONE,
        r"training_batches` do not end with step 6",
    ),
    "floats": (lambda record: record["floats"].update(level="real"), ALONE, r"`floats.level` is real"),
    "threshold": (
        lambda record: record["acceptance"][0].update(at_least=0.99),
        ALONE,
        r"`acceptance` states other values than `results`, or judges",
    ),
    "date": (
        lambda record: record["acceptance"][0].update(set_after_step=3),
        ALONE,
        r"`acceptance` states other values",
    ),
    "a result of their own": (
        lambda record: record["results"].update(test_accuracy=1.0),
        ALONE,
        r"`results` has entries that no training states: test_accuracy",
    ),
    "assumptions": (
        lambda record: record["assumptions"].pop(0),
        ALONE,
        r"`assumptions` leave out what every certificate assumes: the budget",
    ),
    "bounds": (
        lambda record: record["digests"]["bounds"].update(sha256_of_content="0" * 64),
        ALONE,
        r"other intervals than those that were certified",
    ),
    "file": (
        lambda record: record["digests"]["bounds"].update(sha256_of_file="0" * 64),
        ALONE,
        r"not the file that was certified, byte for byte",
    ),
    "parameters": (
        lambda record: record["digests"]["weights"].update(sha256_of_parameters="0" * 64),
        ALONE,
        r"the parameters are not those that were certified",
    ),
    "other tensors": (
        lambda record: record["digests"]["weights"].update(sha256_of_other_tensors="0" * 64),
        ALONE,
        r"the other tensors are not those that were certified",
    ),
    "weights of results": (
        lambda record: record["results_are_of"].update(digest_of_the_weights="0" * 32),
        ALONE,
        r"`results_are_of` names other weights",
    ),
    "classes": (fewer_in_a_class, ALONE, r"`by_class` has a certified accuracy of"),
    "classes that make up for each other": (moved_to_another_class, RESULTS, r"by_class: other counts are found for"),
    "data": (
        lambda record: record["digests"]["validation_data"][0].update(sha256_of_rows="0" * 64),
        RESULTS,
        r"data of loader 0: these 24 samples are not the 24",
    ),
    "code": (
        lambda record: record["digests"]["source"][0].update(sha256="0" * 64),
        RESULTS,
        r"the code of the module is not that of the training: tests.command.modules",
    ),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.thinned(1)
def test_what_a_forger_writes_is_found(name, agt, files):
    change, more, message = FORGED[name]
    rewritten(files, change)
    code, printed = agt("verify", *files.arguments(*more))
    assert code == 1, printed
    assert re.search(message, printed), printed
    assert "holds: content:" in printed


# --- other files -----------------------------------------------------------------------------------------------------


def test_other_weights_bounds_and_data_are_found(agt, files, tmp_path):
    torch.manual_seed(1)
    torch.save(Classifier().state_dict(), tmp_path / "other.pt")
    words = ("verify", files.certificate, "--bounds", files.bounds, "--weights")
    code, printed = agt(*words, tmp_path / "other.pt", *ALONE)
    assert code == 1
    assert "parameters lie outside of their bounds" in printed
    torch.save(Classifier(hidden=5).state_dict(), tmp_path / "larger.pt")
    code, printed = agt(*words, tmp_path / "larger.pt", *ALONE)
    assert code == 1
    assert "parameters have other shapes than their bounds" in printed
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pt")
    code, printed = agt(*words, tmp_path / "foreign.pt", *ALONE)
    assert code == 1
    assert "parameters that have bounds are missing" in printed

    bounds = ParameterBounds.load(files.bounds)
    ParameterBounds(dict(bounds), None, bounds.floats).save(tmp_path / "claimed.safetensors")
    code, printed = agt(
        "verify", files.certificate, "--bounds", tmp_path / "claimed.safetensors", "--weights", files.weights, *ALONE
    )
    assert code == 1
    assert "the bounds are about other weights" in printed

    other = ("--module", MODULE, "--data", "tests.command.modules:other_data")
    code, printed = agt("verify", *files.arguments(*other))
    assert code == 1
    assert "contradicted: data of loader 0" in printed


@pytest.mark.slow
def test_what_other_domains_certify_takes_their_states(agt, tmp_path):
    """The ball certifies more than a box around it; its radius is in the checkpoint alone."""
    files = train(tmp_path, BoundedAdversary(n=1, epsilon=0.05), module=Head, domains=("box", "ball"), epochs=20)
    assert json.loads(files.certificate.read_text())["metrics"][0]["decided_by"]["ball"] == 1.0
    data = ("--module", "tests.command.modules:Head", "--data", DATA)
    code, printed = agt("verify", *files.arguments(*data))
    assert code == 0, printed

    def without_the_ball(weights):
        code, printed = agt("verify", files.certificate, "--bounds", files.bounds, "--weights", weights, *data)
        assert code == 2, printed
        assert "is found by the box alone; the states of the other domains are not in the checkpoint" in printed

    checkpoint = torch.load(files.weights, weights_only=True)
    torch.save(checkpoint["state_dict"], tmp_path / "state.pt")
    without_the_ball(tmp_path / "state.pt")
    checkpoint["agt_bounds"]["domains"]["ball"]["radius"] *= 0.5
    torch.save(checkpoint, tmp_path / "forged.ckpt")
    without_the_ball(tmp_path / "forged.ckpt")


# --- criteria --------------------------------------------------------------------------------------------------------


def test_criteria_must_be_met_and_set_before(agt, trained, tmp_path):
    def verdict(criteria):
        files = trained.copied(tmp_path)
        rewritten(files, lambda record: record.update(acceptance=criteria))
        return agt("verify", *files.arguments(*RESULTS))

    record = json.loads(trained.certificate.read_text())
    value, width = record["results"]["val_certified_accuracy"], record["results"]["mean_width"]
    before = {"set_after_step": 0, "set_before_the_first_step": True}
    missed = {"metric": "val_certified_accuracy", "at_least": 1.5, **before, "value": value, "met": False}
    code, printed = verdict([missed])
    assert code == 1
    assert f"acceptance: val_certified_accuracy at least 1.5: not met, it is {value}" in printed
    assert printed.strip().endswith("not all of its criteria are met or were set in time.")
    late = {"metric": "mean_width", "at_most": 9.0, "set_after_step": 4, "set_before_the_first_step": False}
    code, printed = verdict([late | {"value": width, "met": True}])
    assert code == 1
    assert "was set after step 4, not before the first one" in printed
    code, printed = verdict([{"metric": "f1", "at_least": 0.5, **before, "value": None, "met": None}])
    assert code == 2
    assert "f1 at least 0.5: there is no such result" in printed


def test_a_training_states_whether_it_met_a_criterion(tmp_path):
    criteria = [Acceptance("mean_width", at_most=1e-9), Acceptance("val_certified_accuracy", at_least=0.0)]
    files = train(tmp_path, BoundedAdversary(n=1, epsilon=0.02), domains="box", epochs=1, acceptance=criteria)
    stated = json.loads(files.certificate.read_text())["acceptance"]
    assert [each["met"] for each in stated] == [False, True]
    assert all(each["set_before_the_first_step"] for each in stated)


# --- files that are no certificates ----------------------------------------------------------------------------------


def _edited(change):
    def edit(content: bytes) -> bytes:
        record = json.loads(content)
        change(record)
        return json.dumps(record).encode()

    return edit


def _set(*path_and_value):
    """Return an edit that sets one entry and leaves the digest as it is."""
    *path, value = path_and_value

    def change(record):
        inner = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return _edited(change)


def _without(*path):
    def change(record):
        inner = record
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return _edited(change)


MALFORMED = {
    "empty": (lambda content: b"", 2, "cut off or damaged at line 1, column 1"),
    "truncated": (lambda content: content[: len(content) // 2], 2, "cut off or damaged at line"),
    "last brace": (lambda content: content.rstrip()[:-1], 2, "Expecting ',' delimiter"),
    "two documents": (lambda content: content + content, 2, "Extra data"),
    "trailing comma": (lambda content: content.rstrip()[:-2] + b",}", 2, "damaged at line"),
    "single quotes": (lambda content: content.replace(b'"', b"'"), 2, "property name enclosed in double quotes"),
    "a list": (lambda content: b"[1]", 2, "Expected an object of JSON, but got list"),
    "a number": (lambda content: b"3", 2, "Expected an object of JSON, but got int"),
    "null": (lambda content: b"null", 2, "Expected an object of JSON, but got NoneType"),
    "a string": (lambda content: b'"certificate"', 2, "Expected an object of JSON, but got str"),
    "byte order mark": (lambda content: b"\xef\xbb\xbf" + content, 2, "without a byte order mark"),
    "UTF-16": (lambda content: content.decode().encode("utf-16"), 2, "UTF-16 or UTF-32"),
    "UTF-32": (lambda content: content.decode().encode("utf-32-le"), 2, "or UTF-32, or no text"),
    "Latin-1": (lambda content: content.replace(b"SGD", b"S\xe9D"), 2, "belongs to another encoding"),
    "binary": (lambda content: bytes(range(256)), 2, "or no text"),
    "NaN": (lambda content: content.replace(b'"steps": 6', b'"steps": NaN', 1), 2, "got NaN, which JSON"),
    "infinity": (lambda content: content.replace(b'"steps": 6', b'"steps": -Infinity', 1), 2, "got -Infinity, which"),
    "huge float": (lambda content: content.replace(b"0.02", b"1e999"), 2, "range of float64, but got 1e999"),
    "huge integer": (
        lambda content: content.replace(b'"n": 1', b'"n": 1' + b"0" * 5000),
        2,
        "numbers that can be read",
    ),
    "an integer of 400 digits": (
        lambda content: content.replace(b'"n": 1', b'"n": 1' + b"0" * 400),
        2,
        "integers of at most 64 bits",
    ),
    "a loader in words": (_set("bounds", "domains", "decided_validation_bounds", "x", {}), 1, "'x' does not match"),
    "a result of no loader": (_set("results", "val_nominal_accuracy/dataloader_idx_x", 1), 1, "does not match"),
    "floats in a list": (_set("phases", 0, "floats", ["run"]), 1, "`$.phases[0].floats`: ['run'] is not of type"),
    "repeated key": (
        lambda content: content.replace(b'"steps": 6', b'"steps": 6, "steps": 6', 1),
        2,
        "'steps' is there tw",
    ),
    "nested": (lambda content: b'{"a":' * 100_000, 2, "there are thousands"),
    "control character": (lambda content: content.replace(b"SGD", b"S\x01D"), 2, "Invalid control character"),
    "half a surrogate": (lambda content: content.replace(b"SGD", b"\\ud800"), 1, "its entries have the digest"),
    "no format": (_without("format"), 2, "but got None and 2"),
    "another format": (_set("format", "sbom"), 2, "but got 'sbom' and 2"),
    "version 1": (_set("format", "agt_lightning certificate 1"), 2, "of version 1, which had none"),
    "a future version": (_set("schema_version", 3), 2, "of version 3. Use a later version"),
    "a version in words": (_set("schema_version", "two"), 2, "and 'two'"),
    "no steps": (_without("steps"), 1, "'steps' is a required property"),
    "no digests": (_without("digests"), 1, "'digests' is a required property"),
    "no digest of its own": (_without(DIGEST), 1, "states None: something in it"),
    "no assumptions": (_set("assumptions", []), 1, r"`$.assumptions`"),
    "an unknown entry": (_set("approved", True), 1, "'approved' was unexpected"),
    "negative n": (_set("adversary", "n", -1), 1, "`$.adversary.n`: -1 is less than the minimum"),
    "n in words": (_set("adversary", "n", "one"), 1, "`$.adversary.n`: 'one' is not of type 'integer'"),
    "n as a float": (_set("budget", "n", 1.5), 1, "`$.budget.n`: 1.5 is not of type 'integer'"),
    "negative steps": (_set("steps", -6), 1, "`$.steps`: -6 is less than the minimum"),
    "steps as a boolean": (_set("steps", True), 1, "`$.steps`: True is not of type 'integer'"),
    "results in a list": (_set("results", [0.5]), 1, "`$.results`: [0.5] is not of type 'object'"),
    "a result in words": (_set("results", "mean_width", "small"), 1, "`$.results.mean_width`: 'small'"),
    "a share above one": (
        _set("budget", "share_of_the_smallest_batch", 1.5),
        1,
        "`$.budget.share_of_the_smallest_batch`",
    ),
    "an unknown unit": (_set("budget", "unit", "person"), 1, "`$.budget.unit`: 'person' is not one of"),
    "a short digest": (_set("digests", "weights", "sha256_of_parameters", "ab"), 1, "`$.digests.weights.sha256_of_par"),
    "a digest in capitals": (
        _set("digests", "bounds", "sha256_of_file", "A" * 64),
        1,
        "`$.digests.bounds.sha256_of_file`",
    ),
    "another schema": (_set("$schema", "urn:other"), 1, "'urn:agt-lightning:certificate:2' was expected"),
    "both limits": (_set("acceptance", 0, "at_most", 1.0), 1, "`$.acceptance[0]`"),
    "phases without steps": (_set("phases", 0, {}), 1, "`$.phases[0]`: 'steps' is a required property"),
    "a level of floats": (_set("floats", "level", "exact"), 1, "`$.floats.level`: 'exact' is not one of"),
    "no certificates": (_set("format", "agt_lightning certificates 2"), 1, "'certificates' is a required property"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.thinned(1)
def test_a_malformed_certificate_has_its_own_message(name, agt, files):
    edit, expected, message = MALFORMED[name]
    before = files.certificate.read_bytes()
    files.certificate.write_bytes(edit(before))
    assert files.certificate.read_bytes() != before
    code, printed = agt("verify", *files.arguments(*ALONE))
    assert code == expected, printed
    assert message in printed
    assert "Traceback" not in printed


def test_there_are_forty_and_their_messages_differ():
    assert len(MALFORMED) >= 40
    messages = [message for _, _, message in MALFORMED.values()]
    assert len(set(messages)) == len(messages)


def test_what_cannot_be_read_is_not_a_contradiction(agt, files, tmp_path):
    assert agt("verify")[0] == agt("approve")[0] == 2
    missing = tmp_path / "none"
    for words, message in [
        (("verify", missing, "--bounds", files.bounds, "--weights", files.weights), "there is no file"),
        (("verify", files.certificate, "--bounds", missing, "--weights", files.weights), "bounds: there is no file"),
        (("verify", files.certificate, "--bounds", files.bounds, "--weights", missing), "weights: there is no file"),
        (("verify", files.certificate, "--bounds", files.bounds, "--weights", files.bounds.parent), "no file"),
        (("verify", *files.arguments("--module", MODULE)), "give both `--module` and `--data`"),
        (("verify", *files.arguments("--module", "Classifier", "--data", DATA)), "Expected `module:Class`"),
        (("verify", *files.arguments("--module", "nowhere:C", "--data", DATA)), "No module named 'nowhere'"),
        (("verify", *files.arguments("--module", "tests.command.modules:No", "--data", DATA)), "there is no 'No'"),
        (("verify", *files.arguments("--module", "math:sqrt", "--data", DATA)), "to make a module from"),
        (("verify", *files.arguments("--module", MODULE, "--data", missing.with_suffix(".pt"))), "a file of tensors"),
    ]:
        code, printed = agt(*words)
        assert code == 2, printed
        assert message in printed


def test_weights_that_would_run_code_are_not_read(agt, files, tmp_path):
    class Payload:
        def __reduce__(self):
            return (exec, ("raise SystemExit(0)",))

    torch.save({"state_dict": {"net.0.weight": Payload()}}, tmp_path / "evil.ckpt")
    code, printed = agt(
        "verify", files.certificate, "--bounds", files.bounds, "--weights", tmp_path / "evil.ckpt", *ALONE
    )
    assert code == 2
    assert "evil.ckpt is damaged or no file of weights" in printed


def test_an_entry_of_the_archive_that_is_damaged_is_named(trained, tmp_path):
    content = bytearray(trained.weights.read_bytes())
    with zipfile.ZipFile(trained.weights) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith("data/0"))
    content[entry.header_offset + 200] ^= 1
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(BoundsMismatchError, match="data/0|damaged"):
        StoredWeights.load(tmp_path / "model.ckpt")


def test_findings_of_a_whole_document_hold(trained):
    assert status(document_findings(parsed(trained.certificate.read_bytes()))) == 0
