"""Losses and augmentations: their promises, against PyTorch, SciPy and Pillow where these know the answer."""

import io

import numpy as np
import torch
from conftest import embedded_photo
from PIL import Image

from gan_mask import augment, losses
from gan_mask.augment import Draws
from gan_mask.landmarks import frame


def draws(batch: int = 4, step: int = 0, start: int = 0, total: int = 8) -> Draws:
    return Draws(seed=3, step=step, rows=range(start, start + batch), total=total, device="cpu")


def test_logistic_losses_are_binary_cross_entropy():
    real, fake = torch.randn(5), torch.randn(5)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones(5), reduction="none") + entropy(fake, torch.zeros(5), reduction="none")
    assert torch.allclose(losses.d_logistic(real, fake), expected)
    assert torch.allclose(losses.g_nonsaturating(fake), entropy(fake, torch.ones(5), reduction="none"))


def test_r1_of_a_linear_discriminator_is_its_squared_norm():
    weight = torch.randn(3, 4, 4)
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    penalty = losses.r1_penalty((images * weight).sum((1, 2, 3)), images)
    assert torch.allclose(penalty, weight.square().sum().expand(2))


def test_dodging_counts_in_units_of_the_embedders_own_scale():
    similarity = torch.tensor([1.0, 0.92, 0.90, 0.80])
    loss = losses.dodging_hinge(similarity, threshold=0.92, margin=0.25)
    assert torch.allclose(loss, torch.tensor([1.25, 0.25, 0.0, 0.0]), atol=1e-4)
    assert losses.dodging_hinge(torch.tensor([0.393]), 0.393, 0.25).item() == 0.25  # the same for any threshold


def test_detector_hinges_vanish_beyond_their_margin():
    logits = torch.tensor([-5.0, -2.0, 0.0, 3.0])
    assert losses.undetected_hinge(logits, 2.0).tolist() == [0, 0, 2, 5]
    assert losses.found_hinge(logits, 2.0).tolist() == [7, 4, 2, 0]


def test_total_variation():
    assert losses.total_variation(torch.full((2, 3, 8, 8), 0.3)).tolist() == [0, 0]
    ramp = torch.linspace(0, 1, 9).expand(1, 3, 8, 9)
    assert torch.allclose(losses.total_variation(ramp), torch.tensor([0.125]))


def test_draws_belong_to_rows_however_the_batch_is_split():
    whole = draws(8)
    first, second = draws(4, start=0), draws(4, start=4)
    for one in (lambda d: d.uniform(2, low=-1), lambda d: d.normal(68, 2), lambda d: d.integers(7)):
        assert torch.equal(one(whole), torch.cat([one(first), one(second)]))
    assert not torch.equal(draws(step=0).uniform(3), draws(step=1).uniform(3))


def test_strength_zero_changes_nothing():
    images, landmarks = torch.rand(4, 3, 32, 32), frame(32, 0.3).expand(4, 68, 2)
    assert torch.allclose(augment.relight(images, draws(), 0.0), images, atol=1e-6)
    assert torch.allclose(augment.shift_image(images, draws(), 0.0), images, atol=1e-4)
    assert torch.allclose(augment.jitter_landmarks(landmarks, draws(), 0.0), landmarks, atol=1e-4)


def test_augmentations_stay_in_range_and_pass_gradients():
    images = torch.rand(4, 3, 30, 37, requires_grad=True)
    for function in (augment.relight, augment.shift_image):
        out = function(images, draws(), 1.0)
        assert out.shape == images.shape and out.min() >= -1e-6 and out.max() <= 1 + 1e-6
        (gradient,) = torch.autograd.grad(out.sum(), images)
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    out = augment.compress(images, draws())
    (gradient,) = torch.autograd.grad(out.sum(), images)
    assert out.shape == images.shape and torch.allclose(gradient, torch.ones_like(gradient), atol=1e-4)


def test_block_transform_is_scipys_dct():
    from scipy.fft import dct

    assert np.allclose(augment._dct(8).numpy(), dct(np.eye(8), axis=0, norm="ortho"), atol=1e-6)


def test_compress_errs_about_as_much_as_jpeg_does():
    grey = Image.open(io.BytesIO(embedded_photo("id_0001/view_1"))).convert("L")
    photo = torch.from_numpy(np.array(grey)).expand(1, 3, -1, -1) / 255

    def jpeg(quality: int) -> float:
        buffer = io.BytesIO()
        grey.save(buffer, "JPEG", quality=quality)
        return np.square(np.asarray(Image.open(buffer)) / 255 - photo[0, 0].numpy()).mean() ** 0.5

    def ours(step: float) -> float:
        return (augment.compress(photo, draws(1), step, step + 1e-6) - photo).square().mean().sqrt().item()

    assert jpeg(97) < ours(0.02) < jpeg(85)
    assert jpeg(75) < ours(0.2) < jpeg(15)


def test_rounding_is_what_a_file_keeps():
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    rounded = augment.round_to_8_bit(images)
    kept = torch.from_numpy((images.detach().numpy() * 255).round().astype(np.uint8)) / 255
    assert torch.allclose(rounded, kept, atol=1e-6)
    rounded.sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
