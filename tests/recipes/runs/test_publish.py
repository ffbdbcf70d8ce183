"""What loggers get, on real files of Weights & Biases and TensorBoard, without network."""

import json
import struct
from time import sleep
from types import SimpleNamespace

import pytest
from hydra.types import RunMode

from recipes.dashboard import specification
from recipes.figures.strengths import draw_strengths
from recipes.runs import job as recipe_job
from recipes.runs.job import run_experiment
from recipes.runs.publish_sweep import charts, publish_sweep
from recipes.runs.results import Result
from recipes.runs.tables import gather
from recipes.runs.wandb_end import close_wandb
from recipes.train import train, train_points

SMALL = ("debug=fast", "figure.resolution=8")
BLOCK, HEADER = 1 << 15, 7


def written(folder):
    """The file of the offline run and its records, once the last one is on the disk."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(300):
        found = records(path)
        if found and found[-1][0] == "exit":
            return path, found
        sleep(0.1)
    raise AssertionError(f"{path} ends with {found[-1:]}")


def records(path):
    """Records of an offline run: a log of LevelDB's format, each record one message of W&B's protocol."""
    wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, position, parts, found = path.read_bytes(), HEADER, b"", []
    while position < len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        piece = content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        parts = piece if kind in (1, 2) else parts + piece  # full or first; middle or last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
    return [(name, getattr(record, name)) for record in found if (name := record.WhichOneof("record_type"))]


def keys(items):
    return {"/".join(item.nested_key) or item.key for item in items}


@pytest.fixture
def job(composed, tmp_path, monkeypatch):
    folder = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path / "job")), mode=RunMode.RUN)
    monkeypatch.setattr(recipe_job, "HydraConfig", SimpleNamespace(get=lambda: folder))
    (tmp_path / "job").mkdir()
    return composed


@pytest.fixture
def offline(monkeypatch):
    """Weights & Biases without network: whatever it sent would go to a port where nobody listens."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return wandb


