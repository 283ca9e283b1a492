"""`--protocol amtgan`: rates at the thresholds of other papers, beside those at ours."""

import csv
import json

import numpy as np
import pytest
from conftest import status
from fakes import FakeEmbedder

from gan_mask import evaluation, pretrained
from gan_mask.errors import GanMaskError
from gan_mask.pretrained.sidecar import read_sidecar

AMTGAN = {  # as AMT-GAN's code has them: FAR 0.1, 0.01, 0.001
    "IR152": (0.094632, 0.166788, 0.227922), "IRSE50": (0.144840, 0.241045, 0.312703),
    "FaceNet": (0.256587, 0.409131, 0.591191), "MobileFace": (0.183635, 0.301611, 0.380878),
}  # fmt: skip


class Known(FakeEmbedder):
    published = {"amtgan": "FaceNet"}


def options(prepared, out) -> list[str]:
    usual = ["--data", str(prepared), "--out", str(out), "--methods", "dm", "--templates", "face-001", "--probes", "4"]
    return [*usual, "--detectors", "fake", "--far", "0.1", "--fars", "0.05"]


def test_rates_at_both_thresholds_and_a_warning_where_they_differ(fakes, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(pretrained.EMBEDDERS, "known", lambda name: Known())
    names = ["--surrogates", "known", "fake", "--protocol", "amtgan"]
    evaluation.main([*options(prepared, tmp_path), *names])
    report = json.loads((tmp_path / "report.json").read_text())
    part = report["published"]
    assert part["networks"] == {"known": "FaceNet"}
    with open(tmp_path / "probes.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == "known"]
    clean, worn = ([float(r["similarity"]) for r in rows if r["method"] == method] for method in ("none", "dm"))
    for far, cosine in zip(("0.1", "0.01", "0.001"), AMTGAN["FaceNet"], strict=True):
        assert part["thresholds"]["known"][far]["published"] == cosine
        at = part["rates"]["surrogates"][far]
        dodged = [w < cosine for c, w in zip(clean, worn, strict=True) if c >= cosine]
        assert at["published"]["dm"]["dodging known"]["rate"] == pytest.approx(np.mean(dodged))
        assert at["published"]["dm"]["dodging known"]["probes"] == len(dodged)
        assert "dodging fake" not in at["published"]["dm"]
        # 594 clean pairs are enough for our own threshold at FAR 0.1 only.
        assert ("ours" in at) == (far == "0.1")
    ours = part["rates"]["surrogates"]["0.1"]["ours"]["dm"]["dodging known"]
    assert ours == report["rates"]["surrogates"]["0.1"]["dm"]["dodging known"]
    # This little network finds all faces alike, so that FaceNet's thresholds accept too many strangers.
    assert part["thresholds"]["known"]["0.1"]["far_here"] > 0.2
    notes = " ".join(report["notes"])
    assert "known: the threshold published for FAR 0.1, 0.2566, accepts" in notes and "ours is 0." in notes
    assert "fake: none of IR152, IRSE50, FaceNet, MobileFace" in notes
    printed = capsys.readouterr().out
    assert "amtgan's thresholds for FAR 0.01 and ours" in printed and "dodging known (published)" in printed
    page = (tmp_path / "index.html").read_text()
    assert "Published thresholds" in page and "0.4091" in page and "dodging known (ours)" in page


def test_without_any_of_its_networks_the_protocol_ends_before_the_work(fakes, prepared, tmp_path, capsys):
    usual = [*options(prepared, tmp_path / "out"), "--surrogates", "fake"]
    assert status(evaluation.main, [*usual, "--protocol", "amtgan"]) == 2
    message = capsys.readouterr().err
    assert "none of fake says that it is one of these" in message and '"published": {"amtgan": ' in message
    assert status(evaluation.main, [*usual, "--protocol", "diffam"]) == 2
    assert "unknown 'diffam'; known: amtgan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sidecar_says_which_network_it_is(tmp_path):
    sidecar = {"kind": "embedder", "file": "a.onnx", "size": [112, 112], "mean": [0, 0, 0], "std": [1, 1, 1]}
    sidecar |= {"channel_order": "RGB", "template": [[0, 0]] * 5}
    path = tmp_path / "ir152.json"
    for name in AMTGAN:
        path.write_text(json.dumps(sidecar | {"published": {"amtgan": name}}))
        assert read_sidecar(path, "embedder")["published"] == {"amtgan": name}
    for wrong in ({"amtgan": "ir152"}, {"amtgan": 1}, {"papers": "IR152"}, "IR152"):
        path.write_text(json.dumps(sidecar | {"published": wrong}))
        with pytest.raises(GanMaskError, match="'published'"):
            read_sidecar(path, "embedder")
