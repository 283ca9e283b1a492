"""A recogniser as a classifier: numpy's comparison decides who is right, and other people's tools attack it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, embedded_photo
from PIL import Image
from torch import Tensor, nn

from gan_mask import region
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import as_classifier, load_embedder
from gan_mask.pretrained.protocol import Embedder

ANY = torch.zeros(1, 68, 2)  # landmarks for embedders that do not look at them


class FirstPixel(Embedder):
    """The colour of a corner as a direction, so that a test can choose every embedding; black has no direction."""

    name = "first-pixel"

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return faces[:, :, 0, 0] + 0 * landmarks.sum((1, 2))[:, None]


def colours(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


# Numbers


@pytest.mark.parametrize("temperature", [0.001, 1, 1000])
@pytest.mark.parametrize("people", [1, 5])
def test_argmax_is_the_decision_at_the_threshold_itself_too(people: int, temperature: float) -> None:
    embedder, images = FirstPixel(), colours(500)
    enrolled = embedder(colours(people, 1), ANY.expand(people, -1, -1))
    cosines = as_classifier(embedder, enrolled, 0.5, ANY).cosines(images).numpy()
    best = cosines.max(1)
    # Halves of the pictures lie on either side, and the first tells whether a tie is accepted.
    for middle in (np.sort(best)[250], best[0], np.nextafter(best[0], np.float32(2)), 1 - 1e-6):
        decided = np.where(best >= np.float32(middle), 1 + cosines.argmax(1), 0)
        logits = as_classifier(embedder, enrolled, float(middle), ANY, temperature)(images)
        assert logits.shape == (500, 1 + people) and logits.dtype == torch.float32
        assert (logits.argmax(1).numpy() == decided).all()
        assert (logits[:, 0] == 0).all()


def test_logits_are_counted_from_the_threshold_to_the_enrolled_picture() -> None:
    embedder, image = FirstPixel(), colours(1)
    enrolled = embedder(image, ANY)
    for temperature in (1, 0.25):
        logits = as_classifier(embedder, enrolled, 0.9, ANY, temperature)(image)
        assert logits[0].tolist() == pytest.approx([0, 1 / temperature], abs=1e-4)


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.9, 0.999999])
def test_gradients_are_finite_everywhere(threshold: float) -> None:
    """At the enrolled picture (cosine 1), at black (no direction) and far away, with the losses that the tools use."""
    embedder = FirstPixel()
    images = torch.cat([colours(2), torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)])
    enrolled = embedder(images[:2], ANY.expand(2, -1, -1))
    for temperature in (0.001, 1, 1000):
        classifier = as_classifier(embedder, enrolled, threshold, ANY, temperature)
        for label in (0, 1):
            leaf = images.clone().requires_grad_()
            logits = classifier(leaf)
            loss = F.cross_entropy(logits, torch.full((4,), label)) + (logits[:, 1] - logits[:, 0]).sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert loss.isfinite() and gradient.isfinite().all()


# Batches


def test_landmarks_of_one_face_do_for_any_number_of_its_pictures() -> None:
    classifier = as_classifier(FirstPixel(), torch.eye(3)[:1], 0.5, ANY)
    images = colours(4)
    assert torch.equal(classifier(images)[1:3], classifier(images[1:3]))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_part_of_a_batch_or_a_larger_one_is_refused(count: int) -> None:
    classifier = as_classifier(FirstPixel(), torch.eye(3)[:1], 0.5, ANY.expand(3, -1, -1))
    assert classifier(colours(3)).shape == (3, 2)
    with pytest.raises(GanMaskError, match=rf"landmarks: .* 3 faces .* {count} images came.*batch_size=3"):
        classifier(colours(count))


class People(NamedTuple):
    faces: Tensor
    landmarks: Tensor
    enrolled: Tensor  # from another photo of each
    embedder: Embedder


@pytest.fixture(scope="module")
def people() -> People:
    """Three embedded synthetic people at 128 px, seen by dlib's network."""
    with np.load(REPOSITORY / "gan_mask/assets/synthfaces_landmarks.npz") as file:
        points = dict(zip(file["names"].tolist(), file["landmarks68"], strict=True))

    def view(number: int) -> tuple[Tensor, Tensor]:
        names = [f"id_{person:04d}/view_{number}" for person in (1, 2, 3)]
        pictures = [np.array(Image.open(io.BytesIO(embedded_photo(name))).convert("RGB")) for name in names]
        faces = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return faces, torch.from_numpy(np.stack([points[f"synthfaces/{name}.webp"] for name in names]))

    embedder = load_embedder("dlib")
    return People(*view(2), embedder(*view(1)), embedder)


