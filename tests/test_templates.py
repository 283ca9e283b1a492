from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, embedded_photo

from gan_mask import masking, templates
from gan_mask.errors import GanMaskError
from gan_mask.landmarks import flip


def test_every_shipped_template_is_a_texture_of_the_size_asked_for() -> None:
    textures = templates.load_all("all", (36, 48))
    assert textures.shape == (len(templates.names()), 3, 36, 48)
    assert textures.min() >= 0 and textures.max() <= 1
    assert (textures.flatten(1).std(1) > 0.01).all()  # none of them is flat
    flat = textures.flatten(1)
    different = torch.cdist(flat, flat) + torch.eye(len(flat)) * 1e3
    assert different.min() > 1  # and no two are alike


def test_loading_twice_gives_the_same() -> None:
    for name in ("face-001", "plain-blue", "cloth-weave"):
        assert torch.equal(templates.load(name), templates.load(name))


@pytest.mark.parametrize("name", ["plain-blue", "cloth-checks"])
def test_a_drawing_is_the_same_at_any_size(name: str) -> None:
    small, large = templates.load(name, (36, 48)), templates.load(name, (144, 192))
    shrunk = torch.nn.functional.avg_pool2d(large[None], 4)[0]
    assert (shrunk - small).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("name", "brightest"), [("plain-blue", 2), ("plain-pink", 0)], ids=["blue is blue", "pink is reddish"]
)
def test_plain_colours(name: str, brightest: int) -> None:
    assert templates.load(name).mean((1, 2)).argmax() == brightest


def test_template_people_are_distinct_and_embedded() -> None:
    with zipfile.ZipFile(REPOSITORY / "gan_mask/assets/synthfaces.zip") as archive:
        embedded = {name.split("/")[1] for name in archive.namelist() if name.endswith(".webp")}
    assert len(set(templates.TEMPLATE_PEOPLE)) == len(templates.FACES) >= 36
    assert set(templates.TEMPLATE_PEOPLE) <= embedded


def test_groups_are_expanded() -> None:
    assert templates.expand("plain") == ["plain-blue", "plain-white", "plain-black", "plain-pink"]
    assert templates.expand(["face-002", "cloth"])[:2] == ["face-002", "cloth-checks"]
    assert templates.load_all(["plain", "face-001"]).shape[0] == 5


def test_a_photo_gives_its_lower_face(tmp_path: Path) -> None:
    """The shipped template of a person, made from stored landmarks, against detection on the same photo."""
    path = tmp_path / "a photo.webp"
    path.write_bytes(embedded_photo(f"{templates.TEMPLATE_PEOPLE[9]}/view_1"))
    ours, theirs = templates.load("face-010"), templates.load(path)
    assert (ours - theirs).abs().mean() < 0.04
    assert (templates.load("face-011") - theirs).abs().mean() > 0.06


def test_wrong_templates_are_explained(tmp_path: Path) -> None:
    with pytest.raises(GanMaskError, match=r"'face-999' is neither a photo nor a shipped template.*plain-blue"):
        templates.load("face-999")
    with pytest.raises(GanMaskError, match="no template given"):
        templates.load_all([])
    damaged = tmp_path / "text.jpg"
    damaged.write_text("not a photo")
    with pytest.raises(GanMaskError, match=r"text\.jpg"):
        templates.load(damaged)


def test_the_best_template_for_its_own_person_is_his_own_lower_face() -> None:
    faces, landmarks = templates._people()
    assert templates.best(faces[::7], landmarks[::7]) == list(templates.FACES[::7])


def test_the_best_template_follows_skin_tone_and_pose() -> None:
    faces, landmarks = templates._people()
    bank = templates.load_all("faces").mean((1, 2, 3))
    darker, lighter = (
        bank[templates.FACES.index(templates.best(f, landmarks[:1])[0])] for f in (faces[:1] * 0.5, faces[:1] ** 0.5)
    )
    assert darker < bank[0] < lighter
    # Mirroring keeps the skin and turns the head to the other side.
    yaw = templates._yaw(landmarks)
    turned = int(yaw.abs().argmax())
    mirrored, points = faces[turned, None].flip(3), flip(landmarks[turned, None], faces.shape[3])
    (name,) = templates.best(mirrored, points)
    assert name != templates.FACES[turned]
    assert (yaw[templates.FACES.index(name)] + yaw[turned]).abs() < (2 * yaw[turned]).abs()


def test_harmonised_templates_have_the_wearers_colours() -> None:
    faces, landmarks = templates._people()
    own = masking.unwrap(faces[:4], landmarks[:4])
    assert torch.allclose(templates.harmonise(own, faces[:4], landmarks[:4]), own, atol=1e-5)
    foreign = templates.load_all(["face-020", "plain-blue", "face-030", "cloth-dots"])
    changed = templates.harmonise(foreign, faces[:4], landmarks[:4])
    assert changed.min() >= 0 and changed.max() <= 1
    before, after = ((x.mean((2, 3)) - own.mean((2, 3))).abs().amax(1) for x in (foreign, changed))
    assert (after < 0.02).all() and (before > 0.03).any()
