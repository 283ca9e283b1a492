"""The evaluation: the order in which things are done, and its command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_mask import attacks, cli, evaluation, files, pretrained, run_record, weights
from gan_mask.cli.methods import flat, parse_with_attack
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import (
    appearance,
    experiment,
    folders,
    gate,
    groups,
    large_photos,
    output,
    page,
    published,
    realism,
    shards,
)
from gan_mask.evaluation.clean import Clean, lfw_accuracy, thresholds_of
from gan_mask.evaluation.options import ENGINE, EvaluationConfig, check, engine_of
from gan_mask.evaluation.protocol import spread
from gan_mask.evaluation.rates import Sets
from gan_mask.evaluation.report import Report, cost_of, figures_of
from gan_mask.evaluation.run import Experiment, collect, open_folder, work
from gan_mask.generator import Generator
from gan_mask.networks import GeneratorConfig
from gan_mask.pretrained.perceptual import Perceptual
from gan_mask.pretrained.protocol import fingerprints

Networks = Sequence[tuple[str, Any]]  # name, network


def main(argv: Sequence[str] | None = None) -> None:
    c = parse_with_attack(EvaluationConfig, argv, "python -m gan_mask.evaluation", evaluation.__doc__)
    with cli.ending():
        report = run(c)
        broken = print_report(report, c) if report else []
    if broken:
        raise SystemExit(1)


def evaluate(c: EvaluationConfig) -> Report:
    """Write OUT, or resume what is there; the report, in every process that shares the work.

    GanMaskError for wrong options; limits of `require` that do not hold are in the report.
    """
    from accelerate import PartialState

    report = run(c)
    PartialState().wait_for_everyone()
    return report or Report(files.read_json(Path(c.out) / "report.json"))


def run(c: EvaluationConfig) -> Report | None:
    """The report, or None in a process that only helps another."""
    from accelerate import PartialState

    check(c)
    engine = engine_of(c)
    state = PartialState(cpu=c.device == "cpu" or c.engine == "ray")  # on Ray the device is the workers'
    if engine and state.num_processes > 1:
        raise GanMaskError(
            "--engine and --workers start processes of their own: leave them out, or start the command without "
            "accelerate launch"
        )
    a = load(c, state)
    with ExitStack() as held:
        # Masked files, re-detected; OUT belongs to this evaluation alone
        if state.is_main_process:
            held.enter_context(files.locked(a.experiment.out))
            open_folder(a.experiment.out, settings_of(a), list(attacks.METHODS))
            if c.save_probes:
                folders.save_probes(a.experiment.photos, a.experiment.probes.index, Path(c.save_probes))
        state.wait_for_everyone()
        if engine:
            shards.work(engine, c, a.experiment, attacked(c, a.calibration))
        else:
            work(a.experiment, state.process_index, state.num_processes)
        state.wait_for_everyone()
        return report_of(a) if state.is_main_process else None


@dataclass
class Assembled:
    """Everything that is loaded and chosen before the first mask is made."""

    c: EvaluationConfig
    experiment: Experiment
    sets: Sets
    generator: Generator | None
    shape: GeneratorConfig
    clean: Clean
    calibration: Mapping[str, dict[str, Any]]  # recogniser -> thresholds
    limits: list[gate.Limit]
    perceptual: Perceptual | None
    missing: str | None  # note on what cannot be measured


def load(c: EvaluationConfig, state: Any) -> Assembled:
    device = str(state.device)
    named = {"surrogates": (c.surrogates, c.detectors), "held-out": (c.held_out, c.held_out_detectors)}
    sets: Sets = {title: networks for title, networks in named.items() if any(networks)}

    # What is measured, and with which networks
    e, generator = experiment.load(c, device)
    shape = generator.config if generator else GeneratorConfig()
    perceptual, missing = _perceptual(device) if c.naturalness else (None, None)
    trained = (realism.TRAINED if perceptual else realism.SMALL) if c.naturalness else None
    limits = [gate.parse(text, sets, [folders.name_of(m) for m in c.methods], trained) for text in c.require]
    if c.protocol:
        published.thresholds_of(c.protocol, e.embedders)  # GanMaskError before any work
    surrogate, held_out = (
        [*((n, e.embedders[n]) for n in names), *((n, e.detectors[n]) for n in others)]
        for names, others in named.values()
    )
    check_held_out(generator, surrogate, held_out)

    # Thresholds from clean faces; the other processes find the embeddings in the cache
    with state.main_process_first():
        clean = Clean(c, e.photos, e.probes, e.embedders, device)
    calibration = thresholds_of(c, e.embedders, clean)

    # The methods, the optimised ones against the surrogates
    e.methods = experiment.methods_of(c, e, generator, attacked(c, calibration))
    return Assembled(c, e, sets, generator, shape, clean, calibration, limits, perceptual, missing)


def attacked(c: EvaluationConfig, calibration: Mapping[str, dict[str, Any]]) -> list[float]:
    """Thresholds of the surrogates, at the false-accept rate of the attacks."""
    return [calibration[name]["thresholds"][f"{c.far:g}"] for name in c.surrogates]


def report_of(a: Assembled) -> Report:
    """All figures, written to OUT."""
    c, e = a.c, a.experiment
    probes, clean = e.probes, a.clean
    seen, changed, costs = collect(e)
    paths = {name: e.paths(name) for name in e.methods}

    # Rates
    estimated = groups.estimates(e.photos, probes)
    figures = figures_of(c, e, a.sets, a.calibration, clean, seen, changed, estimated)
    figures["generator_sha256"] = files.weights_digest(a.generator) if a.generator else None
    if a.missing:
        figures["notes"].append(a.missing)
    if c.pairs:
        figures["lfw"] = lfw_accuracy(c, c.pairs, e.embedders, e.device)

    # Looks
    figures["notes"] += frame_folders(e, costs)
    landmarks = torch.stack([e.photos.landmarks(int(i)) for i in probes.index])
    appearances = appearance.measure_all(paths, landmarks.numpy())
    figures["looks"] = {name: appearance.table(values, probes.identity) for name, values in appearances.items()}
    if c.naturalness:
        title, cells = realism.measure(e, a.perceptual, c.seed)
        for name, cell in cells.items():
            figures["looks"][name][title] = cell
    if c.photos:
        figures["looks_on_photos"] = large_photos.measure(e, a.shape, c.photos)
    if a.perceptual:
        figures["naturalness"] = naturalness_of(a, a.perceptual, landmarks)

    # Limits, and the files
    limits = {limit.text: gate.broken(limit, figures["rates"], c.far, figures["looks"]) for limit in a.limits}
    figures["limits"] = limits
    cost = cost_of(c, e, costs)
    output.write(e, figures, cost, seen, clean, changed, estimated, appearances)
    page.write(figures, cost, e.out)
    return Report(figures)


def frame_folders(e: Experiment, costs: Mapping[str, Mapping[str, np.ndarray]]) -> list[str]:
    """Write other tools' pictures to OUT as the probes are framed; what is to be known of them."""
    notes = []
    for name, folder in e.methods.items():
        if not isinstance(folder, folders.Folder):
            continue
        if folder.surplus:
            notes.append(
                f"{name}: pictures of no probe left out, {len(folder.surplus)}: {folders.some(folder.surplus)}"
            )
        if folders.write_as_probes(folder, e.paths(name), costs[name]["places"], e.photos, e.probes.index):
            notes.append(
                f"{name}: its pictures do not frame the faces as the probes do, so looks were measured on faces cut "
                "out of them; a folder of the untouched photos is the control"
            )
    return notes


