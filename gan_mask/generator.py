"""The conditional generator (faces in, masked faces out), and how a checkpoint is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn

from gan_mask import hub, likeness, masking
from gan_mask import templates as shipped
from gan_mask.errors import GanMaskError
from gan_mask.files import read_json, read_safetensors
from gan_mask.networks import OWN, GeneratorConfig, TextureUNet, generator_config
from gan_mask.values import to_dict

SHIPPED = Path(__file__).parent / "assets" / "faces160"  # the default generator; its card: checkpoints/faces160


class Generator(nn.Module, PyTorchModelHubMixin):
    """Faces in, masked faces out, in one forward pass: `masked = generator(faces, landmarks)`."""

    template: Tensor  # (3, h, w), where default_template is OWN

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        """With random weights. GanMaskError names a field of `config` that is wrong."""
        super().__init__()
        self.config = generator_config(to_dict(config or GeneratorConfig()))
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
        names = shipped.best(faces, landmarks) if name == "match" else [name]
        return shipped.load_all(names, self.texture_size)

    def texture(
        self, faces: Tensor, landmarks: Tensor, templates: Tensor | None = None, seed: int = 0, strength: float = 1.0
    ) -> Tensor:
        """Mask textures (B, 3, h, w) in [0, 1] for faces (B, 3, H, W) in [0, 1] with landmarks (B, 68, 2) px.

        templates: textures (B or 1, 3, h, w) in [0, 1] of the faces printed on the masks; by default the
        one that the configuration names. With seamless placement they are adapted to the wearers first.
        strength: share of its change to make, 0 or more: 0 is the template alone, 1 as it was trained.
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
        return self.net(own.to(z), templates.to(z), z, strength).texture

    def other_face(
        self, faces: Tensor, landmarks: Tensor, adapted: Tensor, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What it changes about templates already adapted to the wearers, unbounded (`facespace.Bounds`)."""
        own = masking.unwrap(faces, landmarks, self.texture_size)
        raw = self.net(own, adapted.to(faces), self.noise(len(faces), seed)).raw
        assert raw is not None, "a generator with face heads is asked"
        return raw

    def forward(
        self, faces: Tensor, landmarks: Tensor, templates: Tensor | None = None, seed: int = 0, strength: float = 1.0
    ) -> Tensor:
        """Masked faces (B, 3, H, W) in [0, 1], of the faces' dtype; arguments as in `texture`."""
        texture = self.texture(faces, landmarks, templates, seed, strength)
        return masking.put_on(faces, landmarks, texture, self.config.placement, self.config.softness)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # in place of its way, which would read a pickle, too
        cls, path: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None
    ) -> Generator:
        """`load_generator`."""
        return load_generator(path, device, revision)

    def generate_model_card(self, name: str = "generator", report: str | Path | None = None) -> ModelCard:
        """README.md of a saved or pushed generator, see `hub.card`; report: OUT folder of its evaluation."""
        return hub.card(name, self.config, self, report)

    def push_to_hub(self, repo_id: str, *, report: str | Path | None = None, **options: Any) -> str:
        """Upload to "user/name" on the Hugging Face hub; the commit's address there.

        report: OUT folder of an evaluation of this generator, whose rates the model card then has. options: those of
        `huggingface_hub.ModelHubMixin.push_to_hub`, such as private, token and commit_message. GanMaskError where the
        report is of another generator, before anything is sent, or the hub does not take it.
        """
        card: dict[str, Any] = {"name": repo_id.rpartition("/")[2], "report": report}
        self.generate_model_card(**card)
        try:
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)
        except (OSError, ValueError) as error:  # all of the hub's own are one or the other
            raise GanMaskError(f"{repo_id}: the hub did not take it ({_first_line(error)})") from error

    if TYPE_CHECKING:
        __call__ = forward  # nn.Module's own is untyped


def load_generator(
    path: str | Path = SHIPPED, device: str | torch.device = "cpu", revision: str | None = None
) -> Generator:
    """The generator in folder `path` (config.json + model.safetensors), frozen and in eval mode.

    The default is the one that comes with the package. A run folder of train.py works, too, and so does "user/name" on
    the Hugging Face hub; `revision` is a branch, tag or commit there. `Generator.save_pretrained` writes such a
    folder, and `push_to_hub` uploads it. Raises GanMaskError, naming the file, when something is missing, damaged, or
    does not fit together.
    """
    folder = _checkpoint_folder(local(path, revision))
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise GanMaskError(f"{folder / 'config.json'}: expected an object of generator options")
    generator = Generator(generator_config(values))
    weights = generator.net.completed(read_safetensors(folder / "model.safetensors"))
    missing = sorted(set(generator.state_dict()) ^ set(weights))
    wrong = [k for k, v in generator.state_dict().items() if k in weights and weights[k].shape != v.shape]
    if missing or wrong:
        raise GanMaskError(
            f"{folder}: config.json and model.safetensors do not belong together; "
            f"differing keys: {', '.join((missing + wrong)[:8])}"
        )
    generator.load_state_dict({k: v.float() for k, v in weights.items()})
    return generator.eval().requires_grad_(False).to(device)


def local(path: str | Path, revision: str | None = None) -> Path:
    """`path`, or the folder to which a generator from the Hugging Face hub is downloaded.

    "user/name" means the hub unless there is a folder `user` here.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) or Path(path).exists() or Path(path).parent.exists():
        return Path(path)
    try:
        files = [hf_hub_download(str(path), name, revision=revision) for name in ("config.json", "model.safetensors")]
    except (OSError, ValueError) as error:  # all of the hub's own are one or the other
        reason = f"no such folder, and not to be had from huggingface.co ({_first_line(error)})"
        raise GanMaskError(f"{path}: {reason}") from error
    return Path(files[0]).parent


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _checkpoint_folder(path: Path) -> Path:
    if (path / "config.json").is_file():
        return path
    if (path / "generator" / "config.json").is_file():  # a run folder of train.py
        return path / "generator"
    shipped = Path("checkpoints")
    known = sorted(p.parent.name for p in shipped.glob("*/config.json")) if shipped.is_dir() else []
    hint = f"; shipped: {', '.join(f'checkpoints/{k}' for k in known)}" if known else ""
    raise GanMaskError(f"{path}: no checkpoint here (expected config.json and model.safetensors){hint}")
