"""Any face embedder or mask detector as an ONNX file, described by a JSON sidecar (`sidecar`)."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_mask import files, landmarks
from gan_mask.errors import GanMaskError
from gan_mask.pretrained import alignment, thresholds
from gan_mask.pretrained.protocol import Detector, Embedder, resize
from gan_mask.pretrained.sidecar import Normalise, SidecarClassifier, file_of, read_sidecar, size_of
from gan_mask.pretrained.streamline import streamline

OVERLAP = 0.2  # 0.4 would miss the boxes of tightly framed faces: 1.7 % of realmask160's masked crops


def read_model(file: Path) -> Any:
    """The ONNX file as an onnx.ModelProto. Raises GanMaskError when it is damaged or something else."""
    import onnx

    try:
        return onnx.load(str(file))
    except Exception as error:  # protobuf and onnx raise their own kinds
        raise GanMaskError(f"{file}: not convertible to torch ({type(error).__name__}: {error})") from error


def checksum(file: Path) -> str:
    """SHA-256 of an ONNX file, with its weights: `cat FILE EXTERNAL... | sha256sum`, in the order of their names."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    graph = onnx.load(str(file), load_external_data=False).graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    kept_in = [
        entry.value for t in tensors if uses_external_data(t) for entry in t.external_data if entry.key == "location"
    ]
    return files.sha256(file, *(file.parent / name for name in sorted(set(kept_in))))


def inputs_of(model: Any) -> list[Any]:
    """The onnx.ValueInfoProtos of what is to be given; older files list their weights as inputs, too."""
    stored = {i.name for i in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in stored]


def to_torch(model: Any, file: Path, example: Tensor) -> tuple[nn.Module, list[list[int]]]:
    """An onnx.ModelProto as a torch module in eval mode, and the shapes of its outputs for `example` [2,3,H,W].

    Run row by row, with a note, if it was exported for one row. `file` is what to call it in the GanMaskError.
    """
    from onnx2torch import convert

    _check_input(model, file)
    try:
        net = streamline(convert(model).eval())
    except Exception as error:  # onnx and onnx2torch raise their own kinds
        raise GanMaskError(f"{file}: not convertible to torch ({type(error).__name__}: {error})") from error
    with torch.no_grad():
        try:
            alone = _outputs(RowByRow(net)(example))
        except Exception as error:  # whatever an operation says about a shape that it was not made for
            raise GanMaskError(f"{file}: does not take a picture of {list(example.shape[1:])} ({error})") from error
        try:
            together = _outputs(net(example))
        except Exception:
            together = []
    shapes = [list(output.shape) for output in alone]
    if any(shape[:1] != [2] for shape in shapes):
        raise GanMaskError(f"{file}: a row of answers per picture expected, found {shapes} for two pictures")
    if shapes == [list(output.shape) for output in together] and all(map(_alike, alone, together)):
        return net, shapes
    print(f"note: {file}: exported for one picture at a time, so it is run row by row", file=sys.stderr)
    return RowByRow(net), shapes


def _check_input(model: Any, file: Path) -> None:
    from onnx import TensorProto

    inputs = inputs_of(model)
    if len(inputs) != 1:
        raise GanMaskError(f"{file}: one input expected, it has {', '.join(i.name for i in inputs) or 'none'}")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise GanMaskError(f"{file}: its input is {kind}; float32 is expected: export it in float32")
    sides = [d.dim_value for d in tensor.shape.dim]  # 0 where a side is left open
    if len(sides) == 4 and sides[3] == 3 and sides[1] != 3:
        raise GanMaskError(
            f"{file}: its input is NHWC, {sides[1]} x {sides[2]} x 3; NCHW is expected: export it so "
            f"(tf2onnx: --inputs-as-nchw {inputs[0].name})"
        )


