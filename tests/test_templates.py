from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, embedded_photo
from scipy.ndimage import gaussian_filter, grey_dilation

from gan_mask import likeness, masking, templates
from gan_mask.errors import GanMaskError
from gan_mask.faces import FaceFinder, read_image
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


def test_nobody_wears_himself() -> None:
    """Neither in the template's view nor in the person's others, nor mirrored."""
    faces, landmarks = templates._people()
    for seen, points in ((faces, landmarks), (faces.flip(3), flip(landmarks, faces.shape[3]))):
        chosen = templates.best(seen, points)
        for own, name in zip(templates.FACES, chosen, strict=True):
            assert not name.startswith(own)
    with np.load(templates.ASSETS / "synthfaces_landmarks.npz", allow_pickle=False) as file:
        points = dict(zip(file["names"].tolist(), file["landmarks68"], strict=True))
    with zipfile.ZipFile(templates.ASSETS / "synthfaces.zip") as archive:
        for own, person in zip(templates.FACES[::6], templates.TEMPLATE_PEOPLE[::6], strict=True):
            for view in ("view_2", "view_3"):
                name = f"synthfaces/{person}/{view}.webp"
                photo = torch.from_numpy(read_image(archive.read(name))).permute(2, 0, 1)[None] / 255
                assert not templates.best(photo, torch.from_numpy(points[name])[None])[0].startswith(own)


def test_the_best_template_follows_pose_and_expression() -> None:
    """Compared with a random choice, over the embedded people."""
    faces, landmarks = templates._people()
    names = (*templates.FACES, *templates.MIRRORED)
    shape = likeness.geometry(torch.cat([landmarks, flip(landmarks, faces.shape[3])]))
    chosen = shape[[names.index(name) for name in templates.best(faces, landmarks)]]
    own = shape[: len(faces)]
    for column in ("turn", "mouth opening"):
        i = list(likeness.GEOMETRY).index(column)
        matched = (chosen[:, i] - own[:, i]).abs().mean()
        assert matched < 0.6 * (shape[:, None, i] - own[:, i]).abs().mean()
    own_beard = likeness.profile(masking.unwrap(faces, landmarks), landmarks).beard[:, None]
    beards = templates._profile(faces.device).beard
    matched = (beards[[names.index(name) for name in templates.best(faces, landmarks)], None] - own_beard).abs().mean()
    assert matched < 0.6 * (beards - own_beard).abs().mean()
    # A mirrored head is turned to the other side, and so is its template.
    turned = int(own[:, 0].abs().argmax())
    (name,) = templates.best(faces[turned, None].flip(3), flip(landmarks[turned, None], faces.shape[3]))
    assert shape[names.index(name), 0] * own[turned, 0] < 0


def test_the_best_template_is_the_best_of_those_allowed() -> None:
    faces, landmarks = (part[:12] for part in templates._people())
    allowed = templates.FACES[::5]
    for chosen, free in zip(templates.best(faces, landmarks, allowed), templates.best(faces, landmarks), strict=True):
        assert chosen.removesuffix("-mirrored") in allowed
        assert chosen == free or free.removesuffix("-mirrored") not in allowed


def test_a_mirrored_template_is_the_mirror_image() -> None:
    texture, mirrored = templates.load("face-007"), templates.load("face-007-mirrored")
    assert (mirrored - texture.flip(2)).abs().mean() < 0.02
    assert (mirrored - texture).abs().mean() > (mirrored - texture.flip(2)).abs().mean()


def test_adapted_templates_have_the_wearers_colours_and_another_form() -> None:
    faces, landmarks = templates._people()
    own = masking.unwrap(faces[:6], landmarks[:6])
    foreign = templates.load_all(["face-020", "face-030", "face-041", "face-002", "face-016", "face-026"])
    adapted = likeness.adapt(foreign, own)
    lips = (slice(None), slice(None), slice(42, 50), slice(40, 56))

    def colour(textures: torch.Tensor) -> torch.Tensor:
        return (textures - likeness.luminance(textures))[lips].mean((2, 3))

    assert (colour(adapted) - colour(own)).abs().max() < 0.025 < (colour(foreign) - colour(own)).abs().max()
    form = masking.structure(likeness.luminance(adapted)).flatten(1)
    before, wearer = (masking.structure(likeness.luminance(x)).flatten(1) for x in (foreign, own))
    assert (torch.cosine_similarity(form, before) > 0.97).all()
    assert (torch.cosine_similarity(form, wearer) < 0.9).all()


def test_red_lips_do_not_make_the_skin_beside_them_green() -> None:
    """The redder the lips of a template, the greener was what a blur left of the skin around them."""
    mouth = masking.lips(torch.zeros(72, 96))
    skin = torch.tensor([0.8, 0.6, 0.5]).view(1, 3, 1, 1).expand(1, 3, 72, 96)
    redder = torch.tensor([0.2, -0.1, -0.1]).view(1, 3, 1, 1) * mouth
    adapted = likeness.adapt(skin.roll(1, 1) + redder, skin + 0.25 * redder)
    beside = torch.from_numpy(grey_dilation(mouth.numpy(), 9) - grey_dilation(mouth.numpy(), 3)).bool()
    colour, wearers = ((x - likeness.luminance(x))[0, :, beside] for x in (adapted, skin))
    assert (colour - wearers).abs().max() < 0.004
    lips = adapted[0, :, 40, 48] - likeness.luminance(adapted)[0, :, 40, 48]
    assert lips[0] - wearers[0, 0] > 0.02


