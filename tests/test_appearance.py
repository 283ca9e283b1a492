"""Measures of looks: steps and blurs of known size, and classifiers that must or cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from skimage.color import deltaE_ciede2000, rgb2lab

from gan_mask.errors import GanMaskError
from gan_mask.evaluation import appearance, gate, realism
from gan_mask.landmarks import MEAN_FACE

LANDMARKS = MEAN_FACE.numpy()
SIZES = [80, 160, 900]


def landmarks_of(side: int) -> np.ndarray:
    """The mean face, upright in the middle of a square picture."""
    low, high = LANDMARKS.min(0), LANDMARKS.max(0)
    return (side * (0.2 + 0.6 * (LANDMARKS - low) / (high - low))).astype(np.float32)


def uniform(side: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy()


def difference(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    return float(deltaE_ciede2000(*(rgb2lab(np.array(c, np.uint8)[None, None])[0, 0] for c in (a, b))))


def noisy(side: int, seed: int = 0) -> np.ndarray:
    """Skin with a little grain."""
    grain = np.random.default_rng(seed).normal(0, 8, (side, side, 1))
    return np.clip(np.array([190, 140, 120]) + grain, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("side", SIZES)
def test_a_picture_against_itself_is_exactly_0_1_and_0(side: int) -> None:
    picture = noisy(side)
    assert appearance.measure(picture, picture.copy(), landmarks_of(side)) == {
        "edge step": 0.0,
        "fine detail": 1.0,
        "skin tone difference": 0.0,
    }


SKIN, MASK = (200, 150, 130), (150, 110, 90)


@pytest.mark.parametrize("side", SIZES)
@pytest.mark.parametrize("turned", [0, 2])
def test_a_step_of_known_size_at_the_edge_is_measured_as_it_is(side: int, turned: int) -> None:
    points = landmarks_of(side)
    bare, masked = uniform(side, SKIN), uniform(side, SKIN)
    masked[appearance.region(points, side, side)] = MASK
    if turned:  # a face that is upside down
        bare, masked, points = bare[::-1, ::-1], masked[::-1, ::-1], side - 1 - points
    found = appearance.measure(bare, masked, points)
    assert found["skin tone difference"] == pytest.approx(difference(SKIN, MASK))
    # Pixels at the edge are either or: in small pictures bands of four pixels mix a little.
    assert found["edge step"] == pytest.approx(difference(SKIN, MASK), rel=0.05 if side == 900 else 0.2)


def test_a_seam_further_in_is_not_overlooked_and_one_that_was_there_does_not_count() -> None:
    side = 900
    points = landmarks_of(side)
    bare, masked = uniform(side, SKIN), uniform(side, SKIN)
    rows = np.arange(side)[:, None]
    edge = min(points[[1, 28, 15], 1])  # above every point of the upper edge
    # The mask begins 5 % of its width further in.
    shifted = points + np.array([0, 0.05 * (points[15, 0] - points[1, 0])], np.float32)
    masked[appearance.region(shifted, side, side)] = MASK
    assert appearance.measure(bare, masked, points)["edge step"] == pytest.approx(difference(SKIN, MASK), rel=0.15)
    bare[rows[:, 0] > edge] = MASK  # a step of the bare face's own, in both pictures
    assert appearance.measure(bare, bare.copy(), points)["edge step"] == 0
    smooth = np.broadcast_to(np.linspace(200, 150, side)[:, None, None], (side, side, 3)).astype(np.uint8)
    stepped = smooth.copy()
    stepped[appearance.region(points, side, side)] -= 40
    assert appearance.measure(stepped, smooth, points)["edge step"] < 0  # less than the bare face's own


def test_fine_detail_of_a_known_blur_is_what_its_kernel_leaves() -> None:
    """White noise through kernels k: RMS is the norm of (identity - Gaussian) * k."""
    side, sigma = 400, 1.0
    bare = np.repeat(np.random.default_rng(1).normal(128, 25, (side, side, 1)).clip(0, 255), 3, 2).astype(np.uint8)
    masked = np.round(gaussian_filter(bare.astype(float), (sigma, sigma, 0))).astype(np.uint8)
    impulse = np.zeros(41)
    impulse[20] = 1
    low, blur = (np.outer(g, g) for g in (gaussian_filter1d(impulse, s) for s in (appearance.SIGMA, sigma)))
    identity = np.outer(impulse, impulse)
    spectrum = [np.abs(np.fft.fft2(k)) for k in (identity - low, blur)]
    expected = np.sqrt((spectrum[0] ** 2 * spectrum[1] ** 2).sum() / (spectrum[0] ** 2).sum())
    found = appearance.measure(bare, masked, landmarks_of(side))["fine detail"]
    assert 0.1 < expected < 0.6 and found == pytest.approx(expected, rel=0.03)
    patch = bare.copy()
    patch[appearance.region(landmarks_of(side), side, side)] = 250
    assert appearance.measure(bare, patch, landmarks_of(side))["fine detail"] < 0.01  # its hard edge is no detail
    halved = np.clip(128 + 0.5 * (bare.astype(float) - 128), 0, 255).astype(np.uint8)
    assert appearance.measure(bare, halved, landmarks_of(side))["fine detail"] == pytest.approx(0.5, abs=0.01)


def test_what_lies_far_from_the_mask_does_not_matter() -> None:
    bare, masked, points = noisy(160), noisy(160, 1), landmarks_of(160)
    large = [np.pad(p, ((700, 100), (300, 900), (0, 0)), mode="wrap") for p in (bare, masked)]
    here = appearance.measure(bare, masked, points)
    there = appearance.measure(*large, points + np.array([300, 700], np.float32))
    assert here == pytest.approx(there, rel=1e-3)


def test_what_cannot_be_measured_is_nan_and_bad_input_says_what_is_wrong() -> None:
    plain, points = uniform(160, SKIN), landmarks_of(160)
    assert np.isnan(appearance.measure(plain, plain, points)["fine detail"])  # no detail to compare with
    outside = appearance.measure(plain, plain, points + 1000)
    assert all(np.isnan(value) for value in outside.values())
    with pytest.raises(GanMaskError, match="one size"):
        appearance.measure(plain, uniform(100, SKIN), points)
    with pytest.raises(GanMaskError, match="68, 2"):
        appearance.measure(plain, plain, points[:5])


def test_of_a_method_the_bad_end_counts_and_people_are_resampled() -> None:
    values = {name: np.arange(101.0) for name in appearance.MEASURES}
    values["fine detail"] = np.append(np.arange(100.0), np.nan)
    cells = appearance.table(values, np.arange(101) // 2)
    assert cells["edge step median"]["rate"] == 50 and cells["edge step p90"]["rate"] == 90
    assert cells["fine detail p10"]["rate"] == pytest.approx(9.9) and cells["fine detail p10"]["probes"] == 100
    assert cells["edge step p90"]["low"] < 90 < cells["edge step p90"]["high"]  # type: ignore[operator]
    nothing = appearance.table({name: [np.nan] for name in appearance.MEASURES}, np.arange(1))
    assert nothing["edge step median"]["rate"] is None


# ------------------------------------------------------------------------------------------- trained classifiers


def test_nobody_is_in_both_halves_which_are_alike_in_size() -> None:
    people = np.random.default_rng(0).zipf(1.7, 300) % 60
    half = realism.halves(people, 0)
    assert not set(people[half]) & set(people[~half])
    largest = np.unique(people, return_counts=True)[1].max()
    assert abs(int(half.sum()) - 150) <= largest / 2 + 1
    assert (realism.halves(people, 0) == half).all()


def test_the_control_has_no_photo_twice() -> None:
    index = np.array([0, 1, 2, 3, 4, 8, 9])
    mate = np.array([1, 2, 0, 4, 3, 9, 8])
    rows = realism.pairs_apart(index, mate)
    assert rows.tolist() == [0, 3, 5]
    used = np.concatenate([index[rows], mate[rows]])
    assert len(set(used)) == len(used)


def test_a_small_cnn_tells_other_pictures_and_cannot_tell_the_same_kind() -> None:
    people = np.arange(36) // 3
    kind = [np.stack([noisy(32, 1000 * k + i) for i in range(36)]) for k in range(2)]
    marked = kind[0].copy()
    marked[:, 16:, 8:24] -= 25
    cell = realism.cell_of(kind[0], marked, people, None, 0, "cpu")
    assert cell["rate"] > 0.97 and cell["probes"] == 36  # type: ignore[operator]
    assert realism.cell_of(kind[0], kind[1], people, None, 0, "cpu")["rate"] == pytest.approx(0.5, abs=0.2)
    state = torch.get_rng_state()
    few = [realism.cell_of(kind[0][:9], kind[1][:9], people[:9], None, 0, "cpu") for _ in range(2)]
    assert few[0] == few[1]
    assert (torch.get_rng_state() == state).all()  # of nobody else's
    assert realism.cell_of(kind[0][:3], kind[1][:3], people[:3], None, 0, "cpu")["rate"] is None  # one person


def test_alexnet_is_tuned_in_a_copy() -> None:
    """An untrained AlexNet of LPIPS learns; what was given stays as it was, since LPIPS is measured with it, too."""
    import lpips

    from gan_mask.pretrained.perceptual import Perceptual

    torch.manual_seed(0)
    given = Perceptual(lpips.LPIPS(net="alex", pnet_rand=True, verbose=False))
    before = [p.clone() for p in given.parameters()]
    net = realism._alexnet(given)
    assert all(p.requires_grad for name, p in net.named_parameters() if "layer" not in name)
    assert net(torch.rand(2, 3, 64, 64)).flatten().tolist() == [0, 0]  # says nothing before it has learnt
    net(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all((a == b).all() and not b.requires_grad for a, b in zip(before, given.parameters(), strict=True))


# ------------------------------------------------------------------------------------------- limits

SETS = {"surrogates": (["a"], ["d"]), "held-out": (["b"], ["e"])}


def cell(rate: float | None) -> dict[str, float | int | None]:
    return {"rate": rate, "low": rate, "high": rate, "probes": 10}


LOOKS = {
    method: {"edge step p90": cell(step), "fine detail p10": cell(0.6), realism.TRAINED: cell(auc)}
    for method, step, auc in (("none", 0.0, 0.5), ("dm", 12.0, 1.0), ("mf2m", 1.0, None), ("generator", 3.0, 0.95))
}


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("generator/edge_step_p90<=2", ["looks/generator"]),
        ("edge step p90 <= 5", []),  # dm is no attack
        ("dm/edge_step_p90<=5", ["looks/dm"]),
        ("fine_detail_p10>=0.55", []),
        ("realism_auc<=0.9", ["looks/mf2m", "looks/generator"]),  # unmeasurable is not kept
    ],
)
def test_limits_of_looks(text: str, broken: list[str]) -> None:
    limit = gate.parse(text, SETS, ["dm", "mf2m", "generator"], realism.TRAINED)
    reasons = gate.broken(limit, {}, 0.001, LOOKS)
    assert [reason.split(": ")[1].split(" ")[0] for reason in reasons] == broken
    assert not any("FAR" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("text", "trained", "remedy"),
    [
        ("realism_auc<=0.9", None, "--naturalness"),
        ("realism_auc<=0.9", realism.SMALL, "measures realism_auc_small_cnn"),
        ("realism_auc_small_cnn<=0.9", realism.TRAINED, "measures realism_auc$"),
        ("held-out/edge_step_p90<=2", None, "leave out held-out/"),
        ("edge_step_p95<=2", None, "looks: edge_step_median, edge_step_p90"),
    ],
)
def test_a_limit_of_looks_that_means_nothing_is_refused(text: str, trained: str | None, remedy: str) -> None:
    with pytest.raises(GanMaskError, match=remedy):
        gate.parse(text, SETS, ["mf2m"], trained)


# ------------------------------------------------------------------------------------------- photos at their own size


def test_looks_on_photos_are_those_of_the_largest_face_at_its_own_size(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from types import SimpleNamespace

    from PIL import Image

    from gan_mask import attacks
    from gan_mask.evaluation import large_photos
    from gan_mask.evaluation.run import Experiment
    from gan_mask.networks import GeneratorConfig

    points = landmarks_of(300)
    for person, seed in (("ann", 1), ("ann", 2), ("bob", 3)):
        (tmp_path / "in" / person).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy(300, seed)).save(tmp_path / "in" / person / f"{seed}.png")
    (tmp_path / "in" / "bob" / "broken.jpg").write_bytes(b"no photo")
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "bob" / "nobody.png")

    def find(images: list[np.ndarray]) -> list[list[SimpleNamespace]]:
        return [[SimpleNamespace(landmarks=points)] if len(image) == 300 else [] for image in images]

    bank = torch.full((2, 3, 72, 96), 0.5)
    hard = attacks.Options(softness=0.0)
    methods = {name: attacks.method(name, options=hard) for name in ("none", "dm")}
    e = Experiment(
        tmp_path, None, None, methods, bank, (72, 96), False, {}, {}, np.array([], int),  # type: ignore[arg-type]
        SimpleNamespace(find=find), "cpu",  # type: ignore[arg-type]
    )  # fmt: skip
    result = large_photos.measure(e, GeneratorConfig(), str(tmp_path / "in"))
    assert (result["photos"], result["people"]) == (3, 2)
    assert result["left_out"].keys() == {"bob/broken.jpg", "bob/nobody.png"}
    assert result["methods"]["none"]["edge step p90"]["rate"] == 0
    assert result["methods"]["none"]["fine detail p10"]["rate"] == 1
    grey = result["methods"]["dm"]
    assert grey["fine detail median"]["rate"] < 0.03  # a uniform texture
    tone = difference((190, 140, 120), (128, 128, 128))
    assert grey["skin tone difference median"]["rate"] == pytest.approx(tone, rel=0.1)
    assert grey["edge step median"]["rate"] == pytest.approx(tone, rel=0.2)
    width = points[15, 0] - points[1, 0]
    with Image.open(tmp_path / result["faces"]["dm"][0]) as face:
        assert face.width == pytest.approx(points[:, 0].max() - points[:, 0].min() + 0.5 * width, abs=3)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "empty" / "ann_0001.png")
    with pytest.raises(GanMaskError, match="no face found in any of its 1 photos"):
        large_photos.measure(e, GeneratorConfig(), str(tmp_path / "empty"))
