"""What installing and importing the package promises."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

# What training must not need: docs/dependencies.md
OPTIONAL = (
    "albumentations", "cv2", "dlib", "face_recognition_models", "facenet_pytorch", "lpips", "onnx", "onnx2torch",
    "onnxruntime", "av", "gradio", "scipy", "skimage", "tensorboard", "matplotlib", "webdataset",
)  # fmt: skip

BLOCK = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))  # None: ImportError\n"


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout


def test_importing_gan_mask_is_light() -> None:
    loaded = python("import sys, gan_mask; print(*sys.modules)").split()
    assert {"torch", "torchvision", "numpy", "PIL", *OPTIONAL}.isdisjoint(loaded)


@pytest.mark.parametrize(
    "module", ["training", "data", "generator", "networks", "masking", "templates", "sampling", "evaluation"]
)
def test_modules_import_without_the_optional_packages(module: str) -> None:
    python(BLOCK + f"import gan_mask.{module}")


def test_the_readme_example_names_exist() -> None:
    python("from gan_mask import Generator, load_generator, region, unwrap, wear")


def test_public_names_are_listed_and_lead_somewhere() -> None:
    code = "import gan_mask as g; assert {*g.__all__} <= {*dir(g)}; print(*(getattr(g, n).__name__ for n in g.__all__))"
    assert python(code).split() == [
        "EvaluationConfig", "FaceFinder", "Generator", "GeneratorConfig", "HardenConfig", "MaskedPhoto",
        "PrepareConfig", "Report", "SampleConfig", "TrainConfig", "align", "gan_mask.attacks", "evaluate",
        "load_generator", "mask_photo", "read_image", "region", "sample", "train", "unwrap", "wear",
    ]  # fmt: skip
    python("import gan_mask as g; assert not hasattr(g, 'masks')")


def test_the_version_is_the_one_of_the_metadata() -> None:
    metadata = pytest.importorskip("importlib.metadata")
    try:
        installed = metadata.version("gan_mask")
    except metadata.PackageNotFoundError:
        pytest.skip("gan_mask is not installed, only importable")
    import gan_mask

    assert installed == gan_mask.__version__


def test_assets_are_there_and_packaged() -> None:
    assets = REPOSITORY / "gan_mask" / "assets"
    for name in ("synthfaces.zip", "synthfaces_landmarks.npz", "synthfaces.README.md"):
        assert (assets / name).stat().st_size > 1000
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert "assets/**" in setup["options.package_data"]["gan_mask"]


def sources() -> list[Path]:
    folders = ("gan_mask", "data_prep")
    return [*(p for f in folders for p in (REPOSITORY / f).rglob("*.py")), *REPOSITORY.glob("*.py")]


def test_no_pickles() -> None:
    """Checkpoints and data from elsewhere must not be able to run code."""
    forbidden = re.compile(r"torch\.load\((?!.*weights_only=True)|import pickle|allow_pickle=True|joblib")
    for path in sources():
        assert not forbidden.search(path.read_text(encoding="utf-8")), path


def test_every_dependency_is_explained() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    wanted = setup["options"]["install_requires"].split() + " ".join(setup["options.extras_require"].values()).split()
    explained = (REPOSITORY / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    for requirement in wanted:
        name = re.split(r"[<>=!]", requirement)[0].lower()
        assert name in explained, name


def test_the_readme_example_runs_with_the_shipped_checkpoint(tmp_path: Path) -> None:
    from conftest import embedded_photo

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code
    photo = tmp_path / "photo.webp"
    photo.write_bytes(embedded_photo("id_0004/view_1"))
    example = code[1].replace("demo/photos/id_0004_view_1.webp", str(photo))
    example = example.replace('"masked.png"', repr(str(tmp_path / "masked.png")))
    assert str(photo) in example and "load_generator()" in example and str(tmp_path / "masked.png") in example
    assert python(example + "print(*masked.image.shape, len(masked.faces))") == "128 128 3 1\n"
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (photo, tmp_path / "masked.png"))
    assert (before != after).any()