def test_wandb_offline_from_end_to_end(job, tmp_path, offline):
    run_experiment(train, job(*SMALL, "logger=wandb"))
    assert offline.run is None, "closed after the job"
    path, found = written(tmp_path / "job")
    artifacts = {record.type: record for kind, record in found if kind == "artifact"}
    assert {entry.path for entry in artifacts["agt-certificate"].manifest.contents} == {
        "certificate.json", "bounds.safetensors", "config.yaml", "report.html"
    }  # fmt: skip
    certificate = json.loads((tmp_path / "job" / "certificate.json").read_text())
    metadata = json.loads(artifacts["agt-certificate"].metadata)
    assert metadata["digests"] == {"certificate": certificate["sha256_of_content"], **certificate["digests"]}
    history = set().union(*(keys(record.item) for kind, record in found if kind == "history"))
    assert {"agt/val_certified_accuracy", "agt/val_nominal_accuracy", "agt/mean_width", "train/loss"} <= history
    assert {name.split("/")[0] for name in history} >= {"widths", "figure", "report"}
    summary = {item.key: item.value_json for kind, record in found if kind == "summary" for item in record.update}
    assert json.loads(summary["certificate sha256"]) == certificate["sha256_of_content"]
    result = json.loads((tmp_path / "job" / "result.json").read_text())["values"]
    assert float(summary["certified accuracy"]) == result["certified accuracy"]
    (page,) = path.parent.glob("files/media/html/report*.html")
    assert page.read_text() == (tmp_path / "job" / "report.html").read_text()
    (table,) = path.parent.glob("files/media/table/widths*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["parameter", "shape", "mean width", "largest width", "mean magnitude"]
    assert [row[0] for row in content["data"]] == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert list(path.parent.glob("files/media/images/figure*.png"))


@pytest.mark.slow
def test_wandb_shows_best_nominal_and_worst_error_after_every_step(job, tmp_path, offline, household_root):
    run_experiment(train, job("experiment=household", "debug=fast", "logger=wandb", f"data.root={household_root}"))
    _, found = written(tmp_path / "job")
    history = set().union(*(keys(record.item) for kind, record in found if kind == "history"))
    assert {"steps/best MSE", "steps/nominal MSE", "steps/worst MSE"} <= history


def logged(found):
    """Keys of the history of a run, of its summary, and of its settings by dotted name."""
    history = set().union(*(keys(record.item) for kind, record in found if kind == "history"))
    summary = keys(item for kind, record in found if kind == "summary" for item in record.update)
    items = [item for kind, record in found if kind == "config" for item in record.update]
    settings = {item.key: json.loads(item.value_json) for item in items}
    return {name.split("/_type")[0] for name in history}, summary, settings


def swept(job, folder, *overrides):
    """The folder of a sweep with two points that are trained and gathered, and its configuration."""
    for n in (1, 3):
        config = job("debug=fast", *overrides, "figure=none", f"adversary.n={n}")
        config.output_dir = str(folder / f"adversary.n={n}")
        train(config)
    gather(folder)
    return job("logger=wandb", *overrides)


@pytest.mark.slow
def test_a_sweep_has_its_curve_over_n_in_a_run_of_its_own(job, tmp_path, offline):
    config = swept(job, tmp_path / "sweep")
    publish_sweep(tmp_path / "sweep", config)
    close_wandb("offline")
    path, found = written(tmp_path / "sweep")
    (table,) = path.parent.glob("files/media/table/curve/certified accuracy_table*.json")
    rows = json.loads(table.read_text())["data"]
    values = {n: json.loads((tmp_path / "sweep" / f"adversary.n={n}" / "result.json").read_text()) for n in (1, 3)}
    assert [(n, value) for n, _, value in rows] == [(n, values[n]["values"]["certified accuracy"]) for n in (1, 3)]
    (run,) = (record for kind, record in found if kind == "run")
    assert (run.job_type, run.display_name) == ("sweep", "halfmoons, all points")


def test_lines_of_a_curve_are_points_that_differ_in_n_alone():
    def point(n, rate):
        settings = {"adversary.n": n, "callbacks.certified.adversary.n": n, "optimizer.lr": rate}
        return Result("f", "c", f"{n},{rate}", settings, {"worst MSE": n * rate}, 1.0)

    (chart,) = charts([point(3, 0.1), point(1, 0.1), point(1, 0.2)]).values()
    rows = [[1, "optimizer.lr=0.1", 0.1], [3, "optimizer.lr=0.1", 3 * 0.1], [1, "optimizer.lr=0.2", 0.2]]
    assert chart.table.data == rows
    assert charts([point(1, 0.1), point(1, 0.2)]) == {}


@pytest.mark.slow
def test_all_that_the_dashboard_shows_is_logged(job, tmp_path, offline, household_root):
    """By one training of either kind, and a sweep of either kind; no panel waits for a key that never comes."""
    history, summary, settings = set(), set(), {}
    power = ("experiment=household", f"data.root={household_root}")
    for kind, overrides, picture in (("moons", (), "figure.resolution=8"), ("power", power, "debug=fast")):
        folder, sweep = tmp_path / kind, tmp_path / f"{kind}_sweep"
        config = job("debug=fast", *overrides, picture, "logger=wandb", "logger.wandb.offline=true")
        config.output_dir = str(folder)
        train(config)
        close_wandb("offline")
        config = swept(job, sweep, *overrides)
        draw_strengths(sweep)
        publish_sweep(sweep, config)
        close_wandb("offline")
        for part in (folder, sweep):
            more = logged(written(part)[1])
            history, summary, settings = history | more[0], summary | more[1], settings | more[2]
    for panel in (panel for section in specification()["sections"] for panel in section["panels"]):
        curve = panel.get("query", {}).get("summaryTable", {}).get("tableKey")
        shown = {*panel.get("y", []), *panel.get("metrics", []), *panel.get("media_keys", [])} - {"config", "summary"}
        shown |= {name for name in (panel.get("table_name"), curve) if name}
        if panel["kind"] == "ScatterPlot":
            shown = {panel["y"]["summary"]}
            top, _, rest = panel["x"]["config"].partition(".")
            assert rest in settings[top]
        assert shown, panel
        assert shown <= history | summary, panel


@pytest.mark.slow
def test_offline_of_one_job_does_not_reach_the_next(job, monkeypatch, offline):
    monkeypatch.delenv("WANDB_MODE")
    run_experiment(train, job("debug=fast", "figure=none", "logger=wandb", "logger.wandb.offline=true"))
    assert "WANDB_MODE" not in recipe_job.os.environ


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_curves_settings_and_the_figure(job, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_experiment(train, job(*SMALL, "logger=tensorboard"))
    events = EventAccumulator(str(tmp_path / "job" / "tensorboard"))
    events.Reload()
    assert {"agt/val_certified_accuracy", "agt/mean_width", "certified accuracy"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["figure"]
    assert (tmp_path / "job" / "metrics.csv").is_file()


@pytest.mark.slow
def test_several_adversaries_have_results_and_certificates_by_name(job, tmp_path, offline):
    run_experiment(train_points, job("debug=fast", "figure=none", "logger=wandb", "adversary.n=[1,2]"))
    _, found = written(tmp_path / "job")
    (artifact,) = (record for kind, record in found if kind == "artifact" and record.type == "agt-certificate")
    assert {entry.path for entry in artifact.manifest.contents} == {
        f"{name}/{file}"
        for name in ("n_1", "n_2")
        for file in ("certificate.json", "bounds.safetensors", "config.yaml")
    } | {"report.html"}
    summary = {item.key: item.value_json for kind, record in found if kind == "summary" for item in record.update}
    for n in (1, 2):
        result = json.loads((tmp_path / "job" / f"adversary.n={n}" / "result.json").read_text())["values"]
        assert float(summary[f"n_{n}/certified accuracy"]) == result["certified accuracy"]
