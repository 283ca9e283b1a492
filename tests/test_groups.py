"""Head pose and skin tone that rates are broken down by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

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
