"""What an evaluation works with: the probes, networks and methods of its options, here or in a worker of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gan_mask import attacks, pretrained, templates
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.data import PreparedSet
from gan_mask.evaluation import folders
from gan_mask.evaluation.options import EvaluationConfig
from gan_mask.evaluation.protocol import Probes, choose_probes, spread
from gan_mask.evaluation.run import Experiment
from gan_mask.faces import FaceFinder
from gan_mask.generator import SHIPPED, Generator, load_generator, local
from gan_mask.networks import GeneratorConfig


def load(c: EvaluationConfig, device: str) -> tuple[Experiment, Generator | None]:
    """All but our own methods, which need thresholds (`methods_of`); and the generator, where one is asked for."""
    photos = PreparedSet(c.data, c.split)
    probes = choose_probes(photos, c.probes, c.seed)
    given = pictures_of(c, photos, probes)
    checkpoint = checkpoint_of(c)
    generator = load_generator(checkpoint, device) if checkpoint else None
    shape = generator.config if generator else GeneratorConfig()
    embedders = {name: pretrained.load_embedder(name, device) for name in (*c.surrogates, *c.held_out)}
    detectors = {name: pretrained.load_detector(name, device) for name in (*c.detectors, *c.held_out_detectors)}
    texture_size = (shape.texture_height, shape.texture_width)
    bank = None if c.templates == ("match",) else templates.load_all(c.templates, texture_size)
    changed = spread(probes.identity, c.changed_probes, c.seed)
    experiment = Experiment(
        Path(c.out), photos, probes, dict(given), bank, texture_size, c.harmonise, embedders, detectors, changed,
        FaceFinder(device), device,
    )  # fmt: skip
    return experiment, generator


def pictures_of(c: EvaluationConfig, photos: PreparedSet, probes: Probes) -> dict[str, folders.Folder]:
    """By name: what other tools made of the probes, with a word on pictures of nobody among them."""
    given = [found for found in map(folders.parse, dict.fromkeys(c.methods)) if found]
    names = folders.names_of(photos, probes.index) if given else []
    return {name: folders.open_folder(name, path, names) for name, path in given}


def methods_of(
    c: EvaluationConfig, e: Experiment, generator: Generator | None, thresholds: Sequence[float]
) -> dict[str, attacks.Method | folders.Folder]:
    """By name, with the folders that `e` has; 'none', which all are set against, comes first.

    thresholds: of the surrogates, at the false-accept rate of the attacks.
    """
    surrogates = Surrogates(
        [e.embedders[name] for name in c.surrogates], list(thresholds), [e.detectors[name] for name in c.detectors]
    )
    softness = (generator.config if generator else GeneratorConfig()).softness
    options = c.attack.within(c.seed, c.placement, softness)
    return {
        name: e.methods[name]
        if name in e.methods
        else attacks.method(
            name, generator, surrogates, replace(options, placement="paper") if name == "dm" else options
        )
        for name in dict.fromkeys(["none", *map(folders.name_of, c.methods)])
    }


def checkpoint_of(c: EvaluationConfig) -> Path | None:
    """The generator's folder: the shipped one where none is given; None where no generator is asked for."""
    if c.checkpoint:
        return local(c.checkpoint)
    return SHIPPED if "generator" in c.methods else None