def test_a_callable_finds_the_landmarks_of_parts_and_duplicates(people: People) -> None:
    """The one of docs/extending.md: those of the face that a picture differs least from."""
    faces, landmarks, enrolled, embedder = people

    def nearest(images: Tensor) -> Tensor:
        assert not images.requires_grad
        return landmarks[torch.cdist(images.flatten(1), faces.flatten(1)).argmin(1)]

    whole = as_classifier(embedder, enrolled, 0.9, landmarks)(faces)
    some = [2, 0, 2, 2]
    images = faces[some].requires_grad_()
    logits = as_classifier(embedder, enrolled, 0.9, nearest)(images)
    assert torch.allclose(logits, whole[some], atol=1e-4)
    assert torch.autograd.grad(logits[:, 1].sum(), images)[0].flatten(1).any(1).all()


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enrolled": torch.eye(3)[0]}, r"enrolled: .*\[P,D\]"),
        ({"enrolled": torch.zeros(0, 3)}, r"enrolled: .*\[P,D\]"),
        ({"enrolled": torch.ones(1, 3)}, "enrolled: .*unit length"),
        ({"enrolled": torch.full((1, 3), torch.nan)}, "enrolled: .*unit length"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": torch.nan}, "threshold"),
        ({"temperature": 0.0}, "temperature"),
        ({"landmarks": np.zeros((1, 68, 2), np.float32)}, "landmarks: a tensor .*from_numpy"),
        ({"landmarks": torch.zeros(68, 2)}, "landmarks: .*68,2"),
        ({"landmarks": torch.zeros(0, 68, 2)}, "landmarks: .*68,2"),
        ({"landmarks": torch.full((1, 68, 2), torch.inf)}, "landmarks: NaN or infinity"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    good = {"enrolled": torch.eye(3)[:1], "threshold": 0.5, "landmarks": ANY, "temperature": 1.0}
    as_classifier(FirstPixel(), **good)  # type: ignore[arg-type]
    with pytest.raises(GanMaskError, match=message):
        as_classifier(FirstPixel(), **(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 2, 2, 3), "images: .*channels"),
        (torch.zeros(3, 2, 2), "images: "),
        (torch.full((1, 3, 2, 2), 255.0), r"images: .*\[0, 1\]"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "images: .*255"),
    ],
)
def test_bad_images_are_named(images: Tensor, message: str) -> None:
    with pytest.raises(GanMaskError, match=message):
        as_classifier(FirstPixel(), torch.eye(3)[:1], 0.5, ANY)(images)


def test_people_enrolled_with_another_network_are_refused() -> None:
    with pytest.raises(GanMaskError, match="enrolled: 4 numbers .*first-pixel gives 3"):
        as_classifier(FirstPixel(), torch.eye(4)[:1], 0.5, ANY)(colours(1))


def test_a_callable_that_finds_nothing_is_named() -> None:
    for found in (torch.zeros(2, 68, 2), torch.full((1, 68, 2), torch.nan), np.zeros((1, 68, 2))):
        with pytest.raises(GanMaskError, match=r"landmarks\(images\)"):
            as_classifier(FirstPixel(), torch.eye(3)[:1], 0.5, lambda _, found=found: found)(colours(1))


# Other people's attacks, confined to the mask's region

BOUND, STEP, STEPS = 8 / 255, 2 / 255, 5
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # classifier, faces, region -> attacked, dodging: target 0


class Inside(nn.Module):
    """Outside of the region (B, 1, H, W) the classifier sees the faces as they were."""

    def __init__(self, classifier: nn.Module, faces: Tensor, where: Tensor) -> None:
        super().__init__()
        self.classifier, self.faces, self.where = classifier, faces, where

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(torch.lerp(self.faces, images, self.where))


def art(classifier: nn.Module, faces: Tensor, where: Tensor) -> Tensor:
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox, of the dev extra")
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        classifier, nn.CrossEntropyLoss(), tuple(faces.shape[1:]), 4, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        estimator, eps=BOUND, eps_step=STEP, max_iter=STEPS, targeted=True, batch_size=len(faces), verbose=False
    )
    mask = where.expand_as(faces).numpy()
    return torch.from_numpy(attack.generate(faces.numpy(), np.zeros(len(faces), int), mask=mask))


def foolbox(classifier: nn.Module, faces: Tensor, where: Tensor) -> Tensor:
    fb = pytest.importorskip("foolbox", reason="needs foolbox, of the dev extra")
    model = fb.PyTorchModel(Inside(classifier, faces, where).eval(), bounds=(0, 1), device="cpu")
    attack = fb.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    dodging = fb.criteria.TargetedMisclassification(torch.zeros(len(faces), dtype=torch.long))
    _, attacked, success = attack(model, faces, dodging, epsilons=BOUND)
    assert success.all()
    return torch.lerp(faces, attacked, where)


def torchattacks(classifier: nn.Module, faces: Tensor, where: Tensor) -> Tensor:
    ta = pytest.importorskip(
        "torchattacks", reason="needs `pip install --no-deps torchattacks` (its pin of requests conflicts with mkdocs)"
    )
    attack = ta.PGD(Inside(classifier, faces, where), eps=BOUND, alpha=STEP, steps=STEPS, random_start=False)
    attack.set_mode_targeted_by_label(quiet=True)
    return torch.lerp(faces, attack(faces, torch.zeros(len(faces), dtype=torch.long)), where)


@pytest.mark.parametrize("attack", [art, foolbox, torchattacks], ids=lambda a: a.__name__)
def test_a_tools_attack_dodges_dlib_where_noise_of_its_strength_does_not(attack: Attack, people: People) -> None:
    faces, landmarks, enrolled, embedder = people
    threshold = embedder.threshold(0.001)
    where = region(landmarks, *faces.shape[2:])
    attacked = attack(as_classifier(embedder, enrolled, threshold, landmarks), faces, where)
    assert torch.equal(attacked * (1 - where), faces * (1 - where))
    assert (attacked - faces).abs().max() <= BOUND + 1e-6
    noise = BOUND * torch.randn(faces.shape, generator=torch.Generator().manual_seed(0)).sign()

    def dodged(images: Tensor) -> int:
        """As the evaluation decides, on 8-bit pictures."""
        embeddings = embedder((images * 255).round() / 255, landmarks).numpy()
        return int(((embeddings * enrolled.numpy()).sum(1) < threshold).sum())

    assert dodged(faces) == dodged((faces + where * noise).clamp(0, 1)) == 0
    assert dodged(attacked) == len(faces)
