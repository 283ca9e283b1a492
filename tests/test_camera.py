"""A camera's faults on the faces that are trained on."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.utils.data import DataLoader

from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.training.camera import Photographed
from gan_mask.training.options import TrainConfig
from gan_mask.training.schedule import Schedule


@pytest.fixture
def photos(prepared) -> PreparedSet:
    return PreparedSet(prepared, "train")


def test_a_row_of_the_training_has_its_own_faults_whenever_it_is_read(photos):
    first, again = (Photographed(photos, 1.0, 3)[2, False, 77]["face"] for _ in range(2))
    assert torch.equal(first, again)
    others = [Photographed(photos, 1.0, 3)[2, False, row]["face"] for row in range(20)]
    assert sum(not torch.equal(first, other) for other in others) >= 19
    assert not torch.equal(first, Photographed(photos, 1.0, 4)[2, False, 77]["face"])


def test_faults_are_those_of_a_camera(photos):
    """Visible, 8 bits, in [0, 1], and of a photo that stays the same photo; landmarks are not touched."""
    for row in range(30):
        before, after = photos[1, True], Photographed(photos, 1.0, 0)[1, True, row]
        assert torch.equal(before["landmarks"], after["landmarks"]) and after["face"].shape == before["face"].shape
        assert 0 <= after["face"].min() and after["face"].max() <= 1
        assert torch.allclose(after["face"] * 255, (after["face"] * 255).round(), atol=1e-3)
        assert 0.001 < (after["face"] - before["face"]).abs().mean() < 0.15


def test_their_share_is_that_of_the_option(photos):
    count, rows = {}, range(300)
    for share in (0.0, 0.3):
        faces = (Photographed(photos, share, 0)[0, False, row]["face"] for row in rows)
        count[share] = sum(not torch.equal(face, photos[0]["face"]) for face in faces)
    assert count[0.0] == 0
    assert 60 <= count[0.3] <= 120  # 90 of 300, three standard deviations are 24


def test_a_resumed_run_sees_the_same_faces(photos):
    """Whatever the number of loader processes, from any step on."""
    config = TrainConfig(data="", out="", batch_size=2, steps=4)

    def faces(start: int, workers: int) -> list[torch.Tensor]:
        schedule = Schedule(photos.identities, config, 0, 1, start)
        loader = DataLoader(Photographed(photos, 0.9, 5), batch_sampler=schedule, num_workers=workers)
        return [batch["face"] for batch in loader]

    assert all(map(torch.equal, faces(0, 0)[2:], faces(2, 1)))


def test_without_albumentations_the_error_names_it_and_the_way_round(photos, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "albumentations" else find(name))
    with pytest.raises(GanMaskError, match="albumentations.*--camera 0"):
        Photographed(photos, 0.5, 0)
    Photographed(photos, 0.0, 0)
