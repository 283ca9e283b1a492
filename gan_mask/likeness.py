"""How well a template suits a wearer, and the template in the wearer's colours and contrast.

Both work on what seamless placement keeps of a template (`masking.structure`): its overall colour and light have no
effect there, but the colour of its lips, its contrast and its sharpness do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gan_mask import masking
from gan_mask.constants import constant

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
COLOUR_BLUR = 4.0  # texels of 72 rows: colour coarser than this is the wearer's
CONTRAST = (0.6, 1.3)  # least and largest factor on the template's luminance
BANDS = (1.0, 2.0, 4.0)  # texels of 72 rows: where its detail is cut into bands, each with a contrast of its own
BAND_CONTRAST = (0.6, 2.0)
COLOUR_CONTRAST = (0.5, 2.5)  # of the template's finer colour
OUTLIERS = 0.01  # of the wearer's texels, whose colours say nothing about what suits them
BRIGHTEST, BRIGHT = 0.005, 0.05  # of the texels: whose colour all that is as bright has, and where that begins
FINEST, COLOUR = 1.45, 1.2  # how much stronger than the wearer's, since sampling at the photo's pixels takes from both

# What of a face's geometry should be alike; a squared difference counts 1 / spread^2. The spreads are of the order of
# those among people, weighted by how much a wrong one shows: a turned nose and an open mouth most.
GEOMETRY = {"turn": 0.085, "nod": 0.06, "mouth opening": 0.08, "mouth width": 0.12, "smile": 0.05}
SKIN = 0.21  # of RGB colours
BEARD = 0.06  # of luminance: upper lip and chin, each against the cheeks
LIKENESS = 0.025  # of luminance, root of the mean square over the mask
SAME_PERSON = 0.925  # correlation of structures: two views of an embedded person reach it, 1 % of LFW do

# Where they are in canonical space, top, bottom, left and right; chosen on the mean face.
UPPER_LIP = (0.35, 0.49, 0.35, 0.64)
CHIN = (0.68, 0.78, 0.40, 0.59)
CHEEKS = ((0.32, 0.54, 0.15, 0.27), (0.32, 0.54, 0.73, 0.85))


def adapt(templates: Tensor, own: Tensor) -> Tensor:
    """Templates (B, 3, h, w) with the wearers' coarse colours, and their contrast in detail of each size.

    own (B, 3, h, w): unwrapped. Landmarks lie at the same texels in both, so that the wearer's lips lend their colour
    to the template's. What makes another face of it, the form, is in the luminance.
    """
    light, own_light = luminance(templates), luminance(own)
    colour, own_colour = templates - light, own - own_light
    form, own_form = masking.structure(light), masking.structure(own_light)
    for size in BANDS:
        sigma = size * own.shape[2] / 72
        coarser, own_coarser = blurred(form, sigma), blurred(own_form, sigma)
        gain = FINEST if size == BANDS[0] else 1.0
        band = form - coarser
        light = light + (_contrast(band, own_form - own_coarser, gain, 0.002, BAND_CONTRAST) - 1) * band
        form, own_form = coarser, own_coarser
    light = light + (_contrast(form, own_form, 1.0, 0.01, CONTRAST) - 1) * form
    own_coarse, fine = _coarse(own_colour), colour - _coarse(colour)
    colour = own_coarse + _contrast(fine, own_colour - own_coarse, COLOUR, 0.002, COLOUR_CONTRAST) * fine
    return _within(light + torch.minimum(torch.maximum(colour, _least(own_colour)), -_least(-own_colour)), own)


def _coarse(colour: Tensor) -> Tensor:
    """Colours (B, C, h, w) without detail, of lips and skin apart.

    Red lips would redden the skin beside them, and what is left of that skin's own colour would be green.
    """
    sigma = COLOUR_BLUR * colour.shape[2] / 72
    lips = masking.lips(colour)[None, None]
    skin = blurred(colour * (1 - lips), sigma) / blurred(1 - lips, sigma).clamp_min(1e-4)
    return skin.lerp(blurred(colour, sigma), blurred(lips, sigma / 4))


def _least(colour: Tensor) -> Tensor:
    """The least of each channel that the wearer's colours (B, 3, h, w) or grey have, but for outliers: (B, 3, 1, 1).

    Strengthened detail of colour goes beyond it: teeth among red lips would turn green.
    """
    flat = colour.flatten(2)
    return flat.kthvalue(max(1, round(OUTLIERS * flat.shape[2])), 2).values.clamp(max=0)[..., None, None]


def _within(templates: Tensor, own: Tensor) -> Tensor:
    """Templates that, once cloned, are nowhere brighter or darker than the wearer, in each channel.

    With contrast strengthened for a wearer with wrinkles or a beard, teeth would shine, and yellow. What is as bright
    as the wearer's brightest places has the colour of these.
    """
    worn, inside = masking.seamless(templates, own), masking.seam_opacity(own) > 0
    own_light = luminance(own).where(inside, -torch.inf).flatten(2)
    brightest = own_light.topk(max(1, round(BRIGHTEST * own_light.shape[2])), 2)
    bright = own_light.kthvalue(round((1 - BRIGHT) * own_light.shape[2]), 2).values[..., None, None]
    top = own.flatten(2).gather(2, brightest.indices.expand(-1, 3, -1)).mean(2)[..., None, None]
    light, top_light = luminance(worn), luminance(top)
    share = ((light - bright) / (top_light - bright).clamp_min(1e-3)).clamp(0, 1).square()
    limited = worn.lerp(top + (light - top_light).clamp(max=0), share)
    low = own.where(inside, torch.inf).amin((2, 3), keepdim=True)
    high = own.where(inside, -torch.inf).amax((2, 3), keepdim=True)
    return templates + (torch.minimum(torch.maximum(limited, low), high) - worn) * inside


def _contrast(detail: Tensor, own: Tensor, gain: float, noise: float, bounds: tuple[float, float]) -> Tensor:
    """The factor (B, 1, 1, 1) with which a template's detail is `gain` times as strong as the wearer's."""
    return ((gain * _spread(own) + noise) / (_spread(detail) + noise)).clamp(*bounds)


class Profile(NamedTuple):
    """What makes one lower face suit another; the first dimension is that of the faces."""

    geometry: Tensor  # (N, 5), see `geometry`
    skin: Tensor  # (N, 3)
    form: Tensor  # (N, h * w): the luminance that seamless placement keeps; its norm is the root of the mean square
    beard: Tensor  # (N, 2), see `beard`


def profile(textures: Tensor, landmarks: Tensor) -> Profile:
    """Of textures (N, 3, h, w), unwrapped from faces with landmarks (N, 68, 2) in pixels of any size."""
    form = blurred(masking.structure(luminance(textures)), 1.5 * textures.shape[2] / 72)
    flat = form.flatten(1)
    return Profile(geometry(landmarks), skin_colour(textures), flat / flat.shape[1] ** 0.5, beard(form))


def costs(wearers: Profile, templates: Profile) -> Tensor:
    """How badly each of T templates suits each of B wearers, (B, T); infinite where it shows the wearer.

    The sum of squared differences of pose, expression, skin colour, beard and, of the luminance that the mask would
    change, after the template's contrast is adapted to the wearer's.
    """
    spreads = constant(list(GEOMETRY.values()), wearers.geometry)
    pose = (wearers.geometry[:, None] - templates.geometry) / spreads
    skin = (wearers.skin[:, None] - templates.skin) / SKIN
    beards = (wearers.beard[:, None] - templates.beard) / BEARD
    alike = wearers.form @ templates.form.T
    size, other_size = wearers.form.norm(dim=1)[:, None], templates.form.norm(dim=1)
    factor = (size / other_size).clamp(*CONTRAST)
    change = size.square() - 2 * factor * alike + (factor * other_size).square()
    total = sum(difference.square().sum(2) for difference in (pose, skin, beards)) + change / LIKENESS**2
    return total.masked_fill(alike / (size * other_size) > SAME_PERSON, torch.inf)


def geometry(landmarks: Tensor) -> Tensor:
    """Pose and expression (B, 5), in the order of GEOMETRY, from landmarks (B, 68, 2) px of any rotation and size.

    Turn: the nose tip's offset from the middle between the jaw's ends, in half widths. The others along the face's
    axes, in distances between the eyes.
    """
    left, right = landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)
    between = (right - left).norm(dim=1).clamp_min(1e-6)
    across = (right - left) / between[:, None]
    down = torch.stack([-across[:, 1], across[:, 0]], 1)

    def height(*points: int) -> Tensor:
        place = torch.stack([landmarks[:, point] for point in points], 1).mean(1) - (left + right) / 2
        return (place * down).sum(1) / between

    def distance(a: int, b: int) -> Tensor:
        return (landmarks[:, a] - landmarks[:, b]).norm(dim=1) / between

    nod = height(30) / height(8).clamp_min(0.1)
    smile = height(48, 54) - height(51, 57)
    return torch.stack([turn(landmarks), nod, distance(62, 66), distance(48, 54), smile], 1)


def turn(landmarks: Tensor) -> Tensor:
    """Head turn (B,) in [-1, 1]: how far the nose's tip is from the middle between the jaw's ends."""
    left, right, nose = landmarks[:, 1], landmarks[:, 15], landmarks[:, 30]
    across = right - left
    return 2 * ((nose - left) * across).sum(1) / across.square().sum(1).clamp_min(1e-6) - 1


def beard(form: Tensor) -> Tensor:
    """Luminance of upper lip and chin less that of the cheeks, (N, 2), of `masking.structure` (N, 1, h, w)."""
    height, width = form.shape[2:]

    def light(top: float, bottom: float, left: float, right: float) -> Tensor:
        rows, columns = (
            slice(round(top * height), round(bottom * height)),
            slice(round(left * width), round(right * width)),
        )
        return form[:, 0, rows, columns].mean((1, 2))

    cheeks = torch.stack([light(*cheek) for cheek in CHEEKS]).mean(0)
    return torch.stack([light(*UPPER_LIP), light(*CHIN)], 1) - cheeks[:, None]


def skin_colour(textures: Tensor) -> Tensor:
    """(B, 3): the median over the lower face, which lips, nostrils and beards seldom move."""
    return textures.flatten(2).median(2).values


def luminance(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (images * constant(LUMINANCE, images).view(3, 1, 1)).sum(1, keepdim=True)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), mirrored at the edges; sigma in pixels."""
    reach = max(1, min(round(3 * sigma), min(images.shape[2:]) - 1))
    down, across = (_blur(length, sigma, reach, images.dtype, images.device) for length in images.shape[2:])
    return down @ images @ across.T


@lru_cache(maxsize=32)
def _blur(length: int, sigma: float, reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same along one axis, weights (length, length): a product of small matrices is faster than a convolution."""
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    places = torch.arange(length)[:, None] + offsets.long()
    places = (length - 1) - ((length - 1) - places.abs()).abs()  # mirrored, without the edge itself twice
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand(length, -1)).to(device, dtype)


def _spread(x: Tensor) -> Tensor:
    """Root of the mean square over the mask, of all channels together: (B, C, h, w) -> (B, 1, 1, 1)."""
    where = masking.seam_opacity(x)
    return ((x.square() * where).sum((1, 2, 3), keepdim=True) / where.sum()).clamp_min(1e-12).sqrt()
