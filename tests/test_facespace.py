"""Adversarial faces: appearance, shape and light of a printed lower face."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from test_attacks import SURROGATES, wearers  # noqa: F401  (a fixture)

from gan_mask import attacks, facespace, masking, templates
from gan_mask.errors import GanMaskError
from gan_mask.facespace import Bounds, Face
from gan_mask.generator import Generator
from gan_mask.networks import GeneratorConfig

SIZE = masking.TEXTURE


def nothing(batch: int) -> Face:
    rows, columns = facespace.SHAPE
    return Face(
        torch.zeros(batch, facespace.COMPONENTS),
        torch.zeros(batch, 2, rows, columns),
        torch.zeros(batch, 1, 2 * rows, 2 * columns),
    )


@pytest.fixture(scope="module")
def printed() -> torch.Tensor:
    return templates.load_all(["face-002", "face-010", "face-030"])


def test_no_change_changes_nothing(printed: torch.Tensor) -> None:
    assert (facespace.paint(printed, nothing(3), facespace.basis(SIZE)) - printed).abs().max() < 1e-5


def test_every_change_vanishes_at_the_seam(printed: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = facespace.basis(SIZE)
    outside = masking.seam_opacity(printed) == 0
    for i in range(3):
        face = [*nothing(3)]
        face[i] = torch.randn(face[i].shape, generator=generator) * (2.0, 0.05, 0.1)[i]
        change = facespace.paint(printed, Face(*face), basis) - printed
        assert change[..., outside].abs().max() < 2e-3  # of the basis in half precision
        assert change.abs().mean() > 2e-3


def test_the_basis_has_the_moments_of_the_people_that_it_is_made_of() -> None:
    """NumPy's covariance of the coordinates of all views: the identity matrix, and nearly all of their variance."""
    forms = runpy.run_path(str(REPOSITORY / "data_prep/make_basis.py"))["forms"]()
    basis = facespace.basis(SIZE)
    inside = (forms - basis.mean).flatten(1).numpy()
    directions = basis.components.flatten(1).numpy()
    places = inside @ directions.T / np.square(directions).sum(1)
    assert np.allclose(np.cov(places.T, bias=True), np.eye(facespace.COMPONENTS), atol=0.05)
    rest = inside - places @ directions
    assert np.square(rest).sum() < 0.02 * np.square(inside).sum()


def test_appearance_moves_the_coordinates_by_what_it_says(printed: torch.Tensor) -> None:
    basis = facespace.basis(SIZE)
    before = facespace.coordinates(printed, basis)
    wanted = torch.zeros(3, facespace.COMPONENTS)
    wanted[:, 4] = torch.tensor([1.0, -0.5, 2.0])
    changed = facespace.paint(printed, nothing(3)._replace(appearance=wanted), basis)
    assert (facespace.coordinates(changed, basis) - before - wanted).abs().max() < 0.1  # the seam's fade counts twice
    assert (
        facespace.implausible(changed + 3 * basis.components[0], basis) > facespace.implausible(printed, basis)
    ).all()


def test_displacement_is_that_of_scipy(printed: torch.Tensor) -> None:
    from scipy.ndimage import map_coordinates

    by = torch.zeros(1, 2, *SIZE)
    by[0, 0, 20:50, 30:60], by[0, 1, 20:50, 30:60] = 0.02, -0.01  # of the width: 1.92 and -0.96 texels
    ours = facespace.displaced(printed[:1], by)[0, 0].numpy()
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    inside = by[0, 0].numpy() > 0
    expected = map_coordinates(printed[0, 0].numpy(), [y - 0.96 * inside, x + 1.92 * inside], order=1, mode="nearest")
    assert np.abs(ours - expected).max() < 1e-4


def test_bounds_hold_and_control_points_are_averaged() -> None:
    """As SciPy's filter does it: without, recognisers are dodged by scribbles."""
    from scipy.ndimage import uniform_filter

    bounds = Bounds(2.0, 0.05, 0.0)
    raw = [torch.randn_like(part) * 3 for part in nothing(2)]
    face = bounds.face(raw)
    assert face.appearance.abs().max() <= 2 and face.shape.abs().max() <= 0.05 and (face.light == 0).all()
    expected = uniform_filter(0.05 * raw[1].tanh().numpy(), (1, 1, 3, 3), mode="nearest")
    assert np.allclose(face.shape.numpy(), expected, atol=1e-6)


def test_other_sizes_of_texture_have_the_same_basis_smaller() -> None:
    small = facespace.basis((36, 48))
    assert small.components.shape == (facespace.COMPONENTS, 36, 48)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    made = Generator(
        GeneratorConfig(
            texture_height=24, texture_width=32, widths=(8, 16), heads=facespace.Face._fields, placement="seamless"
        )
    )
    for parameter in made.net.face.parameters():  # away from "no change", where it begins
        torch.nn.init.normal_(parameter, std=0.2)
    return made.requires_grad_(False)


