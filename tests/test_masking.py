"""Geometry against SciPy's triangulation, scikit-image's warp and finite differences."""

import numpy as np
import pytest
import torch
from scipy.spatial import Delaunay

from gan_mask import masking
from gan_mask.errors import GanMaskError
from gan_mask.landmarks import frame
from gan_mask.masking import CANONICAL, MASK_LANDMARKS, TRIANGLES, place, put_on, region, seamless, unwrap, wear


def faces(batch: int, height: int = 160, width: int = 160, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    image = torch.rand(batch, 3, height // 8, width // 8, generator=generator)
    image = torch.nn.functional.interpolate(image, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    landmarks = frame(min(height, width), 0.375) + spread * torch.randn(batch, 68, 2, generator=generator)
    return image, landmarks


def test_triangles_are_scipys_delaunay_of_the_canonical_points():
    """In ascending order: this is how the constant is made."""
    made = sorted(sorted(triangle) for triangle in Delaunay(CANONICAL.double().numpy()).simplices.tolist())
    assert TRIANGLES.tolist() == made


def test_the_polygon_is_the_convex_hull():
    hull = set(Delaunay(CANONICAL.double().numpy()).convex_hull.ravel().tolist())
    assert hull == set(masking.BOUNDARY)


def test_outside_the_region_nothing_changes_by_a_single_bit():
    face, landmarks = faces(3, 120, 150)
    texture = torch.rand(3, 3, *masking.TEXTURE)
    for softness in (0.0, 0.05):
        inside = region(landmarks, 120, 150, softness) > 0
        changed = (wear(face, landmarks, texture, softness) != face).any(1, keepdim=True)
        assert not (changed & ~inside).any()
        assert changed[inside].float().mean() > 0.95


def test_region_is_the_polygon_of_its_boundary():
    from skimage.draw import polygon2mask

    _, landmarks = faces(1, spread=1.0)
    ring = landmarks[0, [MASK_LANDMARKS[i] for i in masking.BOUNDARY]].numpy()
    expected = polygon2mask((160, 160), ring[:, ::-1])
    ours = region(landmarks, 160, 160)[0, 0].numpy() > 0
    # Jittered landmarks may leave the polygon slightly concave or fold an inner triangle over its edge.
    assert (expected ^ ours).sum() < 0.03 * expected.sum()


def test_wear_undoes_unwrap():
    face, landmarks = faces(2)
    worn = wear(face, landmarks, unwrap(face, landmarks, (288, 384)))
    assert (worn - face).abs().mean() < 1 / 255


def test_vertices_are_exact():
    _, landmarks = faces(4, spread=0.3)
    landmarks = landmarks.round()  # each landmark is a pixel
    height, width = masking.TEXTURE
    v, u = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    coordinates = torch.stack([u, v, torch.zeros_like(u)]).expand(4, -1, -1, -1)
    worn = wear(torch.zeros(4, 3, 160, 160), landmarks, coordinates)
    for i, landmark in enumerate(MASK_LANDMARKS):
        x, y = landmarks[:, landmark].long().unbind(1)
        assert torch.allclose(worn[torch.arange(4), :2, y, x], CANONICAL[i].expand(4, 2), atol=1e-4)


def test_agrees_with_scikit_images_piecewise_affine_warp():
    from skimage.transform import AffineTransform, warp

    face, landmarks = faces(1)
    texture, _ = faces(1, *masking.TEXTURE)
    ours = wear(face, landmarks, texture)[0].permute(1, 2, 0).numpy()
    points = landmarks[0, list(MASK_LANDMARKS)].double().numpy()
    canonical = CANONICAL.double().numpy() * [masking.TEXTURE[1], masking.TEXTURE[0]] - 0.5
    expected, where = face[0].permute(1, 2, 0).numpy().copy(), np.zeros((160, 160), bool)
    for triangle in TRIANGLES.numpy():
        transform = AffineTransform.from_estimate(points[triangle], canonical[triangle])
        warped = warp(texture[0].permute(1, 2, 0).numpy(), transform, output_shape=(160, 160), mode="edge")
        y, x = np.mgrid[:160, :160]
        inside = Delaunay(points[triangle]).find_simplex(np.stack([x, y], -1)) >= 0
        inside &= ~where
        expected[inside], where = warped[inside], where | inside
    both = where & (region(landmarks, 160, 160)[0, 0].numpy() > 0)
    assert both.sum() > 0.99 * where.sum()
    assert np.abs(ours - expected)[both].mean() <= 1 / 255


def test_a_batch_equals_its_faces_one_by_one():
    face, landmarks = faces(5)
    texture = torch.rand(5, 3, *masking.TEXTURE)
    together = wear(face, landmarks, texture, 0.03)
    alone = [wear(face[i : i + 1], landmarks[i : i + 1], texture[i : i + 1], 0.03) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_faces_of_a_batch_may_lie_anywhere():
    face, landmarks = faces(4, 120, 150)
    texture = torch.rand(4, 3, *masking.TEXTURE)
    landmarks[0] = landmarks[0] / 4  # a small face in a corner, one half outside, one far outside
    landmarks[1] += torch.tensor([60.0, 20.0])
    landmarks[2] -= 1e6
    together = wear(face, landmarks, texture, 0.03)
    alone = [wear(face[i : i + 1], landmarks[i : i + 1], texture[i : i + 1], 0.03) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert (together != face).flatten(1).any(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("softness", [0.0, 0.05])
def test_gradients(softness):
    _, landmarks = faces(2, 24, 24, spread=0.3)
    landmarks = landmarks.double()
    face = torch.rand(2, 2, 24, 24, dtype=torch.float64, requires_grad=True)
    texture = torch.rand(2, 2, 12, 16, dtype=torch.float64, requires_grad=True)
    placement = place(landmarks, 24, 24)
    assert torch.autograd.gradcheck(lambda f, t: wear(f, placement, t, softness), (face, texture))
    assert torch.autograd.gradcheck(lambda f: unwrap(f, landmarks, (12, 16)), (face,))


def test_gradient_in_the_landmarks():
    """Moving the landmarks moves a smooth texture as finite differences say."""
    _, landmarks = faces(1, 48, 48, spread=0.0)
    landmarks = landmarks.double().requires_grad_()
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64).expand(1, 1, 24, 32)
    face = torch.zeros(1, 1, 48, 48, dtype=torch.float64)
    core = region(landmarks.detach(), 48, 48, 0.1) == 1
    (gradient,) = torch.autograd.grad(wear(face, landmarks, ramp)[core].sum(), landmarks)
    step = torch.zeros_like(landmarks)
    step[0, 33, 0] = 1e-4
    with torch.no_grad():
        numeric = (
            wear(face, landmarks + step, ramp)[core].sum() - wear(face, landmarks - step, ramp)[core].sum()
        ) / 2e-4
    assert torch.allclose(gradient[0, 33, 0], numeric, rtol=0.02)


def test_texture_coordinates_move_with_the_landmarks_as_finite_differences_say():
    _, landmarks = faces(1, 20, 20, spread=0.1)
    assert torch.autograd.gradcheck(lambda points: place(points, 20, 20).grid, (landmarks.double().requires_grad_(),))


def test_profile_faces_with_coinciding_landmarks_give_no_nan():
    face, landmarks = faces(3)
    landmarks[0, :8] = landmarks[0, 0]  # one cheek is out of sight
    landmarks[1, :, 0] = 80.0  # everything on a line
    landmarks[2] = 40.0  # everything in a point
    landmarks.requires_grad_()
    texture = torch.rand(3, 3, *masking.TEXTURE, requires_grad=True)
    worn = wear(face, landmarks, texture, 0.03)
    worn.sum().backward()
    assert torch.isfinite(worn).all()
    assert torch.isfinite(texture.grad).all() and torch.isfinite(landmarks.grad).all()
    assert torch.equal(worn[1:], face[1:])


def test_landmarks_outside_the_frame():
    face, landmarks = faces(2)
    landmarks = landmarks + torch.tensor([60.0, 50.0])
    texture = torch.rand(2, 3, *masking.TEXTURE)
    assert torch.isfinite(wear(face, landmarks, texture, 0.03)).all()
    assert torch.isfinite(unwrap(face, landmarks)).all()
    assert torch.equal(wear(face, landmarks + 500, texture), face)


def test_no_holes_inside():
    _, landmarks = faces(8, spread=1.0)
    covered = region(landmarks, 160, 160)[:, 0]
    neighbours = torch.nn.functional.avg_pool2d(covered[:, None], 3, 1, 1)[:, 0]
    assert not ((covered == 0) & (neighbours > 8 / 9 - 1e-3)).any()


def test_coordinates_stay_exact_under_autocast():
    face, landmarks = faces(2)
    texture = torch.rand(2, 3, *masking.TEXTURE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = wear(face, landmarks, texture, 0.03)
    assert torch.equal(half, wear(face, landmarks, texture, 0.03))


def test_wrong_shapes_are_named():
    face, landmarks = faces(2)
    with pytest.raises(GanMaskError, match=r"landmarks \(B, 68, 2\)"):
        unwrap(face, landmarks[:, :5])
    with pytest.raises(GanMaskError, match="texture"):
        wear(face, landmarks, torch.rand(1, 3, 72, 96))
    with pytest.raises(GanMaskError, match="NaN"):
        wear(face, landmarks * float("nan"), torch.rand(2, 3, 72, 96))


# ------------------------------------------------------------------------------------------- seamless placement


def textures(batch: int, seed: int = 0) -> torch.Tensor:
    small = torch.rand(batch, 3, 9, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, masking.TEXTURE, mode="bicubic", align_corners=False).clamp(0, 1)


def test_ones_own_texture_comes_back():
    own = textures(4)
    assert (seamless(own, own) - own).abs().max() <= 1e-5
    face, landmarks = faces(4)
    assert (put_on(face, landmarks, unwrap(face, landmarks), "seamless") - face).abs().max() <= 1e-5


@pytest.mark.parametrize("slope", [0.0, 0.3, -1.0])
def test_overall_colour_and_light_from_one_side_have_no_effect(slope):
    """A constant or affine ramp in the template, in each channel another."""
    texture, own = textures(2), textures(2, 1)
    v, u = torch.meshgrid(torch.linspace(-1, 1, 72), torch.linspace(-1, 1, 96), indexing="ij")
    ramp = torch.stack([0.2 + slope * u, -0.3 + slope * v, slope * (u - v)])
    assert (seamless(texture + ramp, own) - seamless(texture, own)).abs().max() < 1e-5


def test_no_step_at_the_seam():
    """Towards and beyond the seam the result is the wearer's own, however different the two textures are."""
    texture, own = torch.rand(2, 3, *masking.TEXTURE), textures(2, 1)
    change = (seamless(texture, own) - own).abs().amax((0, 1))
    opacity = masking.seam_opacity(texture)
    assert change[opacity == 0].max() == 0
    assert change[(opacity > 0) & (opacity < 0.1)].max() < 0.1  # rough textures of range 1
    assert change[opacity == 1].mean() > 0.2
    # The seam lies inside the mask's polygon everywhere: no background is taken for skin.
    corners = CANONICAL[list(masking.BOUNDARY)] * torch.tensor([96.0, 72.0])
    for x, y in corners.round().long().clamp(min=0).tolist():
        assert opacity[min(y, 71), min(x, 95)] == 0


def test_seamless_is_linear_in_both():
    a, b, o, p = (textures(1, seed) for seed in range(4))
    both = seamless(0.3 * a + 0.7 * b, 0.3 * o + 0.7 * p)
    assert torch.allclose(both, 0.3 * seamless(a, o) + 0.7 * seamless(b, p), atol=1e-6)
    assert torch.allclose(seamless(a, o), o + masking.structure(a) - masking.structure(o), atol=1e-6)


def test_seamless_has_exact_gradients():
    shape = (1, 2, 12, 16)
    texture, own = (torch.rand(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(seamless, (texture, own))
    face, landmarks = faces(1, 24, 24, 0.3)
    inputs = (face.double()[:, :2].mul(0.4).add(0.3).requires_grad_(), landmarks.double(), texture)
    assert torch.autograd.gradcheck(lambda *x: put_on(*x, "seamless"), inputs, nondet_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_to_full(dtype):
    texture, own = textures(2), textures(2, 1)
    with torch.autocast("cpu", dtype):
        half = seamless(texture.to(dtype), own.to(dtype))
    assert half.dtype == torch.float32
    assert (half - seamless(texture.to(dtype).float(), own.to(dtype).float())).abs().max() < 1e-6


def test_mean_value_cloning_beside_poissons_equation():
    """SciPy's sparse solver of the Laplace equation with the same edge: Poisson cloning (Perez et al. 2003).

    Mean value coordinates are not harmonic, but near. Measured: 0.007 on average for differences of spread 0.25.
    """
    from scipy.sparse import lil_matrix
    from scipy.sparse.linalg import spsolve

    texture, own = textures(1)[:, :1].double(), textures(1, 1)[:, :1].double()
    gather, spread, opacity = masking._seam(72, 96, torch.float64, torch.device("cpu"))
    membrane = ((own - texture).flatten(2) @ gather @ spread).view(72, 96).numpy()
    inside = opacity.numpy() > 0
    core = opacity.numpy() > 0.3  # the solver's edge: mean value's own membrane there
    number = np.cumsum(core.ravel()).reshape(core.shape) - 1
    system, right = lil_matrix((core.sum(), core.sum())), np.zeros(core.sum())
    for y, x in zip(*np.nonzero(core), strict=True):
        system[number[y, x], number[y, x]] = 4
        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if core[at]:
                system[number[y, x], number[at]] = -1
            else:
                assert inside[at]
                right[number[y, x]] += membrane[at]
    harmonic = spsolve(system.tocsr(), right)
    difference = np.abs(harmonic - membrane[core])
    assert membrane[core].std() > 0.1  # there was something to spread
    print(f"mean value against harmonic: mean {difference.mean():.4f}, largest {difference.max():.4f}")
    assert difference.mean() < 0.02 and difference.max() < 0.08


def test_placements_differ_and_mismatched_sizes_are_named():
    face, landmarks = faces(2)
    texture = textures(2)
    assert torch.equal(put_on(face, landmarks, texture, "paper", 0.03), wear(face, landmarks, texture, 0.03))
    worn = put_on(face, landmarks, texture, "seamless")
    outside = region(landmarks, 160, 160) == 0
    assert torch.equal(worn.where(outside, 0), face.where(outside, 0))
    assert worn.min() >= 0 and worn.max() <= 1
    placed = place(landmarks, 160, 160)
    assert torch.equal(put_on(face, landmarks, texture, "seamless", pixels=placed), worn)
    with pytest.raises(GanMaskError, match="differ"):
        seamless(texture, texture[:1])
