"""The conditional generator of mask textures and the realism discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from gan_mask import facespace, likeness, masking
from gan_mask.errors import GanMaskError
from gan_mask.files import read_json, read_safetensors
from gan_mask.values import FRACTION, Range, from_values, limited, to_dict

SHIPPED = Path(__file__).parent / "assets" / "faces160"  # the default generator; its card: checkpoints/faces160

OWN = "own"  # as default_template: the texture lies in the checkpoint, since it is none of the shipped ones

# Ranges of what shapes the networks; a stranger's file must not take all memory either.
WIDTHS = Range(1, 4096, also=("below 32 or a multiple of 16", lambda width: width % max(width // 16, 1) == 0))
DEVIATIONS = Range(0, 10)
KERNEL = Range(1, 31, also=("odd", lambda side: side % 2 == 1))
SOFTNESS = Range(0, below=0.5)


@dataclass
class GeneratorConfig:
    texture_height: int = limited(masking.TEXTURE[0], Range(1, 1024))  # texels
    texture_width: int = limited(masking.TEXTURE[1], Range(1, 1024))  # texels
    widths: tuple[int, ...] = limited((32, 64, 128), WIDTHS)  # channels at half the texture's size, a quarter, ...
    noise: int = limited(32, Range(1, 4096))  # length of z
    heads: tuple[str, ...] = ("filter", "residual")  # of HEADS
    appearance_bound: float = limited(2.0, DEVIATIONS)  # standard deviations; see facespace.Face for the three
    shape_bound: float = limited(0.05, FRACTION)  # of the texture's width
    light_bound: float = limited(0.03, FRACTION)  # luminance, in [0, 1] units
    kernel: int = limited(5, KERNEL)  # K of the K x K filter, odd
    residual_bound: float = limited(0.12, FRACTION)  # largest change of a texel by the residual head, in [0, 1] units
    placement: masking.PlacementName = "paper"  # how its masks are worn: masking.put_on
    softness: float = limited(0.03, SOFTNESS)  # of placement "paper": fade at the edge, of the mask's width
    size: int = limited(160, Range(1, 4096))  # pixels: side of the crops it was trained on
    margin: float = limited(0.375, Range(0, 2))  # framing of those crops, see landmarks.frame
    default_template: str = "face-001"  # "match": the shipped face that suits each wearer best; OWN: the checkpoint's
    trained_against: tuple[str, ...] = ()  # surrogate embedders and detectors
    trained_against_weights: tuple[str, ...] = ()  # of these, see pretrained.protocol.weights_digest; older ones: none


FACE_HEADS = ("appearance", "shape", "light")  # another face, see facespace
PIXEL_HEADS = ("filter", "residual")  # MF2M's kernels and noise, texel by texel
HEADS = (*FACE_HEADS, *PIXEL_HEADS)


def filter_texture(texture: Tensor, kernels: Tensor) -> Tensor:
    """Per-pixel K x K filtering, as in MF2M (arXiv 2201.06427): one kernel per texel, shared by R, G, B.

    texture (B, 3, h, w), kernels (B, K*K, h, w) summing to 1 over dimension 1 -> (B, 3, h, w).
    """
    side = round(kernels.shape[1] ** 0.5)
    patches = F.unfold(F.pad(texture, [side // 2] * 4, mode="replicate"), side)
    patches = patches.view(len(texture), 3, side * side, *texture.shape[2:])
    return (patches * kernels[:, None]).sum(2)


class Block(nn.Module):
    """Two 3x3 convolutions with group norm; z scales and shifts the second (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels_in: int, channels: int, noise: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(max(channels // 16, 1), channels)
        self.norm2 = nn.GroupNorm(max(channels // 16, 1), channels)
        self.film = nn.Linear(noise, 2 * channels)
        nn.init.zeros_(self.film.bias)
        nn.init.normal_(self.film.weight, std=0.02)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        scale, shift = self.film(z)[:, :, None, None].chunk(2, 1)
        return F.silu(self.norm2(self.conv2(x)) * (1 + scale) + shift)


class FaceHead(nn.Module):
    """From the deepest features and the template's place in the basis to another face. Starts as: no change."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        deep, (rows, columns) = config.widths[-1], facespace.SHAPE
        self.points = nn.Conv2d(deep, 2 + 4, 3, padding=1)  # displacement, and light at twice the resolution
        last: list[nn.Conv2d | nn.Linear] = [self.points]
        self.appears = "appearance" in config.heads
        if self.appears:
            self.squeeze = nn.Conv2d(deep, 32, 1)
            self.mix = nn.Linear(32 * rows * columns + facespace.COMPONENTS, 256)
            self.appearance = nn.Linear(256, facespace.COMPONENTS)
            last.append(self.appearance)
        for layer in last:
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # they have one

    def forward(self, deep: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """deep (B, C, h, w), place (B, K) -> unbounded appearance, shape and light, as facespace.Bounds takes them."""
        deep = F.adaptive_avg_pool2d(deep, facespace.SHAPE)  # nothing to do at 72 x 96 texels and three widths
        shape, light = self.points(deep).split([2, 4], 1)
        appearance = torch.zeros_like(place)
        if self.appears:
            appearance = self.appearance(F.silu(self.mix(torch.cat([self.squeeze(deep).flatten(1), place], 1))))
        return appearance.float(), shape.float(), F.pixel_shuffle(light, 2).float()


class TextureUNet(nn.Module):
    """Wearer's and template's texture to mask texture, in canonical mask space.

    Predicts another face (FACE_HEADS), MF2M's two ingredients (PIXEL_HEADS: per-pixel filter kernels and a bounded
    residual), or both, and applies them to the template's texture. Works on 2x2 texels at a time.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = c = config
        w = c.widths
        self.down = nn.ModuleList(Block(a, b, c.noise) for a, b in zip((4 * 6, *w), w, strict=False))
        self.bounds = facespace.Bounds(
            *(getattr(c, f"{head}_bound") if head in c.heads else 0.0 for head in FACE_HEADS)
        )
        self.face = FaceHead(c) if any(self.bounds) else None
        channels = (c.kernel**2 if "filter" in c.heads else 0) + (3 if "residual" in c.heads else 0)
        if not channels:
            return
        self.up = nn.ModuleList(Block(a + b, a, c.noise) for a, b in zip(w[:-1], w[1:], strict=True))
        self.heads = nn.Conv2d(w[0], 4 * channels, 3, padding=1)
        nn.init.normal_(self.heads.weight, std=0.01)  # starts as DM: identity kernels, no residual
        start = torch.zeros(channels)
        if "filter" in c.heads:
            start[c.kernel**2 // 2] = 5.0
        self.heads.bias = nn.Parameter(start.repeat_interleave(4))

    def forward(self, face_texture: Tensor, template: Tensor, z: Tensor) -> Tensor:
        """Textures (B, 3, h, w) in [0, 1], z (B, noise) -> (B, 3, h, w) in [0, 1]."""
        skips = self._features(face_texture, template, z)
        texture = template.float()
        if self.face is not None:
            basis = facespace.basis_for(template)
            texture = facespace.paint(texture, self._other_face(skips[-1], texture, basis), basis)
        if any(head in PIXEL_HEADS for head in self.config.heads):
            texture = self._retouch(texture, skips, z)
        return texture.clamp(0, 1)

    def other_face(self, face_texture: Tensor, template: Tensor, z: Tensor) -> facespace.Face:
        """What the face heads change, arguments as in `forward`."""
        deep = self._features(face_texture, template, z)[-1]
        return self._other_face(deep, template.float(), facespace.basis_for(template))

    def _features(self, face_texture: Tensor, template: Tensor, z: Tensor) -> list[Tensor]:
        x = F.pixel_unshuffle(torch.cat([face_texture, template], 1) * 2 - 1, 2)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            skips.append(block(x if level == 0 else F.avg_pool2d(skips[-1], 2), z))
        return skips

    def _other_face(self, deep: Tensor, template: Tensor, basis: facespace.Basis) -> facespace.Face:
        assert self.face is not None
        return self.bounds.face(self.face(deep, facespace.coordinates(template, basis)))

    def _retouch(self, texture: Tensor, skips: list[Tensor], z: Tensor) -> Tensor:
        c, x = self.config, skips[-1]
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], 1), z)
        heads = F.pixel_shuffle(self.heads(x), 2).float()
        if "filter" in c.heads:
            texture = filter_texture(texture, heads[:, : c.kernel**2].softmax(1))
        if "residual" in c.heads:
            texture = texture + c.residual_bound * heads[:, -3:].tanh()
        return texture


class Generator(nn.Module, PyTorchModelHubMixin):
    """Faces in, masked faces out, in one forward pass: `masked = generator(faces, landmarks)`."""

    template: Tensor  # (3, h, w), where default_template is OWN

    def __init__(self, **options: Any) -> None:
        super().__init__()
        options.pop("config", None)  # PyTorchModelHubMixin passes the whole of config.json once more
        self.config = generator_config(options)
        self._hub_mixin_config = to_dict(self.config)  # all of it, not only what was given: save_pretrained writes it
        self.net = TextureUNet(self.config)
        if self.config.default_template == OWN:
            self.register_buffer("template", torch.zeros(3, *self.texture_size))

    @property
    def texture_size(self) -> tuple[int, int]:
        return self.config.texture_height, self.config.texture_width

    def noise(self, batch: int, seed: int = 0) -> Tensor:
        """z (B, noise), the same for every face, so that a face's mask does not depend on its batch."""
        z = torch.randn(1, self.config.noise, generator=torch.Generator().manual_seed(seed))
        return z.expand(batch, -1).to(next(self.parameters()))

    def default_templates(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        """What the configuration names for these wearers (see `texture`): textures (B or 1, 3, h, w)."""
        name = self.config.default_template
        if name == OWN:
            return self.template[None]
        from gan_mask import templates  # reads the embedded images, which training does not need

        names = templates.best(faces, landmarks) if name == "match" else [name]
        return templates.load_all(names, self.texture_size)

    def texture(self, faces: Tensor, landmarks: Tensor, templates: Tensor | None = None, seed: int = 0) -> Tensor:
        """Mask textures (B, 3, h, w) in [0, 1] for faces (B, 3, H, W) in [0, 1] with landmarks (B, 68, 2) px.

        templates: textures (B or 1, 3, h, w) in [0, 1] of the faces printed on the masks; by default the
        one that the configuration names. With seamless placement they are adapted to the wearers first.
        GanMaskError for colours outside of [0, 1], such as 0 to 255.
        """
        masking.check_pictures(faces, "faces", values=True)
        if templates is None:
            templates = self.default_templates(faces, landmarks)
        masking.check_pictures(templates, "templates", values=True)
        if tuple(templates.shape[2:]) != self.texture_size:
            raise GanMaskError(f"templates are {tuple(templates.shape[2:])}, the generator takes {self.texture_size}")
        own = masking.unwrap(faces, landmarks, self.texture_size)
        templates = templates.to(own).expand(len(faces), -1, -1, -1)
        if self.config.placement == "seamless":
            templates = likeness.adapt(templates, own)
        z = self.noise(len(faces), seed)
        return self.net(own.to(z), templates.to(z), z)

    def other_face(self, faces: Tensor, landmarks: Tensor, adapted: Tensor, seed: int = 0) -> facespace.Face:
        """What the generator changes about templates that are adapted to the wearers already."""
        own = masking.unwrap(faces, landmarks, self.texture_size)
        return self.net.other_face(own, adapted.to(faces), self.noise(len(faces), seed))

    def forward(self, faces: Tensor, landmarks: Tensor, templates: Tensor | None = None, seed: int = 0) -> Tensor:
        """Masked faces (B, 3, H, W) in [0, 1], of the faces' dtype; arguments as in `texture`."""
        texture = self.texture(faces, landmarks, templates, seed)
        return masking.put_on(faces, landmarks, texture, self.config.placement, self.config.softness)

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is untyped


class Discriminator(nn.Module):
    """Realism of face crops: (B, 3, S, S) in [0, 1] -> logits (B,), high for real.

    Strided convolutions without normalisation (R1 regularises); the mean over patch logits judges
    texture everywhere rather than the whole face. In float32 under autocast, too: R1 takes second derivatives.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))
        # torch's own beginning shrinks what passes by half a layer, and five of them learn slowly.
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled code has no second derivatives
    def forward(self, faces: Tensor) -> Tensor:
        with torch.autocast(faces.device.type, enabled=False):
            return self.net(faces.float() * 2 - 1).flatten(1).mean(1)


def generator_config(values: dict[str, Any]) -> GeneratorConfig:
    """Checked configuration from JSON values; raises GanMaskError that names the wrong key."""
    known = GeneratorConfig.__dataclass_fields__
    if unknown := sorted(set(values) - set(known)):
        raise GanMaskError(f"unknown generator option {', '.join(unknown)}; known: {', '.join(known)}")
    config = from_values(GeneratorConfig, values, label=str)
    if not 0 < len(config.widths) <= 8:
        raise GanMaskError(f"widths: expected 1 to 8 numbers, got {len(config.widths)}")
    divisor = 2 ** len(config.widths)
    if config.texture_height % divisor or config.texture_width % divisor:
        raise GanMaskError(
            f"texture {config.texture_height}x{config.texture_width} must be divisible by {divisor} "
            f"for {len(config.widths)} widths"
        )
    if config.heads == ("both",):  # as checkpoints of before call these two
        config.heads = PIXEL_HEADS
    if unknown := [head for head in config.heads if head not in HEADS] or ([] if config.heads else ["nothing"]):
        raise GanMaskError(f"heads: {unknown[0]!r} is unknown; known: {', '.join(HEADS)}")
    return config


def load_generator(path: str | Path = SHIPPED, device: str | torch.device = "cpu") -> Generator:
    """The generator in folder `path` (config.json + model.safetensors), frozen and in eval mode.

    By default the one that comes with the package. A run folder of train.py works too: its latest checkpoint is
    taken. Raises GanMaskError, naming
    the file, when something is missing, damaged, or does not fit together.
    """
    folder = _checkpoint_folder(Path(path))
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise GanMaskError(f"{folder / 'config.json'}: expected an object of generator options")
    generator = Generator(**values)
    weights = read_safetensors(folder / "model.safetensors")
    missing = sorted(set(generator.state_dict()) ^ set(weights))
    wrong = [k for k, v in generator.state_dict().items() if k in weights and weights[k].shape != v.shape]
    if missing or wrong:
        raise GanMaskError(
            f"{folder}: config.json and model.safetensors do not belong together; "
            f"differing keys: {', '.join((missing + wrong)[:8])}"
        )
    generator.load_state_dict({k: v.float() for k, v in weights.items()})
    return generator.eval().requires_grad_(False).to(device)


def _checkpoint_folder(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    if (path / "generator" / "config.json").is_file():  # a run folder of train.py
        return path / "generator"
    shipped = Path("checkpoints")
    known = sorted(p.parent.name for p in shipped.glob("*/config.json")) if shipped.is_dir() else []
    hint = f"; shipped: {', '.join(f'checkpoints/{k}' for k in known)}" if known else ""
    raise GanMaskError(f"{path}: no checkpoint here (expected config.json and model.safetensors){hint}")
