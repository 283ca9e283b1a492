"""What rates are broken down by: head pose, skin tone, expression, resolution."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from conftest import embedded_photo
from PIL import Image

from gan_mask import landmarks as lm
from gan_mask.evaluation import groups

# The generic head of many pose tutorials, millimetres: nose tip, outer eye corners; y down, z away from the camera.
HEAD = {30: (0.0, 0.0, 0.0), 36: (-225.0, -170.0, 135.0), 45: (225.0, -170.0, 135.0)}


@pytest.mark.parametrize("yaw", [-45, -20, -5, 0, 10, 30, 50])
@pytest.mark.parametrize("roll", [0, 25])
def test_yaw_is_that_of_a_head_that_opencv_projects(yaw, roll):
    cv2 = pytest.importorskip("cv2")
    turned, _ = cv2.Rodrigues(np.array([0.0, -math.radians(yaw), 0.0]))
    rolled, _ = cv2.Rodrigues(np.array([0.0, 0.0, math.radians(roll)]))
    rotation, _ = cv2.Rodrigues(rolled @ turned)
    camera = np.array([[2000.0, 0, 80], [0, 2000.0, 80], [0, 0, 1]])
    projected, _ = cv2.projectPoints(np.array(list(HEAD.values())), rotation, np.array([0.0, 0, 9000]), camera, None)
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, list(HEAD)] = torch.from_numpy(projected[:, 0]).float()
    assert groups.turn_of(landmarks).item() == pytest.approx(yaw, abs=2.5)


def test_the_mean_face_looks_straight_ahead_and_a_mirrored_one_the_other_way():
    frontal = lm.frame(160, 0.375)[None]
    assert groups.turn_of(frontal).item() == pytest.approx(0, abs=0.1)
    turned = frontal + torch.randn(1, 68, 2, generator=torch.manual_seed(0)) * 4
    assert groups.turn_of(lm.flip(turned, 160)).item() == pytest.approx(-groups.turn_of(turned).item(), abs=1e-3)


@pytest.mark.parametrize(("lightness", "b", "degrees"), [(70.0, 20.0, 45.0), (50.0, 15.0, 0.0), (40.0, 17.32, -30.0)])
def test_skin_tone_is_the_typology_angle_of_the_cheeks(lightness, b, degrees):
    color = pytest.importorskip("skimage.color")
    skin = torch.from_numpy(color.lab2rgb([[[lightness, 12.0, b]]])[0, 0]).float()
    landmarks = lm.frame(160, 0.375)
    face = torch.zeros(3, 160, 160)
    left, top, right, bottom = 20, 60, 140, 130
    face[:, top:bottom, left:right] = skin[:, None, None]
    assert groups.tone_of(face, landmarks) == pytest.approx(degrees, abs=0.5)
    outside = landmarks + 500  # landmarks may lie outside of a cut-off face
    assert math.isfinite(groups.tone_of(face, outside))


def test_detail_is_the_size_that_a_photo_had_before_it_was_enlarged():
    """By Pillow's resizing; noise has detail up to the picture's own size."""
    photo = Image.open(io.BytesIO(embedded_photo("id_0001/view_1"))).convert("RGB").resize((160, 160))
    for size in (64, 88):
        face = np.array(photo.resize((size, size), Image.Resampling.BOX).resize((160, 160), Image.Resampling.BICUBIC))
        assert groups.detail_of(torch.from_numpy(face).permute(2, 0, 1) / 255) == pytest.approx(size, rel=0.25)
    noise = torch.rand(3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert groups.detail_of(noise) >= 150


def test_an_open_mouth_is_open():
    closed, opened = lm.frame(160, 0.375)[None], lm.frame(160, 0.375)[None].clone()
    between = (opened[:, 42:48].mean(1) - opened[:, 36:42].mean(1)).norm()
    opened[:, 66, 1] += 0.3 * between
    assert groups.mouth_opening(opened).item() == pytest.approx(groups.mouth_opening(closed).item() + 0.3, abs=0.02)
