"""Pictures of other tools in the evaluation: `--save-probes` and `--methods folder:NAME=DIR`."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import embedded_photo, status
from PIL import Image

from gan_mask import evaluation
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import folders, page, run
from gan_mask.faces import align, read_image
from gan_mask.landmarks import frame

USUAL = [
    "--embedders",
    "fake",
    "--detectors",
    "fake",
    "--stored-thresholds",
    "--templates",
    "face-001",
    "--probes",
    "4",
]


@pytest.fixture
def usual(fakes, prepared, tmp_path) -> list[str]:
    return ["--data", str(prepared), "--out", str(tmp_path / "report"), *USUAL]


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """The methods whose units were done."""
    real, calls = run.do, []
    monkeypatch.setattr(run, "do", lambda e, method, rows: (calls.append(method), real(e, method, rows)))
    return calls


def attacked(out: Path, dm: Path, factor: int = 1, ending: str = "png") -> list[str]:
    """DM's files under the probes' names, as a tool that made them would have written them."""
    with open(dm.parent.parent / "probes.csv", newline="") as file:
        probes = list(dict.fromkeys(row["probe"] for row in csv.DictReader(file)))
    for probe, source in zip(probes, sorted(dm.iterdir()), strict=True):
        picture = Image.open(source)
        path = out / f"{probe}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST).save(
            path, **({"lossless": True} if ending == "webp" else {})
        )
    return probes


def test_pictures_of_a_folder_are_measured_as_our_own_are(usual, tmp_path, done, capsys):
    """What DM wrote, handed in again as another tool's: the same figures, to the last digit."""
    report = tmp_path / "report"
    evaluation.main([*usual, "--methods", "dm", "--save-probes", str(tmp_path / "probes")])
    probes = attacked(tmp_path / "tool", report / "faces/dm", ending="webp")
    attacked(tmp_path / "large", report / "faces/dm", factor=4)
    for probe, path in zip(probes, sorted((report / "faces/none").iterdir()), strict=True):
        assert np.array_equal(read_image(tmp_path / "probes" / f"{probe}.png"), read_image(path))
    Image.new("RGB", (8, 8)).save(tmp_path / "tool" / "nobody.jpg")
    assert done == ["none", "dm"]
    options = [*usual, "--methods", "dm", f"folder:tool={tmp_path}/tool", f"folder:large={tmp_path}/large"]
    evaluation.main([*options, "--require", "tool/face_found>=1"])
    assert done == ["none", "dm", "tool", "large"]

    found = json.loads((report / "report.json").read_text())
    rates = found["rates"]["surrogates"]["0.001"]
    assert {k: v for k, v in rates["tool"].items() if " net of " not in k} == rates["dm"]
    assert found["looks"]["tool"] == found["looks"]["dm"]
    assert rates["large"]["face found"]["rate"] == 1 and "dodging fake net of dm" in rates["large"]
    assert [np.asarray(Image.open(path)).shape for path in (report / "faces/large").iterdir()] == [(64, 64, 3)] * 4
    assert found["notes"][1:] == ["tool: pictures of no probe left out, 1: nobody.jpg"]
    assert "nobody.jpg" in capsys.readouterr().out
    text = (report / "index.html").read_text()
    assert page.OTHERS[0] in text and page.OTHERS[1] in text and f"folder:tool={tmp_path}/tool" in text
    assert json.loads((report / "cost.json").read_text())["methods"]["tool"]["seconds_per_face"] is None


def test_other_content_under_the_same_name_is_measured_again_and_nothing_else_is(usual, tmp_path, done, capsys):
    evaluation.main([*usual, "--methods", "plain"])
    probes = attacked(tmp_path / "tool", tmp_path / "report/faces/plain")
    attacked(tmp_path / "other", tmp_path / "report/faces/plain")
    both = [f"folder:tool={tmp_path}/tool", f"folder:other={tmp_path}/other"]
    evaluation.main([*usual, "--methods", "plain", *both])
    before = json.loads((tmp_path / "report/report.json").read_text())["looks"]["tool"]
    evaluation.main([*usual, "--methods", "plain"])  # a run without them forgets nothing
    for probe in probes:
        shutil.copy(tmp_path / f"report/faces/none/0000{probes.index(probe)}.png", tmp_path / "tool" / f"{probe}.png")
    capsys.readouterr()
    evaluation.main([*usual, "--methods", "plain", *both])
    assert done == ["none", "plain", "tool", "other", "tool"]
    assert "the faces of tool are made again, because of other pictures of tool" in capsys.readouterr().out
    after = json.loads((tmp_path / "report/report.json").read_text())["looks"]
    assert after["tool"] != before and after["tool"] == after["none"] and after["other"] == before
    evaluation.main([*usual, "--methods", "plain", *both, "--harmonise"])  # other settings: nothing stays
    assert done[5:] == ["none", "plain", "tool", "other"]


