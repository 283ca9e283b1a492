"""The methods, against networks small enough to read: their bounds, their goals, and that batches do not matter."""

from pathlib import Path
from typing import NamedTuple, get_args, get_type_hints

import pytest
import torch
from fakes import FakeDetector, FakeEmbedder
from torch import Tensor

from gan_mask import attacks, masking, templates
from gan_mask.attacks import MF2M, AdvNoiseDM, Options
from gan_mask.attacks.surrogates import Surrogates, evasion_terms
from gan_mask.augment import Draws, round_to_8_bit
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator
from gan_mask.landmarks import frame
from gan_mask.networks import GeneratorConfig
from gan_mask.sampling.options import SampleConfig

SURROGATES = Surrogates([FakeEmbedder()], [0.9], [FakeDetector()])
BOLD = {"filter_rate": 0.05, "smooth": 1.0}  # the fake detector wants the mask a good deal brighter
OPTIMISED = pytest.mark.parametrize("kind", [AdvNoiseDM, MF2M])


class Wearers(NamedTuple):
    faces: Tensor  # (8, 3, 64, 64)
    landmarks: Tensor  # (8, 68, 2)
    templates: Tensor  # (8, 3, 24, 32)


@pytest.fixture
def wearers(prepared: Path) -> Wearers:
    items = [PreparedSet(prepared, "train")[i] for i in range(8)]
    names = [f"face-{i + 1:03d}" for i in range(8)]
    return Wearers(
        torch.stack([item["face"] for item in items]),
        torch.stack([item["landmarks"] for item in items]),
        templates.load_all(names, (24, 32)),
    )


def short_of_goal(texture: Tensor, w: Wearers) -> Tensor:
    """Sum of the evasion hinges (B,) of the saved picture, with no augmentation."""
    masked = round_to_8_bit(masking.wear(w.faces, w.landmarks, texture, Options.softness))
    references = [FakeEmbedder()(w.faces, w.landmarks)[:, None]]
    draws = Draws(0, 0, range(len(masked)), len(masked), "cpu")
    terms = evasion_terms(masked, w.landmarks, references, SURROGATES, draws, 0.0, Options().goal)
    return torch.stack(list(terms.values())).sum(0)


def test_none_plain_and_dm_do_what_they_say(wearers):
    assert attacks.method("none").apply(*wearers) == (None, None, None)
    assert torch.equal(attacks.method("dm").apply(*wearers).textures, wearers.templates)
    plain = attacks.method("plain").apply(*wearers).textures
    assert plain is not None and torch.equal(plain[3], templates.load("plain-blue", (24, 32)))
    one_for_all = attacks.method("dm").apply(wearers.faces, wearers.landmarks, wearers.templates[:1]).textures
    assert one_for_all is not None and one_for_all.shape == wearers.templates.shape


def test_masks_are_what_an_8_bit_file_holds(wearers):
    bare, result = attacks.method("none").mask(*wearers)
    assert torch.equal(bare, wearers.faces) and result.textures is None
    masked, result = attacks.method("plain").mask(*wearers)
    worn = masking.wear(wearers.faces, wearers.landmarks, result.textures, 0.03)
    assert torch.equal((masked * 255).round(), (worn * 255).round())
    assert ((masked * 255) - (masked * 255).round()).abs().max() < 1e-4


def test_a_method_says_how_its_textures_are_worn():
    generator = Generator(
        GeneratorConfig(texture_height=24, texture_width=32, widths=(8, 16), placement="seamless", heads=("shape",))
    )
    of_generator = attacks.method("generator", generator, options=attacks.Options(softness=0.1))
    refined = attacks.method("generator", generator, SURROGATES, attacks.Options(refine=2))
    assert of_generator.texture_size == refined.texture_size == (24, 32)
    assert of_generator.placement == refined.placement == "seamless" and of_generator.softness == 0.1
    assert refined.optimises and not of_generator.optimises
    mf2m = attacks.method("mf2m", surrogates=SURROGATES, options=attacks.Options(placement="seamless", softness=0.2))
    assert (mf2m.texture_size, mf2m.placement, mf2m.softness) == (masking.TEXTURE, "seamless", 0.2)


