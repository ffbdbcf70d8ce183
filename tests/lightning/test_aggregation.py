import json

from agt_lightning import BoundedAdversary, CertifiedTraining
from agt_lightning.lightning import callback


def test_what_was_picked_stands_in_log_and_certificate(tmp_path, monkeypatch, fit, loader, regressor):
    said = []
    monkeypatch.setattr(callback, "rank_zero_info", said.append)
    adversary = BoundedAdversary(n=2, epsilon=0.01)
    certified = CertifiedTraining(adversary, aggregation="auto", domains=("box",), dirpath=tmp_path)
    fit(regressor(inputs=100, hidden=100), loader(size=40, batch_size=20, inputs=100), certified)
    assert [remark for remark in said if "aggregates" in remark] == [
        "`CertifiedTraining` aggregates with 'auto'. Exact: net.0.bias, net.2.bias, net.2.weight; moment: net.0.weight."
    ]
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert record["bounds"]["aggregation"] == "auto"
    assert record["bounds"]["domains"]["in_use"]["box"]["aggregation"] == {
        "net.0.weight": "moment",
        "net.0.bias": "exact",
        "net.2.weight": "exact",
        "net.2.bias": "exact",
    }


def test_nothing_is_said_where_all_sums_are_exact(monkeypatch, fit, loader, regressor):
    said = []
    monkeypatch.setattr(callback, "rank_zero_info", said.append)
    fit(regressor(), loader(), CertifiedTraining(BoundedAdversary(n=2, epsilon=0.01), domains=("box",)))
    assert not [remark for remark in said if "aggregates" in remark]