def test_missing_and_doubtful_pictures_are_named_before_any_work(usual, tmp_path, prepared, capsys, done):
    tool = tmp_path / "tool"

    def error(*methods: str) -> str:
        assert status(evaluation.main, [*usual, "--methods", *methods]) == 2
        return capsys.readouterr().err

    assert "tool: no such folder" in error(f"folder:tool={tool}")
    tool.mkdir()
    message = error(f"folder:tool={tool}")
    assert "4 of 4 probes have no picture: id_00" in message and "no pictures at all" in message
    photos = PreparedSet(prepared, "test")
    for i in range(len(photos)):
        path = tool / "photos" / f"{photos.source(i)}.png"  # a folder too deep
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(path)
    message = error(f"folder:tool={tool}")
    assert "it has pictures such as photos/id_00" in message and "--save-probes" in message
    for person in (tool / "photos").iterdir():
        for path in person.glob("*.png"):
            shutil.copy(path, path.with_suffix(".jpg"))
    message = error(f"folder:tool={tool / 'photos'}")
    assert "one probe, two pictures: id_00" in message and ".jpg" in message and ".png" in message
    for wrong, what in (
        ("folder:tool", "expected folder:NAME=DIR"),
        (f"folder:a/b={tool}", "expected folder:NAME=DIR"),
        (f"folder:..={tool}", "expected folder:NAME=DIR"),
        (f"folder:dm={tool}", "choose another NAME"),
        (f"folder:clean={tool}", "choose another NAME"),
        ("mf3m", "folder:NAME=DIR"),
    ):
        assert what in error(wrong), wrong
    assert "each needs its own" in error(f"folder:a={tool}", "folder:a=elsewhere")
    assert done == []


def test_probes_are_not_written_among_somebodys_photos(prepared, tmp_path):
    photos = PreparedSet(prepared, "test")
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(GanMaskError, match="--save-probes .*: there is something else in it"):
        folders.save_probes(photos, np.arange(2), tmp_path)
    for _ in range(2):  # its own folder it writes to again
        folders.save_probes(photos, np.arange(2), tmp_path / "probes")
    with np.load(tmp_path / "probes" / folders.LANDMARKS) as file:
        assert file["names"].tolist() == [photos.source(0), photos.source(1)]
        assert np.array_equal(file["landmarks"][1], photos.landmarks(1).numpy())


class Cut:
    """A prepared set of one face, cut out of a photo."""

    size, margin = 96, 0.375

    def __init__(self, photo: np.ndarray, landmarks: np.ndarray) -> None:
        self.crop, self.points = align(photo, landmarks, self.size, self.margin)

    def landmarks(self, i: int) -> torch.Tensor:
        return torch.from_numpy(self.points)


@pytest.mark.parametrize("whole", [True, False])
def test_faces_in_another_framing_are_cut_out_as_the_probes_were(tmp_path, whole):
    """A photo in place of the probe that was cut out of it: looks are measured on the same crop."""
    photo = read_image(embedded_photo("id_0002/view_1"))
    photo = np.pad(photo, ((90, 60), (40, 130), (0, 0)), mode="edge")
    landmarks = frame(128, 0.2).numpy() + (40, 90)  # where a face may be
    photos = Cut(photo, landmarks)
    picture, points = (photo, landmarks) if whole else (np.repeat(np.repeat(photos.crop, 2, 0), 2, 1), None)
    marks = (landmarks + 0.5) / photo.shape[1::-1] if points is not None else (photos.points + 0.5) / photos.size
    Image.fromarray(picture).save(tmp_path / "a.png")
    folder = folders.Folder("tool", [tmp_path / "a.png"], [])
    cut = folders.write_as_probes(folder, [tmp_path / "out.png"], marks[None], photos, np.array([0]))
    assert cut == whole
    difference = np.abs(read_image(tmp_path / "out.png").astype(int) - photos.crop)
    assert difference.mean() < (0.01 if whole else 3)