def test_generator_is_its_texture(wearers):
    generator = Generator(GeneratorConfig(texture_height=24, texture_width=32, widths=(8, 16)))
    made = attacks.method("generator", generator).apply(*wearers).textures
    assert made is not None and torch.equal(made, generator.texture(*wearers))


@pytest.mark.parametrize("bound", [4 / 255, 30 / 255])
def test_advnoise_stays_within_its_bound_and_uses_it(wearers, bound):
    texture = AdvNoiseDM(SURROGATES, Options(steps=25, bound=bound)).apply(*wearers).textures
    change = (texture - wearers.templates).abs()
    assert change.max() <= bound + 1e-6 and change.mean() > bound / 4
    assert texture.min() >= 0 and texture.max() <= 1


@OPTIMISED
def test_optimising_comes_nearer_to_the_goal_than_dm_for_every_face(kind, wearers):
    before = short_of_goal(wearers.templates, wearers)
    after = short_of_goal(kind(SURROGATES, Options(**BOLD, steps=30)).apply(*wearers).textures, wearers)
    assert (after < 0.95 * before).all() and after.mean() < 0.9 * before.mean()


@OPTIMISED
def test_no_step_is_dm(kind, wearers):
    method = kind(SURROGATES, Options(steps=0))
    result = method.apply(*wearers)
    assert torch.equal(result.textures, wearers.templates)
    assert result.iterations.tolist() == [0] * 8


def test_mf2m_kernels_sum_to_one_whatever_the_optimiser_does(wearers):
    """So a template of one colour stays that colour, however it is filtered."""
    method = MF2M(SURROGATES, Options(kernel=3))
    colour = torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(2, 3, 24, 32)
    kernels, noise = method.variables(colour)
    assert kernels.shape == (2, 9, 24, 32)
    assert torch.allclose(method.paint(colour, [torch.randn_like(kernels), noise]), colour, atol=1e-5)


def test_mf2m_noise_is_bounded_and_textures_are_colours(wearers):
    method = MF2M(SURROGATES, Options(steps=15, bound=2 / 255, filter_rate=0.0))
    texture = method.apply(*wearers).textures
    assert (texture - wearers.templates).abs().max() <= 2 / 255 + 1e-6  # the filter stands still
    texture = MF2M(SURROGATES, Options(steps=15)).apply(*wearers).textures
    assert texture.min() >= 0 and texture.max() <= 1


def test_mf2m_smoothness_buys_a_smaller_change(wearers):
    rough, smooth = (MF2M(SURROGATES, Options(steps=15, smooth=s)).apply(*wearers).textures for s in (0.0, 30.0))
    assert (smooth - wearers.templates).abs().mean() < 0.7 * (rough - wearers.templates).abs().mean()


@OPTIMISED
def test_a_batch_equals_its_faces_one_by_one(kind, wearers):
    """In float64: MF2M's total variation turns float32 rounding into steps of its optimiser."""
    method = kind(SURROGATES, Options(steps=12))
    whole = Wearers(*(x.double() for x in wearers))
    together = method.apply(*whole)
    alone = [method.apply(*(x[i : i + 1] for x in whole)) for i in range(8)]
    assert torch.allclose(together.textures, torch.cat([result.textures for result in alone]), atol=1e-9)
    assert torch.equal(together.iterations, torch.cat([result.iterations for result in alone]))


