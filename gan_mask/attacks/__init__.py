"""The methods, with one signature, so that every command and every evaluation takes any of them.

A method maps wearers to mask textures in canonical space:
`method(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px, templates [B,3,h,w]) -> textures [B,3,h,w]`,
and knows how they are worn: `method.wear` puts them on the crop, `photos.wear_on_photo` on a photo of any size.
None in place of textures means that no mask is worn.
"""

from gan_mask.attacks.advface import AdvFace
from gan_mask.attacks.advnoise_dm import AdvNoiseDM
from gan_mask.attacks.benign import PLAIN, dm, dm_adapted, none, plain
from gan_mask.attacks.methods import METHODS, OPTIMISED, Method, method
from gan_mask.attacks.mf2m import MF2M
from gan_mask.attacks.optimised import Optimised, Record
from gan_mask.attacks.options import Options

__all__ = [
    "METHODS",
    "MF2M",
    "OPTIMISED",
    "PLAIN",
    "AdvFace",
    "AdvNoiseDM",
    "Method",
    "Optimised",
    "Options",
    "Record",
    "dm",
    "dm_adapted",
    "method",
    "none",
    "plain",
]
