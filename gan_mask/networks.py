"""The networks that are trained: of mask textures, in canonical space, and of realism; see generator for the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import facespace, masking
from gan_mask.errors import GanMaskError
from gan_mask.values import FRACTION, Range, from_values, limited

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
    shape_bound: float = limited(0.08, FRACTION)  # of the texture's width
    light_bound: float = limited(0.03, FRACTION)  # luminance, in [0, 1] units
    kernel: int = limited(5, KERNEL)  # K of the K x K filter, odd
    residual_bound: float = limited(0.12, FRACTION)  # largest change of a texel by the residual head, in [0, 1] units
    placement: masking.PlacementName = "paper"  # how its masks are worn: masking.put_on
    softness: float = limited(0.03, SOFTNESS)  # of placement "paper": fade at the edge, of the mask's width
    size: int = limited(160, Range(1, 4096))  # pixels: side of the crops it was trained on
    margin: float = limited(0.375, Range(0, 2))  # framing of those crops, see landmarks.frame
    default_template: str = "face-001"  # "match": the shipped face that suits each wearer best; OWN: the checkpoint's
    trained_against: tuple[str, ...] = ()  # surrogate embedders and detectors
    trained_against_weights: tuple[str, ...] = ()  # of these, see files.weights_digest; older ones: none


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


def face_bounds(config: Any) -> facespace.Bounds:
    """Of the configuration of a generator or of a training; 0 for heads that it does not have."""
    return facespace.Bounds(*(getattr(config, f"{head}_bound") if head in config.heads else 0.0 for head in FACE_HEADS))


class FaceHead(nn.Module):
    """From the deepest features and the places of both faces in the basis to another face. Starts as: no change."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        deep, (rows, columns) = config.widths[-1], facespace.SHAPE
        self.points = nn.Conv2d(deep, 2 + 4, 3, padding=1)  # displacement, and light at twice the resolution
        last: list[nn.Conv2d | nn.Linear] = [self.points]
        self.appears = "appearance" in config.heads
        if self.appears:
            self.squeeze = nn.Conv2d(deep, 32, 1)
            self.mix = nn.Linear(32 * rows * columns + 2 * facespace.COMPONENTS, 256)
            self.appearance = nn.Linear(256, facespace.COMPONENTS)
            self.whole = nn.Linear(256, (2 + 4) * rows * columns)  # what of the points depends on the whole face
            last += [self.appearance, self.whole]
        for layer in last:
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # they have one

    def forward(self, deep: Tensor, template: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """deep (B, C, h, w), places (B, K) -> unbounded appearance, shape and light, as facespace.Bounds takes them."""
        deep = F.adaptive_avg_pool2d(deep, facespace.SHAPE)  # nothing to do at 72 x 96 texels and three widths
        points, appearance = self.points(deep), torch.zeros_like(template)
        if self.appears:
            mixed = F.silu(self.mix(torch.cat([self.squeeze(deep).flatten(1), template, own], 1)))
            points = points + self.whole(mixed).view(-1, 2 + 4, *facespace.SHAPE)
            appearance = self.appearance(mixed)
        shape, light = points.split([2, 4], 1)
        return appearance.float(), shape.float(), F.pixel_shuffle(light, 2).float()


class Prediction(NamedTuple):
    """What the network makes of B templates."""

    texture: Tensor  # (B, 3, h, w) in [0, 1]
    raw: tuple[Tensor, Tensor, Tensor] | None  # what the face heads say, if there are any, as facespace.Bounds takes it


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
        self.bounds = face_bounds(c)
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

    def forward(self, face_texture: Tensor, template: Tensor, z: Tensor, strength: float = 1.0) -> Prediction:
        """Textures (B, 3, h, w) in [0, 1], z (B, noise) -> the texture that is worn, and what was changed.

        strength: how much of the change is made; 0 leaves the template as it is.
        """
        skips = self._features(face_texture, template, z)
        texture, raw = template.float(), None
        if self.face is not None:
            basis = facespace.basis_for(template)
            places = (facespace.coordinates(t, basis) for t in (texture, face_texture.float()))
            raw = self.face(skips[-1], *places)
            texture = facespace.paint(texture, self.bounds.scaled(strength).face(raw), basis)
        if any(head in PIXEL_HEADS for head in self.config.heads):
            texture = texture.lerp(self._retouch(texture, skips, z), strength)
        return Prediction(texture.clamp(0, 1), raw)

    def _features(self, face_texture: Tensor, template: Tensor, z: Tensor) -> list[Tensor]:
        x = F.pixel_unshuffle(torch.cat([face_texture, template], 1) * 2 - 1, 2)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            skips.append(block(x if level == 0 else F.avg_pool2d(skips[-1], 2), z))
        return skips

    def completed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A generator's state, with what older face heads did not have: zeros, which change nothing."""
        before = weights.get("net.face.mix.weight")
        if self.face is None or not self.face.appears or before is None or "net.face.whole.weight" in weights:
            return weights
        mix = torch.zeros_like(self.face.mix.weight)
        mix[:, : before.shape[1]] = before  # it knew the template's place alone
        whole = {f"net.face.whole.{name}": torch.zeros_like(v) for name, v in self.face.whole.state_dict().items()}
        return weights | {"net.face.mix.weight": mix} | whole

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


class Discriminator(nn.Module):
    """Realism of face crops: (B, 3, S, S) in [0, 1] -> logits (B,), high for real.

    Strided convolutions without normalisation (R1 regularises); the mean over patch logits scores
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
    if config.heads == ("both",):  # as older checkpoints call these two
        config.heads = PIXEL_HEADS
    if unknown := [head for head in config.heads if head not in HEADS] or ([] if config.heads else ["nothing"]):
        raise GanMaskError(f"heads: {unknown[0]!r} is unknown; known: {', '.join(HEADS)}")
    return config
