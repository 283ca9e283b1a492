"""What a type checker knows of the public functions in other people's code; mypy reads this, nobody runs it."""

from torch import Tensor
from typing_extensions import assert_type

from gan_mask import Generator, load_generator, region, unwrap, wear
from gan_mask.pretrained import load_detector, load_embedder, load_perceptual


def masked_faces(faces: Tensor, landmarks: Tensor, templates: Tensor) -> None:
    generator = load_generator()
    assert_type(generator, Generator)
    assert_type(generator(faces, landmarks), Tensor)
    assert_type(generator(faces, landmarks, templates, seed=1), Tensor)
    assert_type(generator.texture(faces, landmarks), Tensor)
    generator(faces)  # type: ignore[call-arg]  # without landmarks


def geometry(faces: Tensor, landmarks: Tensor) -> None:
    texture = unwrap(faces, landmarks)
    assert_type(texture, Tensor)
    assert_type(wear(faces, landmarks, texture), Tensor)
    assert_type(region(landmarks, 160, 160), Tensor)


def pretrained_networks(faces: Tensor, landmarks: Tensor) -> None:
    assert_type(load_embedder("dlib")(faces, landmarks), Tensor)
    assert_type(load_detector("classifier")(faces), tuple[Tensor, Tensor])
    assert_type(load_perceptual()(faces, faces), Tensor)
    load_embedder("dlib")(faces)  # type: ignore[call-arg]  # without landmarks