def naturalness_of(a: Assembled, perceptual: Perceptual, landmarks: torch.Tensor) -> dict[str, Any]:
    """Distances to DM and to as many real faces of other people."""
    from gan_mask.evaluation import naturalness

    e, clean = a.experiment, a.clean
    real = clean.index[spread(clean.identities, len(e.probes.index), a.c.seed)]
    return naturalness.measure(
        {name: e.paths(name) for name in e.methods},
        torch.stack([clean.photos.faces(int(i)) for i in real]),
        landmarks,
        e.probes.identity,
        clean.photos.identities[real],
        perceptual,
        e.device,
    )


def check_held_out(generator: Generator | None, surrogates: Networks, held_out: Networks) -> None:
    """A held-out network has not the weights of a surrogate, nor of what the generator was trained against.

    Checkpoints from before their config.json had the weights' checksums are compared by the names of the networks.
    """
    attacked = {files.weights_digest(network): name for name, network in surrogates}
    shape = generator.config if generator else GeneratorConfig()
    names = {file_name(name) for name in shape.trained_against if not shape.trained_against_weights}
    for name, network in held_out:
        digest = files.weights_digest(network)
        if digest in attacked:
            raise GanMaskError(
                f"{name}: it has the weights of the surrogate {attacked[digest]}, so it is not held out; "
                "name it only once"
            )
        if digest in shape.trained_against_weights or file_name(name) in names:
            raise GanMaskError(
                f"{name}: the generator was trained against it, so it is not held out; "
                "name it with --surrogates or --detectors"
            )


