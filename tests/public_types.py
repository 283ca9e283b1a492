"""What a type checker knows of the public functions in other people's code; mypy reads this, nobody runs it."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import assert_type

from gan_mask import (
    EvaluationConfig,
    Generator,
    GeneratorConfig,
    HardenConfig,
    MaskedPhoto,
    PrepareConfig,
    Report,
    SampleConfig,
    TrainConfig,
    attacks,
    evaluate,
    load_generator,
    mask_photo,
    region,
    sample,
    train,
    unwrap,
    wear,
)
from gan_mask.data.prepare import prepare
from gan_mask.harden.command import harden
from gan_mask.pretrained import as_classifier, load_detector, load_embedder, load_perceptual


def masked_faces(faces: Tensor, landmarks: Tensor, templates: Tensor) -> None:
    generator = load_generator()
    assert_type(generator, Generator)
    assert_type(Generator(GeneratorConfig(widths=(8, 16))), Generator)
    assert_type(Generator.from_pretrained("user/name", revision="main"), Generator)
    Generator(widths=(8, 16))  # type: ignore[call-arg]
    assert_type(generator(faces, landmarks), Tensor)
    assert_type(generator(faces, landmarks, templates, seed=1), Tensor)
    assert_type(generator.texture(faces, landmarks), Tensor)
    generator(faces)  # type: ignore[call-arg]  # without landmarks


def masked_photo(array: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> None:
    for photo in ("photo.jpg", Image.new("RGB", (9, 9)), array):
        assert_type(mask_photo(photo, load_generator()), MaskedPhoto)
    masked = mask_photo(array, load_generator(), template="match")
    assert_type([face.template for face in masked.faces], list[str | None])
    masked.save("masked.png")
    mask_photo(array)  # type: ignore[call-arg]  # without a generator


def commands() -> None:
    report = evaluate(EvaluationConfig(data="set", out="report", methods=("dm", "mf2m"), checkpoint=None))
    assert_type(report, Report)
    assert_type(report.rates["held-out"]["0.001"]["dm"]["joint success"]["rate"], float | int | None)
    assert_type(report.broken, list[str])
    config = SampleConfig(faces="photos", out="masked", method="mf2m", attack=attacks.Options(steps=20))
    assert_type(config.checkpoint, str | None)
    sample(config)
    SampleConfig(faces="photos", out="masked", method="mf3m")  # type: ignore[arg-type]
    EvaluationConfig(data="set", out="report", probs=3)  # type: ignore[call-arg]
    assert_type(prepare(PrepareConfig(src="synthetic", dst="set", size=96))["faces"], int)
    assert_type(harden(HardenConfig(data="set", out="hardened", against=("dm",))), Path)
    train(TrainConfig(data="set", out="run", steps=100))


def methods(faces: Tensor, landmarks: Tensor, templates: Tensor) -> None:
    method = attacks.method("dm")
    assert_type(method, attacks.Method)
    assert_type(method.apply(faces, landmarks, templates), attacks.Result)
    assert_type(method.apply(faces, landmarks, templates).iterations, Tensor | None)
    assert_type(method.mask(faces, landmarks, templates), tuple[Tensor, attacks.Result])
    assert_type(method.texture_size, tuple[int, int])


def geometry(faces: Tensor, landmarks: Tensor) -> None:
    texture = unwrap(faces, landmarks)
    assert_type(texture, Tensor)
    assert_type(wear(faces, landmarks, texture), Tensor)
    assert_type(region(landmarks, 160, 160), Tensor)


def pretrained_networks(faces: Tensor, landmarks: Tensor) -> None:
    embedder = load_embedder("dlib")
    assert_type(embedder(faces, landmarks), Tensor)
    assert_type(as_classifier(embedder, embedder(faces, landmarks), 0.9, landmarks)(faces), Tensor)
    as_classifier(embedder, embedder(faces, landmarks), 0.9, lambda images: landmarks.expand(len(images), -1, -1))
    assert_type(load_detector("classifier")(faces), tuple[Tensor, Tensor])
    assert_type(load_perceptual()(faces, faces), Tensor)
    load_embedder("dlib")(faces)  # type: ignore[call-arg]  # without landmarks
