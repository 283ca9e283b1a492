"""The triangle under each pixel against a painter's loop: scikit-image's polygons, the last triangle first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.draw import polygon
from test_masking import faces

from gan_mask.masking import MASK_LANDMARKS, TRIANGLES
from gan_mask.raster import first_triangle

HEIGHT, WIDTH = 90, 110


def painted(points: torch.Tensor) -> np.ndarray:
    """(B, P, 2) px -> (B, HEIGHT, WIDTH), each triangle in the colour of its number over those behind it."""
    pictures = np.full((len(points), HEIGHT, WIDTH), len(TRIANGLES))
    for picture, face in zip(pictures, points.double().numpy(), strict=True):
        for number, corners in reversed([*enumerate(face[TRIANGLES.numpy()])]):
            if np.linalg.det(np.diff(corners, axis=0)):  # corners in a line are no triangle
                picture[polygon(corners[:, 1], corners[:, 0], picture.shape)] = number
    return pictures


def mask_points(spread: float) -> torch.Tensor:
    _, landmarks = faces(6, HEIGHT, WIDTH, spread)
    return landmarks[:, list(MASK_LANDMARKS)]


@pytest.mark.parametrize("spread", [0.5, 2.0, 10.0])  # 10: a crumpled mask, many triangles over one another
def test_pixels_and_order_are_the_painters(spread: float) -> None:
    """Landmarks on pixels, so that many pixels lie on edges, which belong to both sides' triangles."""
    points = mask_points(spread).round()
    assert np.array_equal(first_triangle(points, TRIANGLES, (0, 0, HEIGHT, WIDTH)).numpy(), painted(points))


def test_anywhere_but_on_edges_landmarks_need_not_lie_on_pixels() -> None:
    points = mask_points(2.0)
    found = first_triangle(points, TRIANGLES, (0, 0, HEIGHT, WIDTH)).numpy()
    assert (found != painted(points)).mean() < 2e-4  # edges are 0.001 px wide


def test_profile_faces_and_faces_beyond_the_picture() -> None:
    points = mask_points(1.0).round()
    points[0, :8] = points[0, 0]  # one cheek is out of sight
    points[1, :, 0] = 40  # everything on a line
    points[2] = 40  # everything in a point
    points[3] += 30
    points[4] -= 45
    points[5] += 1000
    found = first_triangle(points, TRIANGLES, (0, 0, HEIGHT, WIDTH)).numpy()
    assert np.array_equal(found, painted(points))
    assert (found != len(TRIANGLES)).any((1, 2)).tolist() == [True, False, False, True, True, False]


def test_a_box_is_a_part_of_the_picture() -> None:
    points = mask_points(2.0)
    whole = first_triangle(points, TRIANGLES, (0, 0, HEIGHT, WIDTH))
    assert torch.equal(first_triangle(points, TRIANGLES, (50, 33, 71, 80)), whole[:, 50:71, 33:80])
    assert first_triangle(points[:0], TRIANGLES, (0, 0, 4, 5)).shape == (0, 4, 5)