def file_name(network: str) -> str:
    """mobileface.json for onnx:./configs/networks/mobileface.json; other names as they are."""
    return Path(files.split_scheme(network)[1]).name


def _perceptual(device: str) -> tuple[Perceptual | None, str | None]:
    """LPIPS with AlexNet; where its weights are missing, None and a note for the report."""
    try:
        return pretrained.load_perceptual(device=device), None
    except weights.MissingWeights as error:
        return None, f"{realism.SMALL} in place of {realism.TRAINED}, no LPIPS, no distances to real faces: {error}"


def settings_of(a: Assembled) -> dict[str, Any]:
    """What the masked files and the networks' answers depend on; the same settings resume what is in OUT."""
    c, e, shape = a.c, a.experiment, a.shape
    free = {"out", "cache", "methods", "require", "pairs", "naturalness", "photos", "distractors", "fars", "device"}
    free |= {"save_probes", "protocol"} | ENGINE
    free.add("data")  # wherever it lies: its faces count
    values = {k: v for k, v in flat(c).items() if k not in free}
    values |= {"index": e.photos.fingerprint(), "networks": fingerprints(e.embedders, e.detectors)}
    values |= {"softness": shape.softness, "texture": [shape.texture_height, shape.texture_width]}
    values |= {"generator_placement": shape.placement}
    if checkpoint := experiment.checkpoint_of(c):
        values["weights"] = [files.sha256(p) for p in sorted(checkpoint.rglob("*.safetensors"))]
    values["folders"] = {name: m.digest() for name, m in e.methods.items() if isinstance(m, folders.Folder)}
    values["photos"] = {name: files.sha256(name) for name in c.templates if Path(name).is_file()}
    return run_record.inputs("evaluation", values)


def print_report(report: Report, c: EvaluationConfig) -> list[str]:
    """Returns the limits that were broken."""
    figures = report.figures
    print(f"\n{report.probes} probes of {report.identities} people ({' '.join(c.split)} split)")
    for title, by_far in report.rates.items():
        print(f"\n{title}, thresholds at FAR {c.far:g}; per cent [95 % interval over identities]")
        print(output.table(by_far[f"{c.far:g}"]))
    if part := figures.get("published"):
        for title, by_far in part["rates"].items():
            for far, both in by_far.items():
                print(f"\n{title}, {part['protocol']}'s thresholds for FAR {far} and ours; per cent")
                print(output.table(published.side_by_side(both)))
    print("\nlooks; bare faces: edge step 0, fine detail 1, skin tone difference 0, realism AUC 0.5")
    print(output.table(report.looks, factor=1, digits=2))
    if on_photos := figures.get("looks_on_photos"):
        print(f"\nlooks on {on_photos['photos']} photos of {on_photos['people']} people, at their own size")
        print(output.table(on_photos["methods"], factor=1, digits=2))
    for note in report.notes:
        print(f"note: {note}")
    print(f"\nfigures: {Path(c.out) / 'report.json'}   page: {Path(c.out) / 'index.html'}")
    for reason in report.broken:
        print(f"limit broken: {reason}", file=sys.stderr)
    return report.broken
