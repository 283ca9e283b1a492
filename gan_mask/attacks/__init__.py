"""The methods. They share one signature, so that every command and every evaluation takes any of them.

`attacks.method(name)` makes one. It maps wearers to mask textures in canonical space:
`method.apply(faces [B,3,H,W] in [0,1], landmarks [B,68,2] px, templates [B,3,h,w]).textures [B,3,h,w]`,
and knows how they are worn: `method.mask` puts them on the crops, `method.mask_photos` on photos of any size.
None in place of textures means that no mask is worn.
"""

from gan_mask.attacks.advface import AdvFace
from gan_mask.attacks.advnoise_dm import AdvNoiseDM
from gan_mask.attacks.base import Method, Painted, Result
from gan_mask.attacks.benign import PLAIN, dm, dm_adapted, none, plain
from gan_mask.attacks.methods import METHODS, OPTIMISED, method
from gan_mask.attacks.mf2m import MF2M
from gan_mask.attacks.optimised import Optimised
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
    "Painted",
    "Result",
    "dm",
    "dm_adapted",
    "method",
    "none",
    "plain",
]
