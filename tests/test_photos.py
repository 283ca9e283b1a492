"""Masks on photos of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import embedded_photo
from PIL import Image

from gan_mask import likeness, masking, photos, templates
from gan_mask.faces import FaceFinder, align, read_image, to_8_bit, to_tensors
from gan_mask.photos import wear_on_photo


@pytest.fixture(scope="module")
def wearer():
    """A crop uint8 (160, 160, 3), its landmarks, the wearer's own texture and a template's."""
    photo = read_image(embedded_photo("id_0002/view_1"))
    crop, points = align(photo, FaceFinder().find([photo])[0][0].landmarks)
    face, landmarks = to_tensors([(crop, points)])
    own = masking.unwrap(face, landmarks)
    adapted = likeness.adapt(templates.load_all(templates.best(face, landmarks)), own)
    texture = adapted.clamp(0, 1)  # what paper placement takes
    return crop, points, own[0], texture[0]


def enlarged(crop: np.ndarray, points: np.ndarray, factor: int, grain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    side = crop.shape[0] * factor
    photo = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    photo += grain * np.random.default_rng(0).standard_normal((side, side, 1))
    return photo.round().clip(0, 255).astype(np.uint8), ((points + 0.5) * factor - 0.5).astype(np.float32)


def test_a_photo_of_the_crops_size_gets_what_the_crop_gets(wearer):
    crop, points, own, texture = wearer
    face, landmarks = to_tensors([(crop, points)])
    for placement in masking.PLACEMENTS:
        photo = crop.copy()
        wear_on_photo(photo, points, texture, own, placement, 0.03)
        expected = to_8_bit(masking.put_on(face, landmarks, texture[None], placement, 0.03))[0]
        assert np.abs(photo.astype(int) - expected).max() <= 1  # rounding, where a value lies between two


def test_a_larger_photo_keeps_its_grain_and_shows_the_same_mask(wearer):
    crop, points, own, texture = wearer
    photo, marks = enlarged(crop, points, 4, grain=6.0)
    masked = photo.copy()
    wear_on_photo(masked, marks, texture, own, "seamless", 0.03)
    inside = masking.region(torch.from_numpy(marks)[None], *photo.shape[:2])[0, 0].numpy() > 0
    assert np.array_equal(masked[~inside], photo[~inside])

    def grain(picture: np.ndarray) -> float:
        light = picture.astype(float).mean(2)
        fine = light - np.asarray(
            Image.fromarray(light).resize((160, 160), Image.BOX).resize(light.shape, Image.BICUBIC)
        )
        return float(fine[inside].std())

    assert 0.8 < grain(masked) / grain(photo) < 1.2
    paper = photo.copy()
    wear_on_photo(paper, marks, texture, own, "paper", 0.03)
    assert grain(paper) < 0.6 * grain(photo)
    # Seen small, it is the mask that the crop wears.
    small = np.asarray(Image.fromarray(masked).resize((160, 160), Image.Resampling.BOX)).astype(float)
    worn = crop.copy()
    wear_on_photo(worn, points, texture, own, "seamless", 0.03)
    assert (
        np.abs(small - worn).mean()
        < 3
        < np.abs(worn[inside[2::4, 2::4]] - crop[inside[2::4, 2::4]].astype(float)).mean()
    )


def test_strips_give_what_the_whole_gives(wearer, monkeypatch):
    crop, points, own, texture = wearer
    photo, marks = enlarged(crop, points, 3, grain=4.0)
    whole, strips = photo.copy(), photo.copy()
    for placement in masking.PLACEMENTS:
        wear_on_photo(whole, marks, texture, own, placement, 0.03)
        with monkeypatch.context() as patch:
            patch.setattr(photos, "PIXELS", 20_000)
            wear_on_photo(strips, marks, texture, own, placement, 0.03)
        assert np.abs(whole.astype(int) - strips).mean() < 0.05


@pytest.mark.parametrize("lean", [0, 45, 90])
def test_memory_does_not_depend_on_how_a_face_leans(wearer, monkeypatch, lean):
    """No more pixels are worked on at once than PIXELS; the skin of both cheeks is there all the same."""
    crop, points, own, texture = wearer
    photo, marks = enlarged(crop, points, 3, grain=4.0)
    photo = np.asarray(Image.fromarray(photo).rotate(-lean))  # clockwise
    c, s = np.cos(np.deg2rad(lean)), np.sin(np.deg2rad(lean))
    marks = ((marks - 239.5) @ np.array([[c, s], [-s, c]]) + 239.5).astype(np.float32)
    whole, strips, sizes, place = photo.copy(), photo.copy(), [], masking.place
    wear_on_photo(whole, marks, texture, own, "seamless", 0.03)
    monkeypatch.setattr(photos, "PIXELS", 20_000)
    monkeypatch.setattr(masking, "place", lambda m, h, w: sizes.append(h * w) or place(m, h, w))
    wear_on_photo(strips, marks, texture, own, "seamless", 0.03)
    assert len(sizes) > 2 and max(sizes) <= 20_000
    assert np.abs(whole.astype(int) - strips).max() <= 1 and np.abs(whole.astype(int) - photo).max() > 20


def test_where_nothing_changes_the_photo_stays_as_it_is(wearer):
    crop, points, own, _ = wearer
    photo, marks = enlarged(crop, points, 3, grain=4.0)
    masked = photo.copy()
    wear_on_photo(masked, marks, own, own, "seamless", 0.03)
    assert np.array_equal(masked, photo)


def test_a_face_that_leaves_the_photo(wearer):
    crop, points, own, texture = wearer
    photo, marks = enlarged(crop, points, 2)
    for x, y in ((-150, 0), (0, -200), (1000, 1000)):
        masked = photo.copy()
        wear_on_photo(masked, marks + np.float32([x, y]), texture, own, "seamless", 0.03)
        assert masked.shape == photo.shape
