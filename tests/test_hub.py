"""A generator to the Hugging Face hub and back, against a local stand-in for the hub's HTTP API."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from huggingface_hub import ModelCard

from gan_mask import Generator, GeneratorConfig, hub
from gan_mask.errors import GanMaskError
from gan_mask.files import weights_digest

TOKEN, COMMIT = "hf_good", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: what creating, committing to and downloading from one asks of huggingface.co."""

    files: dict[str, bytes] = {}  # "user/name/path" -> content
    asked: list[str] = []

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and "validate" not in self.path:
            return self.answer(401, b'{"error": "Invalid username or password."}', Content_Type="application/json")
        repo = "/".join(self.path.split("/")[3:5])
        if self.path.endswith("/api/repos/create"):
            result = {"url": f"http://{self.headers['Host']}/user/{json.loads(body)['name']}"}
        elif self.path.endswith("/preupload/main"):
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            result = {"files": [file | kept for file in json.loads(body)["files"]]}
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[f"{repo}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            result = {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        else:  # the card's metadata is looked at
            result = {"errors": [], "warnings": []}
        self.answer(200, json.dumps(result).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        repo, _, rest = self.path.removeprefix("/").partition("/resolve/")
        content = self.files.get(f"{repo}/{rest.partition('/')[2]}")
        if content is None:
            code = "EntryNotFound" if any(name.startswith(repo) for name in self.files) else "RepoNotFound"
            return self.answer(404, b"", X_Error_Code=code)
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def measured(out: Path, generator: Generator, **changes: object) -> Path:
    """The folder of an evaluation of it, as far as the card looks at it."""

    def row(rate: float | None) -> dict[str, object]:
        cell = {"rate": rate, "low": rate and rate - 0.1, "high": rate and rate + 0.1, "probes": 20}
        names = ("face found", "dodging onnx:/home/me/nets/strong.json", "dodging dlib net of dm", "joint success")
        return {name: dict(cell) for name in names}

    report = {
        "data": "/home/me/sets/LFW 160", "split": "test", "probes": 20, "identities": 7, "far": 0.001,
        "rates": {
            title: {"0.001": {"dm": row(0.25), "generator": row(rate)}, "0.01": {"generator": row(0.99)}}
            for title, rate in (("surrogates", 0.875), ("held-out", None))
        },
        "pictures": {"faces": {"dm": [], "generator": []}}, "command": {},
        "generator_sha256": weights_digest(generator),
    }  # fmt: skip
    out.mkdir(exist_ok=True)
    (out / "report.json").write_text(json.dumps(report | changes))
    return out


USER = """
import sys
import torch
from gan_mask import load_generator
from gan_mask.errors import GanMaskError

generator = load_generator(sys.argv[1])
try:
    generator.push_to_hub("user/faces", report=sys.argv[2], token="hf_bad")
except GanMaskError as error:
    print(error)
print(generator.push_to_hub("user/faces", report=sys.argv[2], token=sys.argv[3], commit_message="First"))
again = load_generator("user/faces")
assert again.config == generator.config
assert all(torch.equal(v, again.state_dict()[k]) for k, v in generator.state_dict().items())
try:
    load_generator("user/nothing")
except GanMaskError as error:
    print(error)
"""


def test_a_generator_goes_to_the_hub_with_its_figures_and_comes_back(address: str, tmp_path: Path) -> None:
    made = Generator(GeneratorConfig(widths=(8, 16), trained_against=("dlib", "onnx:/home/me/nets/strong.json")))
    made.save_pretrained(tmp_path / "made")
    home = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USER, str(tmp_path / "made"), str(measured(tmp_path / "report", made)), TOKEN],
        env={**os.environ, **home}, cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "\n".join(Hub.asked)
    refused, commit, nowhere = done.stdout.splitlines()
    assert refused.startswith("user/faces: the hub did not take it (") and "401" in refused
    assert commit == f"{address}/user/faces/commit/{COMMIT}"
    assert nowhere.startswith("user/nothing: no such folder, and not to be had")
    assert sorted(Hub.files) == [f"user/faces/{name}" for name in ("README.md", "config.json", "model.safetensors")]
    assert "POST /api/validate-yaml" in Hub.asked  # the card's metadata was read by the hub

    # What the hub makes of the card, by its own library.
    text = Hub.files["user/faces/README.md"].decode()
    card = ModelCard(text)
    assert card.data.model_name == "faces" and card.data.library_name == "gan_mask"
    found = {result.metric_name: result for result in card.data.eval_results or []}
    assert {name: result.metric_value for name, result in found.items()} == {
        f"{name}, surrogates, FAR 0.001": 0.875 for name in ("face found", "dodging strong", "joint success")
    }
    joint = found["joint success, surrogates, FAR 0.001"]
    assert joint.metric_args == {"interval_95": [0.775, 0.975], "probes": 20}
    assert (joint.metric_type, joint.dataset_type, joint.dataset_split) == ("joint_success", "lfw-160", "test")
    assert "| dm | 25.0 [15.0, 35.0] | 25.0 [15.0, 35.0] | 25.0 [15.0, 35.0] |" in text  # the benign mask beside
    assert "/home/me" not in text and 'load_generator("USER/faces")' in text


def test_a_report_of_something_else_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    made, other = (Generator(GeneratorConfig(widths=(8, 16))) for _ in range(2))
    with torch.no_grad():
        next(other.parameters()).add_(1)

    def fails(what: str, report: Path) -> None:
        with pytest.raises(GanMaskError, match=what):
            made.push_to_hub("user/faces", report=report)

    fails("report.json: no such file", tmp_path)
    fails("not of this generator's weights", measured(tmp_path, other))
    fails("not of this generator's weights", measured(tmp_path, made, generator_sha256=None))
    fails("no generator was measured", measured(tmp_path, made, pictures={"faces": {"dm": []}}))
    fails("measured with --refine", measured(tmp_path, made, command={"refine": 10}))
    fails("measured with --strength", measured(tmp_path, made, command={"strength": 0.5}))


def test_a_saved_generator_has_a_card_too(tmp_path: Path) -> None:
    made = Generator(GeneratorConfig(widths=(8, 16)))
    made.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.eval_results is None and "push_to_hub(…, report=OUT)" in card.text
    assert str(hub.card("faces", made.config, made, measured(tmp_path, made))).count("###") == 2