def test_adapted_templates_have_the_wearers_contrast_in_detail_of_each_size() -> None:
    """A soft template on a sharp face is what a classifier sees first; bands by SciPy's Gaussian filter."""
    faces, landmarks = templates._people()
    own = masking.unwrap(faces[:6], landmarks[:6])
    soft = likeness.blurred(templates.load_all(["face-020", "face-030", "face-041", "face-002", "face-016"]), 0.7)
    for template in soft:
        adapted = likeness.adapt(template.expand_as(own), own)

        def strength(textures: torch.Tensor, small: float, large: float) -> np.ndarray:
            light = likeness.luminance(textures)[:, 0].numpy()
            band = gaussian_filter(light, (0, small, small)) - gaussian_filter(light, (0, large, large))
            return band[:, 20:60, 24:72].std((1, 2))  # well within the seam

        for small, large in ((0, 1), (1, 2), (2, 4)):
            ratio = strength(adapted, small, large) / strength(own, small, large)
            before = strength(template.expand_as(own), small, large) / strength(own, small, large)
            assert (np.abs(np.log(ratio)) < np.maximum(np.abs(np.log(before)), 0.6)).all(), (small, ratio, before)
        finest, before = (np.median(strength(x, 0, 1) / strength(own, 0, 1)) for x in (adapted, template[None]))
        assert finest > min(before, 0.8)


def test_no_colour_of_an_adapted_template_is_strange_to_the_wearer() -> None:
    """Strengthened, teeth between red lips turned green."""
    faces, landmarks = templates._people()
    own = masking.unwrap(faces, landmarks)
    texture = templates.load_all(templates.best(faces, landmarks))
    colours, worn = (x - likeness.luminance(x) for x in (own, likeness.adapt(texture, own)))
    low, high = (np.quantile(colours.flatten(2).numpy(), q, 2) for q in (0.005, 0.995))
    everywhere, shown = worn.flatten(2).numpy()[:48], worn[:, :, masking.seam_opacity(own) > 0].numpy()
    for texels in (everywhere, shown):
        n = len(texels)
        assert (texels.min(2) >= np.minimum(low[:n], 0) - 0.01).all()
        assert (texels.max(2) <= np.maximum(high[:n], 0) + 0.01).all()


def test_teeth_are_no_brighter_than_the_wearers_brightest_places_and_have_their_colour() -> None:
    faces, landmarks = templates._people()
    own = 0.75 * masking.unwrap(faces, landmarks)
    skin = own.flatten(2).median(2).values[..., None, None]
    own[:, :, 46:50, 43:53] = 0.9  # white teeth
    teeth = skin.expand_as(own).clone()
    teeth[:, :, 44:48, 40:54] = torch.tensor([1.0, 0.95, 0.7]).view(3, 1, 1)  # yellow ones, in a wider mouth
    worn = masking.seamless(likeness.adapt(teeth, own), own)
    inside = masking.seam_opacity(own) > 0.99
    highest, lowest = (own.flatten(2).max(2).values, own.flatten(2).min(2).values)
    assert (worn[:, :, inside].amax(2) <= highest + 0.02).all() and (worn[:, :, inside].amin(2) >= lowest - 0.02).all()
    bright = worn[:, :, 45:47, 44:50].mean((2, 3))
    assert (likeness.luminance(bright[..., None, None]) > 0.8).all()
    assert ((bright[:, 0] - bright[:, 2]) < 0.06).all()


def test_a_photo_as_a_template_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(templates.ASSETS / "synthfaces.zip") as archive:
        (tmp_path / "me.webp").write_bytes(archive.read("synthfaces/id_0002/view_1.webp"))
    calls = []
    find = FaceFinder.find
    monkeypatch.setattr(FaceFinder, "find", lambda *a: calls.append(1) or find(*a))
    first = templates.load(tmp_path / "me.webp")
    assert torch.equal(templates.load_all([tmp_path / "me.webp"] * 5)[4], first)
    assert len(calls) == 1
    os.utime(tmp_path / "me.webp", (1, 1))  # another file under the same name
    templates.load(tmp_path / "me.webp")
    assert len(calls) == 2


def test_harmonised_templates_have_the_wearers_colours() -> None:
    faces, landmarks = templates._people()
    own = masking.unwrap(faces[:4], landmarks[:4])
    assert torch.allclose(templates.harmonise(own, faces[:4], landmarks[:4]), own, atol=1e-5)
    foreign = templates.load_all(["face-020", "plain-blue", "face-030", "cloth-dots"])
    changed = templates.harmonise(foreign, faces[:4], landmarks[:4])
    assert changed.min() >= 0 and changed.max() <= 1
    before, after = ((x.mean((2, 3)) - own.mean((2, 3))).abs().amax(1) for x in (foreign, changed))
    assert (after < 0.02).all() and (before > 0.03).any()
