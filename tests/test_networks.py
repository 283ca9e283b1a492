"""The generator: its start, its bounds, its file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gan_mask import facespace, load_generator, masking
from gan_mask.errors import GanMaskError
from gan_mask.generator import Generator
from gan_mask.landmarks import frame
from gan_mask.networks import OWN, Discriminator, GeneratorConfig, filter_texture
from gan_mask.training.state import save_generator

SMALL = {"widths": (8, 16), "texture_height": 24, "texture_width": 32, "size": 64}


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(batch)
    landmarks = frame(64, 0.3) + torch.randn(batch, 68, 2)
    return torch.rand(batch, 3, 64, 64), landmarks, torch.rand(batch, 3, 24, 32)


@pytest.mark.parametrize("heads", ["filter", "residual", "both"])
def test_an_untrained_generator_is_nearly_dm(heads):
    face, landmarks, template = inputs()
    texture = Generator(GeneratorConfig(**SMALL, heads=heads)).texture(face, landmarks, template)
    assert texture.shape == template.shape
    assert (texture - template).abs().mean() < 0.12  # identity kernels blur random noise a little


def test_the_residual_is_bounded():
    generator = Generator(GeneratorConfig(**SMALL, heads="residual", residual_bound=0.1))
    torch.nn.init.normal_(generator.net.heads.weight, std=10.0)
    face, landmarks, template = inputs()
    change = (generator.texture(face, landmarks, template) - template).abs()
    assert 0.09 < change.max() <= 0.1 + 1e-6


def test_filtering_is_a_per_pixel_convolution():
    texture = torch.rand(2, 3, 9, 11)
    kernel = torch.rand(25).softmax(0)
    ours = filter_texture(texture, kernel[None, :, None, None].expand(2, -1, 9, 11))
    padded = torch.nn.functional.pad(texture, [2] * 4, mode="replicate")
    expected = torch.nn.functional.conv2d(padded, kernel.view(1, 1, 5, 5).expand(3, 1, 5, 5), groups=3)
    assert torch.allclose(ours, expected, atol=1e-6)


def test_masked_faces_differ_from_the_clean_ones_only_inside_the_region():
    face, landmarks, template = inputs()
    generator = Generator(GeneratorConfig(**SMALL))
    masked = generator(face, landmarks, template)
    inside = masking.region(landmarks, 64, 64, generator.config.softness) > 0
    assert not ((masked != face).any(1, keepdim=True) & ~inside).any()


def test_a_mask_does_not_depend_on_its_batch():
    face, landmarks, template = inputs(4)
    generator = Generator(GeneratorConfig(**SMALL)).eval()
    together = generator(face, landmarks, template, seed=5)
    alone = torch.cat([generator(face[i, None], landmarks[i, None], template[i, None], seed=5) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.equal(together, generator(face, landmarks, template, seed=6))


def test_saving_and_loading(tmp_path):
    face, landmarks, template = inputs()
    generator = Generator(GeneratorConfig(**SMALL)).eval()
    save_generator(generator, tmp_path / "checkpoint")
    loaded = load_generator(tmp_path / "checkpoint")
    assert torch.equal(loaded(face, landmarks, template), generator(face, landmarks, template))
    assert not any(p.requires_grad for p in loaded.parameters())
    hub = Generator.from_pretrained(tmp_path / "checkpoint").eval()  # PyTorchModelHubMixin reads the same files
    assert torch.equal(hub(face, landmarks, template), generator(face, landmarks, template))


def test_the_default_template_is_shipped():
    face, landmarks, _ = inputs()
    generator = Generator(GeneratorConfig(size=64))
    assert generator(face, landmarks).shape == face.shape


def test_wrong_checkpoints_are_named(tmp_path):
    with pytest.raises(GanMaskError, match="no checkpoint here"):
        load_generator(tmp_path)
    save_generator(Generator(GeneratorConfig(**SMALL)), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(GanMaskError, match="model.safetensors: damaged"):
        load_generator(tmp_path)
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "noise": 8}))
    with pytest.raises(GanMaskError, match="differing keys: net.down.0.film.weight"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 8}))
    with pytest.raises(GanMaskError, match="unknown generator option colour; known: texture_height"):
        load_generator(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(GanMaskError, match="config.json: not readable as JSON"):
        load_generator(tmp_path)


def test_discriminator_takes_any_size_and_has_second_derivatives():
    discriminator = Discriminator(8)
    image = torch.rand(2, 3, 50, 70, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(image).sum(), image, create_graph=True)
    gradient.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{}, SMALL, {**SMALL, "widths": [8, 16], "heads": "filter"}])
def test_what_the_hub_saves_is_loaded(options, tmp_path):
    generator = Generator(GeneratorConfig(**options))
    generator.save_pretrained(tmp_path / "saved")
    loaded = load_generator(tmp_path / "saved")
    assert loaded.config == generator.config
    load_generator(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "saved" / "config.json").read_text()


def test_a_folder_a_run_and_a_hub_id_are_one_path(tmp_path, monkeypatch):
    made = Generator(GeneratorConfig(**SMALL)).eval()
    made.save_pretrained(tmp_path / "run" / "generator")
    asked = []

    def downloaded(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / "run" / "generator" / name)

    monkeypatch.setattr("gan_mask.generator.hf_hub_download", downloaded)
    inside = [tmp_path / "run", tmp_path / "run" / "generator"]
    found = [load(path) for path in inside for load in (load_generator, Generator.from_pretrained)]
    assert not asked
    found += [load_generator("user/faces", revision="v2"), Generator.from_pretrained("user/faces", revision="v2")]
    assert asked == 2 * [("user/faces", name, "v2") for name in ("config.json", "model.safetensors")]
    for generator in found:
        assert type(generator) is Generator and generator.config == made.config and not generator.training
        assert all(torch.equal(v, made.state_dict()[k]) for k, v in generator.state_dict().items())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GanMaskError, match="^run/nothing: no checkpoint here"):  # a folder `run` is here: no hub
        load_generator("run/nothing")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def fails(*_: object, **__: object) -> str:
        raise OSError("offline\nmore")

    monkeypatch.setattr("gan_mask.generator.hf_hub_download", fails)
    with pytest.raises(GanMaskError, match=r"^user/faces: no such folder, and not to be had from .* \(offline\)$"):
        load_generator("user/faces")


def test_a_wrong_field_is_named():
    with pytest.raises(GanMaskError, match="^kernel: expected a whole number from 1 to 31, odd, got 4"):
        Generator(GeneratorConfig(kernel=4))


@pytest.mark.parametrize("save", [save_generator, lambda generator, folder: generator.save_pretrained(folder)])
def test_a_checkpoint_holds_a_template_that_is_not_shipped(save, tmp_path):
    face, landmarks, template = inputs()
    generator = Generator(GeneratorConfig(**SMALL, default_template=OWN)).eval()
    generator.template.copy_(template[0])
    save(generator, tmp_path / "checkpoint")
    loaded = load_generator(tmp_path / "checkpoint")
    assert torch.equal(loaded.template, template[0])
    assert torch.equal(loaded(face, landmarks), generator(face, landmarks, template[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_faces_of_other_precision_keep_it(dtype):
    face, landmarks, template = inputs()
    generator = Generator(GeneratorConfig(**SMALL)).eval()
    expected = generator(face.to(dtype).float(), landmarks, template).detach()
    masked = generator(face.to(dtype), landmarks, template)
    assert masked.dtype == dtype and torch.allclose(masked.float(), expected, atol=1e-2)
    bare = masking.region(landmarks, 64, 64).expand_as(face) == 0
    assert torch.equal(masked[bare], face.to(dtype)[bare])
    for softness in (0, 0.03):
        assert masking.wear(face.to(dtype), landmarks.to(dtype), template.to(dtype), softness).dtype == dtype


@pytest.mark.parametrize("scale", ["bytes", "0 to 255", "-1 to 1", "nan"])
def test_pictures_that_are_no_colours_in_0_to_1_are_refused(scale):
    face, landmarks, template = inputs()

    def spoilt(x):
        return {"bytes": (255 * x).byte(), "0 to 255": 255 * x, "-1 to 1": 2 * x - 1, "nan": x * float("nan")}[scale]

    generator = Generator(GeneratorConfig(**SMALL)).eval()
    attempts = (
        lambda: generator(spoilt(face), landmarks, template), lambda: generator(face, landmarks, spoilt(template)),
        lambda: generator.texture(spoilt(face), landmarks), lambda: masking.unwrap(spoilt(face), landmarks),
        lambda: masking.wear(spoilt(face), landmarks, template),
        lambda: masking.wear(face, landmarks, spoilt(template)),
    )  # fmt: skip
    for attempt in attempts:
        with pytest.raises(GanMaskError, match=r"in \[0, 1\], got"):
            attempt()


def test_face_heads_of_before_are_loaded_and_predict_what_they_did(tmp_path):
    """Checkpoints from when they did not look at the wearer's place in the basis."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        texture_height=24, texture_width=32, widths=(8, 16), heads=("appearance", "shape", "light")
    )
    generator = Generator(config).requires_grad_(False)
    for parameter in generator.net.face.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    generator.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: value for name, value in weights.items() if ".whole." not in name}
    weights["net.face.mix.weight"] = weights["net.face.mix.weight"][:, : -facespace.COMPONENTS].contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    loaded = load_generator(tmp_path)
    assert not loaded.net.face.whole.weight.any()
    own, template, z = torch.rand(2, 3, 24, 32), torch.rand(2, 3, 24, 32), loaded.noise(2)
    for layer in (generator.net.face.whole.weight, generator.net.face.whole.bias):
        layer.zero_()
    generator.net.face.mix.weight[:, -facespace.COMPONENTS :] = 0
    assert torch.equal(loaded.net(own, template, z).texture, generator.net(own, template, z).texture)