def _outputs(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _alike(a: Tensor, b: Tensor) -> bool:
    size = float(a.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * size, equal_nan=True)


class RowByRow(nn.Module):
    """A network that takes one picture at a time."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Any:
        rows = [_outputs(self.net(picture)) for picture in pictures.split(1)]
        outputs = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs


def _network(path: Path, sidecar: dict[str, Any]) -> tuple[nn.Module, str, list[list[int]]]:
    """The ONNX file that the sidecar at `path` names, as a torch module; its SHA-256; shapes of its outputs for two."""
    file, expected = file_of(path, sidecar), sidecar.get("sha256")
    model = read_model(file)
    digest = checksum(file)
    if expected and digest != expected:
        raise GanMaskError(f"{file}: SHA-256 is {digest}, but {path} expects {expected}; damaged or another version")
    pictures = torch.rand(2, 3, *sidecar["size"], generator=torch.Generator().manual_seed(0))
    net, shapes = to_torch(model, file, Normalise(sidecar)(pictures))
    return net, digest, shapes


class OnnxEmbedder(Embedder):
    def __init__(self, path: Path, sidecar: dict[str, Any]):
        super().__init__()
        self.name, self.size = f"onnx:{path}", size_of(sidecar)
        self.published = sidecar.get("published", {})
        self.thresholds = thresholds.checked(sidecar["thresholds"], str(path)) if "thresholds" in sidecar else {}
        self.template = torch.tensor(sidecar["template"], dtype=torch.float32)
        self.normalise = Normalise(sidecar)
        self.net, self.weights_sha256, outputs = _network(path, sidecar)
        if len(outputs) != 1:
            raise GanMaskError(f"{path}: an embedder has one output, its network has {len(outputs)}")
        self.freeze()

    def embed(self, faces: Tensor, landmarks: Tensor) -> Tensor:
        return self.net(self.normalise(alignment.chips(faces, landmarks, self.template, *self.size))).flatten(1)


class OnnxSSD(Detector):
    """A single-shot detector with the two classes mask and bare face, asked about one face.

    The crop is pasted into the middle of a grey canvas. The detector's answer for it is the best-scoring box
    that contains the crop's centre. Of all anchors, those are "on the face" whose decoded box contains
    the centre and overlaps the expected face box (from `landmarks.frame`) with IoU >= OVERLAP. With
    m = max mask logit and b = max bare logit over them, both shifted so that 0 is the operating point:

        face_logit = max(m, b)          > 0 iff the best box is confident: a face is found
        mask_logit = m - max(0, b)      > 0 iff moreover its class is mask: flagged

    (the best anchor's class is mask exactly when m > b; non-maximum suppression does not drop the best box).
    As losses the plain maxima would pull at one anchor at a time, so the gradients are those of the same
    formulas with softened maxima: m and b become logsumexp over the anchors on the face, max(0, b) becomes
    softplus(b). The values stay the detector's decision. Anchors off the face are never scored: on a bare
    face the highest mask logit of all sits in the border, the same for every picture.
    """

    anchors: Tensor
    face_box: Tensor
    variances: Tensor
    stand_in: Tensor

    def __init__(self, path: Path, sidecar: dict[str, Any]):
        super().__init__()
        self.name, self.size = f"onnx:{path}", size_of(sidecar)
        self.inner = (round(self.size[0] / sidecar["canvas_factor"]), round(self.size[1] / sidecar["canvas_factor"]))
        self.grey = sidecar["canvas_grey"] / 255
        self.boxes, self.logits = sidecar["outputs"]["boxes"], sidecar["outputs"]["logits"]
        self.mask, self.bare = sidecar["classes"]["mask"], sidecar["classes"]["bare"]
        self.operating_point = math.log(sidecar["score"] / (1 - sidecar["score"]))
        self.register_buffer("anchors", _anchors(sidecar))
        self.register_buffer("variances", torch.tensor(sidecar["variances"]))
        self.register_buffer("face_box", 0.5 + (_face_box() - 0.5) / sidecar["canvas_factor"])
        undecoded = _decode(torch.zeros_like(self.anchors), self.anchors, self.variances)
        self.register_buffer("stand_in", self._overlap(undecoded) >= OVERLAP)
        if not self.stand_in.any():
            raise GanMaskError(f"{path}: no anchor overlaps a face in the middle of the canvas; check 'anchor_sizes'")
        self.normalise = Normalise(sidecar)
        self.net, _, outputs = _network(path, sidecar)
        due = {self.boxes: [2, len(self.anchors), 4], self.logits: [2, len(self.anchors), 2]}
        if any(index >= len(outputs) or outputs[index] != shape for index, shape in due.items()):
            raise GanMaskError(f"{path}: outputs of shapes {due} expected by the sidecar's anchors, found {outputs}")
        self.freeze()

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(self.normalise(self.canvas(faces)))
        logits = outputs[self.logits].float() - self.operating_point  # (B,N,2)
        on_face, found = self.on_face(outputs[self.boxes].detach().float())
        score = logits.masked_fill(~on_face[..., None], -torch.inf)
        mask, bare = score[..., self.mask], score[..., self.bare]  # (B,N)
        m, b = mask.amax(1), bare.amax(1)
        # Without any box on the face there is no face, whatever the anchors there say.
        limit = torch.where(found, torch.inf, 0.0)
        mask_logit = (m - b.clamp_min(0)).minimum(limit)
        face_logit = torch.maximum(m, b).minimum(limit)
        soft_m, soft_b = mask.logsumexp(1), bare.logsumexp(1)
        return (
            _value_of(mask_logit, soft_m - F.softplus(soft_b)),
            _value_of(face_logit, torch.logaddexp(soft_m, soft_b)),
        )

    def canvas(self, faces: Tensor) -> Tensor:
        """The crop in the middle of the grey canvas: [B,3,H,W] -> [B,3,*size]."""
        (height, width), (inner_height, inner_width) = self.size, self.inner
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        padding = (left, width - inner_width - left, top, height - inner_height - top)
        return F.pad(resize(faces, inner_height, inner_width), padding, value=self.grey)

    def on_face(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Which anchors are scored (B,N), from raw boxes (B,N,4), and whether any box lies on the face (B,).

        Where none does, the anchors whose undecoded box overlaps the face stand in, so that a loss can recover it.
        """
        decoded = _decode(raw, self.anchors, self.variances)
        holds_centre = (decoded[..., :2] < 0.5).all(-1) & (decoded[..., 2:] > 0.5).all(-1)
        on_face = holds_centre & (self._overlap(decoded) >= OVERLAP)
        found = on_face.any(1)
        return torch.where(found[:, None], on_face, self.stand_in), found

    def _overlap(self, boxes: Tensor) -> Tensor:
        """Intersection over union of corner boxes (...,4) with the expected face."""
        from torchvision.ops import box_iou

        return box_iou(boxes.reshape(-1, 4), self.face_box[None]).view(boxes.shape[:-1])


def _value_of(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, the gradient of `soft`."""
    return hard.detach() + (soft - soft.detach())


def _face_box() -> Tensor:
    """(x0, y0, x1, y1) of the face in an aligned crop, relative to its side; 1.35 jaw widths high (LFW's median)."""
    points = landmarks.frame(1, 0.375) + 0.5
    left, right, chin = points[0, 0], points[16, 0], points[8, 1]
    return torch.stack([left, chin - 1.35 * (right - left), right, chin])


def _anchors(sidecar: dict[str, Any]) -> Tensor:
    """(N, 4) centre x, centre y, width, height, relative to the input."""
    first, *others = sidecar["anchor_ratios"]
    levels = []
    for cells, (small, large) in zip(sidecar["grids"], sidecar["anchor_sizes"], strict=True):
        shapes = [(side * first**0.5, side / first**0.5) for side in (small, large)]
        shapes += [(small * ratio**0.5, small / ratio**0.5) for ratio in others]
        centres = (torch.arange(cells) + 0.5) / cells
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        centre = torch.stack([x, y], -1).view(-1, 1, 2).expand(-1, len(shapes), 2)
        shape = torch.tensor(shapes).expand(cells * cells, -1, 2)
        levels.append(torch.cat([centre, shape], -1).flatten(0, 1))
    return torch.cat(levels)


def _decode(raw: Tensor, anchors: Tensor, variances: Tensor) -> Tensor:
    """Raw boxes (B,N,4) -> corners x0, y0, x1, y1."""
    centre = anchors[:, :2] + raw[..., :2] * variances[:2] * anchors[:, 2:]
    half = anchors[:, 2:] * (raw[..., 2:] * variances[2:]).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def load_embedder(path: str | Path) -> OnnxEmbedder:
    """The embedder of the sidecar at `path`."""
    return OnnxEmbedder(Path(path), read_sidecar(path, "embedder"))


def load_detector(path: str | Path) -> Detector:
    """The mask detector of the sidecar at `path`: an SSD or a classifier."""
    path, sidecar = Path(path), read_sidecar(path, "ssd", "classifier")
    if sidecar["kind"] == "ssd":
        return OnnxSSD(path, sidecar)
    net, _, outputs = _network(path, sidecar)
    return SidecarClassifier(f"onnx:{path}", path, sidecar, net, outputs)