@OPTIMISED
def test_the_seed_decides(kind, wearers):
    first, again, other = (kind(SURROGATES, Options(steps=8, seed=seed)).apply(*wearers).textures for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@OPTIMISED
def test_a_face_that_met_its_goal_keeps_the_texture_that_met_it(kind, wearers):
    options = {**BOLD, "steps": 60, "diversity": 0.0, "bound": 0.4, "step_size": 0.02}
    method = kind(SURROGATES, Options(**options, patience=1))
    texture, iterations, _ = method.apply(*wearers)
    done = iterations < 60
    assert done.sum() >= 4 and len(iterations.unique()) > 1  # faces of one batch end at different steps
    assert (short_of_goal(texture, wearers)[done] < 1e-5).all()
    # k looks at the goal, and a move after each but the last.
    face = int(iterations.argmin())
    unhurried = kind(SURROGATES, Options(**{**options, "steps": int(iterations[face]) - 1}, patience=0))
    assert torch.equal(texture[face], unhurried.apply(*wearers).textures[face])


@OPTIMISED
def test_patience_counts_steps_in_a_row_and_0_never_stops(kind, wearers):
    options = {**BOLD, "steps": 40, "diversity": 0.0, "bound": 0.4, "step_size": 0.02}
    used = {}
    for patience in (0, 1, 4):
        method = kind(SURROGATES, Options(**options, patience=patience))
        _, used[patience], seconds = method.apply(*wearers)
        assert (seconds > 0).all()
    assert (used[0] == 40).all()
    first = int(used[1].min())
    assert first + 3 <= used[4].min() <= used[0].min()


def test_gradients_reach_an_attack_inside_no_grad(wearers):
    with torch.no_grad():
        texture = AdvNoiseDM(SURROGATES, Options(steps=3)).apply(*wearers).textures
    assert not torch.equal(texture, wearers.templates) and not texture.requires_grad


def test_surrogates_of_one_kind_are_enough(wearers):
    for surrogates in (Surrogates([FakeEmbedder()], [0.9], []), Surrogates([], [], [FakeDetector()])):
        texture = AdvNoiseDM(surrogates, Options(steps=2)).apply(*wearers).textures
        assert not torch.equal(texture, wearers.templates)


def test_sample_offers_every_method_but_no_mask_and_dm_under_its_other_placement():
    """Its Literal is written out for type checkers, who cannot follow METHODS."""
    offered = get_args(get_type_hints(SampleConfig)["method"])
    assert list(offered) == [name for name in attacks.METHODS if name not in ("none", "dm-seamless")]


def test_errors_say_what_is_missing():
    with pytest.raises(
        GanMaskError, match="unknown method 'mf3m'; known: none, plain, dm, dm-seamless, advnoise-dm, mf2m"
    ):
        attacks.method("mf3m")
    with pytest.raises(GanMaskError, match="--checkpoint"):
        attacks.method("generator")
    for name in attacks.OPTIMISED:
        with pytest.raises(GanMaskError, match=f"'{name}' needs surrogates"):
            attacks.method(name)
        with pytest.raises(GanMaskError, match="--embedders or --detectors"):
            attacks.method(name, surrogates=Surrogates([], [], []))
    assert attacks.method("mf2m", surrogates=SURROGATES).optimises


def test_the_seed_of_an_evaluation_reaches_the_generators_noise():
    generator = Generator(GeneratorConfig(widths=(8, 16), noise=4)).eval()
    torch.nn.init.normal_(generator.net.down[0].film.weight)
    torch.nn.init.normal_(generator.net.heads.weight)
    face, points, template = torch.rand(1, 3, 64, 64), frame(64, 0.3)[None], torch.rand(1, 3, 72, 96)
    one, two = (attacks.method("generator", generator, None, attacks.Options(seed=seed)) for seed in (0, 7))
    assert torch.equal(one.apply(face, points, template).textures, generator.texture(face, points, template))
    assert torch.equal(two.apply(face, points, template).textures, generator.texture(face, points, template, seed=7))
    assert not torch.equal(one.apply(face, points, template).textures, two.apply(face, points, template).textures)
