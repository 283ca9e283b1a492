"""facenet-pytorch's InceptionResnetV1 (VGGFace2 or CASIA-WebFace), 512-D embeddings.

The network expects MTCNN boxes squeezed to a square, so a chip is cut with the box's own shape first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_mask import files, weights
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import alignment, thresholds
from gan_mask.pretrained.protocol import Embedder, resize

FILES = {"vggface2": "20180402-114759-vggface2.pt", "casia-webface": "20180408-102900-casia-webface.pt"}
SIZE = 160
BOX_WIDTH = 120  # an MTCNN box is 3/4 as wide as high (median on LFW)
# The five points of our landmarks within MTCNN boxes on LFW (medians), with the margin of 14 pixels in 160
# that facenet-pytorch's own LFW evaluation uses.
TEMPLATE = torch.tensor([(35.5, 63.9), (84.9, 63.9), (60.3, 90.3), (38.0, 116.8), (83.3, 116.8)])


class FaceNet(Embedder):
    def __init__(self, net: nn.Module, name: str, weights_sha256: str):
        super().__init__()
        self.net, self.name, self.weights_sha256 = net, name, weights_sha256
        self.thresholds = thresholds.shipped(name)
        self.freeze()

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        chips = alignment.chips(faces, landmarks, TEMPLATE, SIZE, BOX_WIDTH)
        return self.net((resize(chips, SIZE, SIZE) * 255 - 127.5) / 128)


def load(trained_on: str) -> FaceNet:
    """trained_on: a key of FILES. Raises GanMaskError saying where the file comes from and where to put it."""
    path = weights.find(FILES[trained_on])
    from facenet_pytorch import InceptionResnetV1

    net = InceptionResnetV1()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict({k: v for k, v in state.items() if not k.startswith("logits.")})
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise GanMaskError(f"{path}: not facenet-pytorch's {trained_on} weights, or damaged ({error})") from error
    return FaceNet(net, f"facenet-{trained_on}", files.sha256(path))
