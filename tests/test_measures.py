"""Verification, identification, intervals and naturalness, against scikit-learn, brute force and theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from gan_mask.errors import GanMaskError
from gan_mask.evaluation import identification, intervals, naturalness, protocol, verification

RANDOM = np.random.default_rng(0)
MATED, IMPOSTOR = RANDOM.normal(0.6, 0.15, 400), RANDOM.normal(0.1, 0.15, 3000)


def test_roc_is_scikit_learns() -> None:
    far, tar = verification.roc(MATED, IMPOSTOR)
    label = np.repeat([1, 0], [len(MATED), len(IMPOSTOR)])
    expected_far, expected_tar, _ = roc_curve(label, np.concatenate([MATED, IMPOSTOR]), drop_intermediate=False)
    best = {round(f, 9): t for f, t in zip(expected_far, expected_tar, strict=True)}  # the last has the most accepted
    first = {round(f, 9): t for f, t in zip(expected_far[::-1], expected_tar[::-1], strict=True)}
    for f, t in zip(far, tar, strict=True):
        assert first[round(f, 9)] - 1e-9 <= t <= best[round(f, 9)] + 1e-9
    assert len(far) <= 200 and (np.diff(far) > 0).all() and (np.diff(tar) >= 0).all() and far[-1] == 1


def test_roc_with_ties_accepts_equal_scores_together() -> None:
    far, tar = verification.roc(np.array([0.5, 0.5, 0.2]), np.array([0.5, 0.1, 0.1, 0.1]))
    assert dict(zip(far, tar, strict=True)) == pytest.approx({0.25: 2 / 3, 1.0: 1.0})


def test_tar_counts_lost_faces_as_rejected() -> None:
    assert verification.accepted(np.array([0.9, 0.5, np.nan, 0.1]), 0.5).mean() == 0.5


@pytest.mark.parametrize("separation", [1.0, 2.0, 3.0])
def test_eer_of_two_normal_distributions(separation: float) -> None:
    random = np.random.default_rng(1)
    rate = verification.eer(random.normal(separation, 1, 100_000), random.normal(0, 1, 100_000))
    assert rate == pytest.approx(0.5 * math.erfc(separation / 2 / math.sqrt(2)), abs=0.003)


def test_eer_at_its_ends() -> None:
    assert verification.eer(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == 0
    assert verification.eer(np.array([0.1, 0.2]), np.array([0.8, 0.9])) == 1


def test_accuracy_is_the_best_threshold_of_the_other_folds() -> None:
    scores = np.concatenate([MATED[:200], IMPOSTOR[:200]])
    same, folds = np.repeat([True, False], 200), np.arange(400) % 5
    rates = []
    for fold in range(5):
        train, test = folds != fold, folds == fold
        candidates = np.linspace(-0.5, 1.2, 20_001)
        right = [((scores[train] >= c) == same[train]).mean() for c in candidates]
        rates.append(((scores[test] >= candidates[int(np.argmax(right))]) == same[test]).mean())
    mean, deviation = verification.accuracy(scores, same, folds)
    assert mean == pytest.approx(np.mean(rates), abs=0.011) and 0 < deviation < 0.1


def test_the_best_threshold_does_not_part_equal_scores() -> None:
    scores, same = np.array([3.0, 2.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False, False])
    at = verification._best_threshold(scores, same)
    assert ((scores >= at) == same).sum() == max(((scores >= c) == same).sum() for c in (0, 1.5, 2.5, 4))


def test_ranks_are_brute_forces() -> None:
    similarity = RANDOM.integers(0, 6, (30, 12)).astype(float)  # with many ties
    mate = RANDOM.integers(0, 12, 30)
    expected = [sum(row[j] >= row[m] for j in range(12)) for row, m in zip(similarity, mate, strict=True)]
    assert identification.ranks(similarity, mate).tolist() == expected
    similarity[3] = np.nan
    assert identification.ranks(similarity, mate)[3] == 12


def test_fnir_by_hand() -> None:
    top, right = np.array([0.9, 0.8, 0.5, 0.95]), np.array([True, True, True, False])
    stranger = np.linspace(0.01, 0.7, 1000)
    rate, at = identification.fnir(top, right, stranger, 0.01)
    assert (stranger >= at).mean() == pytest.approx(0.01) and rate == 0.5  # 0.5 is below, the last is somebody else
    with pytest.raises(GanMaskError, match="1000 probes"):
        identification.fnir(top, right, stranger[:999], 0.01)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Photos of one person agree with each other; people differ."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        person = random.beta(2, 3, 60)
        identities = np.repeat(np.arange(60), 5)
        values = (random.random(300) < person[identities]).astype(float)
        cell = intervals.interval(values, identities, draws=300)
        covered += float(cell["low"] or 0) <= 0.4 <= float(cell["high"] or 0)
    assert 0.9 <= covered / 200 <= 0.985


def test_a_statistic_that_is_a_mean_has_the_means_interval() -> None:
    values, identities = RANDOM.random(200), np.arange(200) // 4
    one = intervals.interval(values, identities)
    other = intervals.of_statistic(lambda rows: float(values[rows].mean()), identities, draws=2000)
    for key in ("rate", "low", "high"):
        assert other[key] == pytest.approx(one[key], abs=0.006)
    assert intervals.of_statistic(lambda rows: 0.0, np.array([])) == intervals.NOTHING


# ------------------------------------------------------------------------------------------- naturalness


def test_frechet_distance_of_gaussians() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(0, 1, (20_000, 4)), random.normal(0, 2, (20_000, 4)) + np.array([1, 0, 0, 2])
    assert naturalness.frechet_distance(a, b) == pytest.approx(5 + 4 * (1 + 4 - 2 * 2), rel=0.05)
    assert naturalness.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_near_zero_for_one_distribution_and_grows_with_a_shift() -> None:
    random = np.random.default_rng(4)
    a, b, c = random.normal(1, 1, (300, 8)), random.normal(1, 1, (300, 8)), random.normal(1.5, 1, (300, 8))
    assert abs(naturalness.kernel_distance(a, b)) < 0.1 < naturalness.kernel_distance(c, b)


def test_realism_is_a_half_for_real_faces_and_one_for_what_anybody_sees() -> None:
    random = np.random.default_rng(5)
    people = np.arange(200) // 2
    real, same, other = (random.normal(mean, 1, (200, 10)) for mean in (0, 0, 3))
    assert naturalness.realism(same, real, people, people)["rate"] == pytest.approx(0.5, abs=0.12)
    assert naturalness.realism(other, real, people, people)["rate"] > 0.99
    assert naturalness.realism(same[:4], real, people[:4], people)["rate"] is None  # two people make no five folds


class Dark:
    """In place of LPIPS: a mean difference, and features from the picture's blocks."""

    class net:
        @staticmethod
        def scaling_layer(x: torch.Tensor) -> torch.Tensor:
            return x

        @staticmethod
        def net(x: torch.Tensor) -> list[torch.Tensor]:
            return [torch.nn.functional.adaptive_avg_pool2d(x, 4)]

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_measures_are_scikit_images_and_the_mask_alone_differs_more(prepared, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image
    from skimage.metrics import structural_similarity

    from gan_mask import masking, templates
    from gan_mask.data import PreparedSet
    from gan_mask.faces import to_8_bit

    photos = PreparedSet(prepared, "test")
    items = [photos[i] for i in range(12)]
    faces, landmarks = torch.stack([i["face"] for i in items]), torch.stack([i["landmarks"] for i in items])
    paths, pictures = {}, {}
    for name, template in (("dm", "face-001"), ("plain", "plain-blue")):
        pictures[name] = to_8_bit(masking.wear(faces, landmarks, templates.load(template)[None].expand(12, -1, -1, -1)))
        paths[name] = [tmp_path / f"{name}{i}.png" for i in range(12)]
        for path, picture in zip(paths[name], pictures[name], strict=True):
            Image.fromarray(picture).save(path)
    real = torch.stack([PreparedSet(prepared, "train").faces(i) for i in range(36)])
    people, others = np.arange(12) // 3, np.arange(36) // 3
    cells = naturalness.measure(paths, real, landmarks, people, others, Dark(), "cpu")  # type: ignore[arg-type]
    expected = np.mean([structural_similarity(a, b, channel_axis=2) for a, b in zip(*pictures.values(), strict=True)])
    assert cells["plain"]["SSIM to DM"]["rate"] == pytest.approx(expected, abs=0.005)
    assert float(cells["plain"]["LPIPS to DM, mask"]["rate"] or 0) > 2 * float(
        cells["plain"]["LPIPS to DM"]["rate"] or 0
    )
    assert "LPIPS to DM" not in cells["dm"] and "Frechet distance (AlexNet)" not in cells["dm"]
    assert cells["plain"]["kernel distance (AlexNet)"]["rate"] is not None


def test_a_real_valued_measure_has_no_exact_interval() -> None:
    nothing = intervals.interval(np.zeros(12), np.arange(12), rate=False)
    assert (nothing["rate"], nothing["low"], nothing["high"]) == (0, 0, 0)
    one = intervals.interval(np.ones(12), np.arange(12), rate=False)
    assert (one["low"], one["high"]) == (1, 1)


def test_what_is_spread_over_people_takes_everybody_before_anybody_twice() -> None:
    people = np.repeat([3, 5, 7, 9], [50, 1, 4, 20])
    for count in (1, 3, 4, 7, 75, 100):
        chosen = protocol.spread(people, count, seed=1)
        assert len(chosen) == min(count, 75) and (np.diff(chosen) > 0).all()
        seen = np.bincount(people[chosen], minlength=10)[[3, 5, 7, 9]]
        assert all(n == size or n >= seen.max() - 1 for n, size in zip(seen, (50, 1, 4, 20), strict=True))
    assert not np.array_equal(protocol.spread(people, 9, 1), protocol.spread(people, 9, 2))
