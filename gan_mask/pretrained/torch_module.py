"""A mask detector as a torch module: its sidecar names what builds it and a safetensors file of its weights.

A sidecar comes from elsewhere and must not run what it likes. Its `factory` is one of
    torchvision.models.NAME  a classification model of torchvision
    timm.create_model        with "model_name" among the arguments: a model of timm's, where timm is installed
    PACKAGE.MODULE.NAME      a function or class of an installed package of yours, where $GAN_MASK_FACTORIES names it
                             (several, separated by ':'): it is imported and called with the arguments
Arguments of the first two are numbers, true or false, no text but model_name and nothing "pretrained": no file is read
or fetched but the sidecar's own.
"""

from __future__ import annotations

import importlib
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_mask import files
from gan_mask.errors import GanMaskError
from gan_mask.pretrained.sidecar import Normalise, SidecarClassifier, file_of, read_sidecar

KIND = "torch-classifier"
VARIABLE = "GAN_MASK_FACTORIES"
TORCHVISION, TIMM = "torchvision.models.", "timm.create_model"


def load_detector(path: str | Path) -> SidecarClassifier:
    """The mask detector of the sidecar at `path`.

    GanMaskError for a factory that is not allowed or fails, for weights that are not the module's or are damaged, and
    for a module that does not answer a row of classes per picture.
    """
    path, sidecar = Path(path), read_sidecar(path, KIND)
    file, expected = file_of(path, sidecar), sidecar.get("sha256")
    if expected and (digest := files.sha256(file)) != expected:
        raise GanMaskError(f"{file}: SHA-256 is {digest}, but {path} expects {expected}; damaged or another version")
    net = build(path, sidecar["factory"], sidecar.get("arguments", {}))
    try:
        net.load_state_dict(files.read_safetensors(file))
    except RuntimeError as error:  # which tensors are missing, too many or of another shape
        reason = textwrap.shorten(str(error), 400)
        raise GanMaskError(f"{file}: not the weights of {path}'s {sidecar['factory']} ({reason})") from error
    pictures = torch.rand(2, 3, *sidecar["size"], generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            answer = net.eval()(Normalise(sidecar)(pictures))
    except Exception as error:  # whatever an operation says about a shape that it was not made for
        raise GanMaskError(f"{path}: its module does not take pictures of {sidecar['size']} ({error})") from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2:
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise GanMaskError(f"{path}: a row of classes per picture expected, found {found} for two pictures")
    return SidecarClassifier(f"torch:{path}", path, sidecar, net, [list(answer.shape)])


def save(net: nn.Module, path: Path) -> None:
    """The module's weights as a safetensors file, to be named by a sidecar."""
    from safetensors.torch import save_file

    # Copies, as a safetensors file holds no tensor twice, which tied weights would be.
    plain = torch.contiguous_format
    tensors = {name: value.detach().cpu().clone(memory_format=plain) for name, value in net.state_dict().items()}
    with files.replacing(path) as temporary:
        save_file(tensors, temporary)


def build(path: Path, factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The module with random weights; the caller's random numbers stay as they are."""
    make = factory_of(path, factory, arguments)
    try:
        with torch.random.fork_rng(devices=[]):
            net = make(**arguments)
    except Exception as error:  # whatever it says about its arguments
        raise GanMaskError(f"{path}: {factory} fails ({type(error).__name__}: {error})") from error
    if not isinstance(net, nn.Module):
        raise GanMaskError(f"{path}: {factory} gives a {type(net).__name__}, a torch module is expected")
    return net


def factory_of(path: Path, factory: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable of that name. GanMaskError where the sidecar may not ask for it, or for these arguments."""
    if factory in os.environ.get(VARIABLE, "").split(":"):
        return _imported(path, factory)
    if factory == TIMM:
        check_plain(path, {k: v for k, v in arguments.items() if k != "model_name"})
        timm, name = _module(path, "timm"), arguments.get("model_name")
        if not (isinstance(name, str) and timm.is_model(name)):  # others are fetched or read
            raise GanMaskError(f"{path}: timm has no model_name {name!r}")
        make: Callable[..., Any] = timm.create_model
        return make
    if factory.startswith(TORCHVISION):
        from torchvision import models

        check_plain(path, arguments)
        name = factory.removeprefix(TORCHVISION)
        if name not in models.list_models(models):
            raise GanMaskError(f"{path}: torchvision has no classification model {name!r}")
        return models.get_model_builder(name)
    raise GanMaskError(
        f"{path}: 'factory' is {factory!r}; {TORCHVISION}NAME or {TIMM} expected, or a function of your own code that "
        f"you allow with {VARIABLE}={factory}: it is imported and called"
    )


def check_plain(path: Path, arguments: Mapping[str, Any]) -> None:
    """Raises GanMaskError unless the arguments can name no file and no address, and ask for none."""
    for name, value in arguments.items():
        items = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, (bool, int, float)) for item in items):
            raise GanMaskError(f"{path}: argument {name!r} is {value!r}; numbers, true and false expected")
        if value and name.startswith(("pretrained", "weights")):
            raise GanMaskError(f"{path}: argument {name!r} is not allowed; the weights are those of 'file'")


def _imported(path: Path, factory: str) -> Callable[..., Any]:
    module, _, name = factory.rpartition(".")
    found = getattr(_module(path, module), name, None)
    if not callable(found):
        raise GanMaskError(f"{path}: {module} has no function or class {name!r}")
    return found


def _module(path: Path, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise GanMaskError(f"{path}: its factory needs the package {name!r} ({error}); install it") from error