def test_refining_begins_at_the_generators_face(wearers, generator: Generator) -> None:  # noqa: F811
    """And with no step left it is that face."""
    refine = attacks.Options(refine=1, placement="seamless")
    method = attacks.method("generator", generator, SURROGATES, refine)
    assert isinstance(method, attacks.AdvFace)
    adapted = attacks.dm_adapted(*wearers)
    begun = method.begin_at(wearers.faces, wearers.landmarks, adapted)
    painted = method.paint(adapted, begun)
    assert (painted - generator.texture(*wearers)).abs().max() < 1e-6
    assert (painted - adapted).abs().mean() > 1e-3
    assert method.placement == "seamless"


@pytest.mark.parametrize("heads", [facespace.Face._fields, ("filter", "residual"), ("shape", "residual")])
def test_strength_leads_from_the_template_to_the_mask_as_trained(wearers, heads: tuple[str, ...]) -> None:  # noqa: F811
    torch.manual_seed(1)
    made = Generator(
        GeneratorConfig(texture_height=24, texture_width=32, widths=(8, 16), heads=heads, placement="seamless")
    ).requires_grad_(False)
    for head in (made.net.face, getattr(made.net, "heads", None)):
        for parameter in head.parameters() if head is not None else ():
            torch.nn.init.normal_(parameter, std=0.2)
    template = attacks.dm_adapted(*wearers).clamp(0, 1)  # a generator paints colours that exist

    def change(strength: float) -> float:
        method = attacks.method("generator", made, options=attacks.Options(strength=strength))
        return float((method.apply(*wearers).textures - template).abs().mean())

    changes = [change(strength) for strength in (0, 0.25, 0.5, 1)]
    assert changes[0] < 1e-5
    assert changes == sorted(changes) and changes[2] < 0.8 * changes[3]
    unasked = attacks.method("generator", made).apply(*wearers).textures
    assert torch.equal(
        unasked, attacks.method("generator", made, options=attacks.Options(strength=1.0)).apply(*wearers).textures
    )


def test_refinement_stays_within_the_strength_that_is_asked_for(wearers, generator: Generator) -> None:  # noqa: F811
    weaker = attacks.Options(refine=1, strength=0.5, placement="seamless")
    method = attacks.method("generator", generator, SURROGATES, weaker)
    adapted = attacks.dm_adapted(*wearers)
    begun = method.begin_at(wearers.faces, wearers.landmarks, adapted)
    assert (method.paint(adapted, begun) - generator.texture(*wearers, strength=0.5)).abs().max() < 1e-6
    assert method.bounds == generator.net.bounds.scaled(0.5)


def test_refining_needs_a_generator_of_faces_and_surrogates() -> None:
    old = Generator(GeneratorConfig(texture_height=24, texture_width=32, widths=(8, 16)))
    with pytest.raises(GanMaskError, match="--refine.*filter, residual"):
        attacks.method("generator", old, SURROGATES, attacks.Options(refine=5))
    with pytest.raises(GanMaskError, match="--refine needs surrogates"):
        attacks.method("generator", old, None, attacks.Options(refine=5))


def test_advface_comes_nearer_to_its_goal_within_its_bounds(wearers) -> None:  # noqa: F811
    from test_attacks import short_of_goal

    options = attacks.Options(steps=30, face_rate=0.15, plausible=0.0, patience=0, diversity=0.0)
    method = attacks.AdvFace(SURROGATES, options)
    method.bounds = Bounds(4.0, 0.1, 0.4)
    texture = method.apply(*wearers).textures
    before, after = short_of_goal(wearers.templates, wearers), short_of_goal(texture, wearers)
    assert (after <= before + 1e-6).all() and after.mean() < 0.9 * before.mean()
    assert texture.min() >= 0 and texture.max() <= 1


def test_heads_are_a_list_and_what_they_do_not_name_is_off() -> None:
    from gan_mask.networks import generator_config

    assert generator_config({"heads": "both"}).heads == ("filter", "residual")  # as checkpoints of before say
    only = Generator(GeneratorConfig(texture_height=24, texture_width=32, widths=(8, 16), heads=("shape",)))
    assert only.net.bounds == (0.0, 0.08, 0.0)
    mixed = Generator(
        GeneratorConfig(texture_height=24, texture_width=32, widths=(8, 16), heads=("appearance", "residual"))
    )
    assert mixed.net.face is not None and mixed.net.heads.out_channels == 12
    for wrong in ((), ("nose",)):
        with pytest.raises(GanMaskError, match="heads.*appearance, shape, light, filter, residual"):
            generator_config({"heads": wrong})
