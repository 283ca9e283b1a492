"""The command line of the evaluation, and the order in which things are done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gan_mask import attacks, belongs, cli, evaluation, files, masking, pretrained, templates, weights
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.cli.methods import add_method_options, method_options
from gan_mask.data import SPLITS, PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import appearance, gate, groups, large_photos, output, page, realism
from gan_mask.evaluation.clean import Clean, lfw_accuracy, thresholds_of
from gan_mask.evaluation.protocol import choose_probes, spread
from gan_mask.evaluation.report import cost_of, report_of
from gan_mask.evaluation.run import Experiment, collect, open_folder, work
from gan_mask.faces import FaceFinder
from gan_mask.generator import SHIPPED, Generator, load_generator
from gan_mask.networks import GeneratorConfig
from gan_mask.pretrained.perceptual import Perceptual
from gan_mask.pretrained.protocol import fingerprints, weights_digest
from gan_mask.values import COUNT, RATE, SEED, Range

Networks = Sequence[tuple[str, Any]]  # name, network
DEFAULT_METHODS = ["none", "plain", "dm", "dm-seamless", "generator"]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m gan_mask.evaluation",
        description=evaluation.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what is measured").add_argument
    add("--data", required=True, help="prepared set (data_prep/prepare.py); required")
    add("--split", nargs="+", default=["test"], help="splits of identities to take probes from (default: test)")
    known = ", ".join(attacks.METHODS)
    add("--methods", nargs="+", default=DEFAULT_METHODS, help=f"of {known} (default: all but the optimised)")
    add("--checkpoint", help="generator: a folder with config.json and model.safetensors, or a run folder of train.py "
        "(default: the shipped one)")  # fmt: skip
    add("--templates", nargs="+", default=["match"], help="template names, photos or groups, worn in turn; or match: "
        "for each probe the shipped face that suits it best (default: match)")  # fmt: skip
    add("--placement", default="seamless", choices=masking.PLACEMENTS, help="how optimised masks are worn; "
        "dm is the paper's, dm-seamless seamless, and a generator has its own (default: seamless)")  # fmt: skip
    add("--harmonise", action="store_true", help="give templates the colours of the wearer's lower face first")
    add("--probes", type=cli.number(int, COUNT), default=500, help="most probes (default: 500)")
    add("--seed", type=cli.number(int, SEED), default=0, help="of every random choice (default: 0)")

    add = parser.add_argument_group("against which networks").add_argument
    add("--surrogates", "--embedders", nargs="*", default=["dlib"], metavar="EMBEDDER",
        help="recognisers that the methods may be made against (default: dlib)")  # fmt: skip
    add("--detectors", nargs="*", default=["classifier"], metavar="DETECTOR",
        help="mask detectors likewise (default: classifier)")  # fmt: skip
    add("--held-out", "--held-out-embedders", nargs="*", default=[], metavar="EMBEDDER",
        help="recognisers that no method and no training ever saw; reported apart (default: none)")  # fmt: skip
    add(
        "--held-out-detectors",
        nargs="*",
        default=[],
        metavar="DETECTOR",
        help="mask detectors likewise (default: none)",
    )

    add = parser.add_argument_group("thresholds").add_argument
    add(
        "--far",
        type=cli.number(float, RATE),
        default=1e-3,
        help="false-accept rate of the headline, and of the attacks (default: 0.001)",
    )
    add(
        "--fars",
        type=cli.number(float, RATE),
        nargs="*",
        default=[1e-2],
        help="further false-accept rates (default: 0.01)",
    )
    add("--threshold-split", default="train",
        help="split whose clean impostor pairs give the thresholds; other people than the probes' (default: train)",
    )  # fmt: skip
    add(
        "--threshold-faces",
        type=cli.number(int, Range(2, 2**31 - 1)),
        default=2000,
        help="most faces of that split, at random (default: 2000)",
    )
    add("--stored-thresholds", action="store_true",
        help="take the thresholds stored with the networks, for sets with too few impostor pairs")  # fmt: skip

    add = parser.add_argument_group("further measures").add_argument
    add("--naturalness", action="store_true",
        help="realism AUC of a network trained for it (takes minutes) and, with AlexNet's weights, distances to DM "
        "and to real faces")  # fmt: skip
    add("--photos", metavar="DIR",
        help="looks on these photos at their own size, too; one sub-folder per person (default: none)")  # fmt: skip
    add("--changed-probes", type=cli.number(int, Range(0, 2**31 - 1)), default=0,
        help="probes to look at again under JPEG, resize, blur and re-crop, eight looks each (default: 0)")  # fmt: skip
    add(
        "--distractors",
        type=cli.number(int, COUNT),
        default=1000,
        help="most people in the gallery besides the mate (default: 1000)",
    )
    add(
        "--pairs",
        help="file of the LFW protocol (pairs.txt): clean accuracy of each recogniser (default: none)",
    )

    add = parser.add_argument_group("output").add_argument
    add("--out", required=True, help="folder for index.html, report.json, tables as CSV and the masked faces; required")
    add("--cache", help="folder for embeddings of clean faces, to share them among runs (default: OUT/cache/clean)")
    add("--require", nargs="+", default=[], metavar="LIMIT",
        help=f"exit with status 1 unless these hold: {gate.GRAMMAR} (default: none)")  # fmt: skip
    add("--device", default="cpu", choices=["cpu", "cuda"], help="cpu or cuda (default: cpu)")
    add_method_options(parser)
    cli.add_message_options(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    if args.device != "cpu" and not torch.cuda.is_available():
        raise GanMaskError(f"--device {args.device}: this machine has no CUDA device; use --device cpu")
    for name in args.methods:
        if name not in attacks.METHODS:
            raise GanMaskError(f"--methods: unknown method '{name}'; known: {', '.join(attacks.METHODS)}")
    for name in (*args.split, args.threshold_split):
        if name not in SPLITS:
            raise GanMaskError(f"--split and --threshold-split: unknown split '{name}'; known: {', '.join(SPLITS)}")
    if not (args.surrogates or args.held_out or args.detectors or args.held_out_detectors):
        raise GanMaskError("no network to measure with: name some with --surrogates, --held-out or --detectors")
    both = {*args.surrogates} & {*args.held_out} | {*args.detectors} & {*args.held_out_detectors}
    if both:
        raise GanMaskError(f"{', '.join(sorted(both))}: named as surrogate and as held out; it can only be one of them")
    if args.naturalness and "dm" not in args.methods:
        raise GanMaskError("--naturalness compares with the DM result: add dm to --methods")
    if args.threshold_split in args.split:  # impostors, distractors and real faces are other people, too
        raise GanMaskError(f"--threshold-split {args.threshold_split} has the probes' own people; name another split")


def checkpoint_of(args: argparse.Namespace) -> Path | None:
    """The generator's folder: the shipped one where none is given; None where no generator is asked for."""
    if args.checkpoint:
        return Path(args.checkpoint)
    return SHIPPED if "generator" in args.methods else None


def check_held_out(generator: Generator | None, surrogates: Networks, held_out: Networks) -> None:
    """A held-out network has not the weights of a surrogate, nor of what the generator was trained against.

    Checkpoints from before their config.json had the weights' checksums are compared by the names of the networks.
    """
    attacked = {weights_digest(network): name for name, network in surrogates}
    shape = generator.config if generator else GeneratorConfig()
    names = {file_name(name) for name in shape.trained_against if not shape.trained_against_weights}
    for name, network in held_out:
        digest = weights_digest(network)
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
    return Path(network.removeprefix("onnx:")).name


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Write OUT; the report, or None in a process that only helps another."""
    check(args)
    with ExitStack() as held:
        return _evaluate(args, held)


def _evaluate(args: argparse.Namespace, held: ExitStack) -> dict[str, Any] | None:
    from accelerate import PartialState

    state = PartialState(cpu=args.device == "cpu")
    device = str(state.device)
    args.device = device
    photos = PreparedSet(args.data, args.split)
    probes = choose_probes(photos, args.probes, args.seed)
    checkpoint = checkpoint_of(args)
    generator = load_generator(checkpoint, device) if checkpoint else None
    shape = generator.config if generator else GeneratorConfig()
    sets = {"surrogates": (args.surrogates, args.detectors), "held-out": (args.held_out, args.held_out_detectors)}
    sets = {title: networks for title, networks in sets.items() if any(networks)}
    perceptual, missing = _perceptual(device) if args.naturalness else (None, None)
    trained = (realism.TRAINED if perceptual else realism.SMALL) if args.naturalness else None
    limits = [gate.parse(text, sets, args.methods, trained) for text in args.require]
    embedders = {name: pretrained.load_embedder(name, device) for e, _ in sets.values() for name in e}
    detectors = {name: pretrained.load_detector(name, device) for _, d in sets.values() for name in d}
    surrogate, held_out = (
        [*((n, embedders[n]) for n in e), *((n, detectors[n]) for n in d)]
        for e, d in ((args.surrogates, args.detectors), (args.held_out, args.held_out_detectors))
    )
    check_held_out(generator, surrogate, held_out)
    texture_size = (shape.texture_height, shape.texture_width)
    bank = None if args.templates == ["match"] else templates.load_all(args.templates, texture_size)

    with state.main_process_first():  # the others find the embeddings in the cache
        clean = Clean(args, photos, probes, embedders)
    calibration = thresholds_of(args, embedders, clean)
    headline = {name: c["thresholds"][f"{args.far:g}"] for name, c in calibration.items()}
    surrogates = Surrogates(
        [embedders[name] for name in args.surrogates],
        [headline[name] for name in args.surrogates],
        [detectors[name] for name in args.detectors],
    )
    options = method_options(args, shape.softness)
    names = list(dict.fromkeys(["none", *args.methods]))
    methods = {
        name: attacks.method(
            name, generator, surrogates, replace(options, placement="paper") if name == "dm" else options
        )
        for name in names
    }
    experiment = Experiment(
        Path(args.out), photos, probes, methods, bank, texture_size, args.harmonise, embedders, detectors,
        spread(probes.identity, args.changed_probes, args.seed), FaceFinder(device), device,
    )  # fmt: skip
    settings = settings_of(args, shape, photos, fingerprints(embedders, detectors))
    if state.is_main_process:
        held.enter_context(files.locked(experiment.out))
        open_folder(experiment.out, settings, list(attacks.METHODS))
    state.wait_for_everyone()
    work(experiment, state.process_index, state.num_processes)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None

    seen, changed, costs = collect(experiment)
    estimated = groups.estimates(photos, probes)
    report = report_of(args, experiment, sets, calibration, clean, seen, changed, estimated)
    landmarks = torch.stack([photos.landmarks(int(i)) for i in probes.index])
    appearances = appearance.measure_all({name: experiment.paths(name) for name in methods}, landmarks.numpy())
    report["looks"] = {name: appearance.table(values, probes.identity) for name, values in appearances.items()}
    if args.naturalness:
        title, trained_cells = realism.measure(experiment, perceptual, args.seed)
        for name, cell in trained_cells.items():
            report["looks"][name][title] = cell
    if args.photos:
        report["looks_on_photos"] = large_photos.measure(experiment, shape, args.photos)
    if missing:
        report["notes"].append(missing)
    if perceptual:
        from gan_mask.evaluation import naturalness

        real = clean.index[spread(clean.identities, len(probes.index), args.seed)]
        report["naturalness"] = naturalness.measure(
            {name: experiment.paths(name) for name in methods},
            torch.stack([clean.photos.faces(int(i)) for i in real]),
            landmarks,
            probes.identity,
            clean.photos.identities[real],
            perceptual,
            device,
        )
    if args.pairs:
        report["lfw"] = lfw_accuracy(args, embedders)
    report["limits"] = {limit.text: gate.broken(limit, report["rates"], args.far, report["looks"]) for limit in limits}
    cost = cost_of(experiment, costs)
    output.write(experiment, report, cost, seen, clean, changed, estimated, appearances)
    page.write(report, cost, experiment.out)
    return report


def _perceptual(device: str) -> tuple[Perceptual | None, str | None]:
    """LPIPS with AlexNet; where its weights are missing, None and a note for the report."""
    try:
        return pretrained.load_perceptual(device=device), None
    except weights.MissingWeights as error:
        return None, f"{realism.SMALL} in place of {realism.TRAINED}, no LPIPS, no distances to real faces: {error}"


def settings_of(
    args: argparse.Namespace, shape: GeneratorConfig, photos: PreparedSet, networks: dict[str, str]
) -> dict[str, Any]:
    """What the masked files and the looks at them depend on; the same settings go on with what is in OUT."""
    free = {"out", "cache", "methods", "require", "pairs", "naturalness", "photos", "distractors", "fars", "device"}
    free.add("data")  # wherever it lies: its faces count
    values = {k: v for k, v in vars(args).items() if k not in free}
    values |= {"index": photos.fingerprint(), "networks": networks}
    values |= {"softness": shape.softness, "texture": [shape.texture_height, shape.texture_width]}
    values |= {"generator_placement": shape.placement}
    if checkpoint := checkpoint_of(args):
        values["weights"] = [files.sha256(p) for p in sorted(checkpoint.rglob("*.safetensors"))]
    values["photos"] = {name: files.sha256(name) for name in args.templates if Path(name).is_file()}
    return belongs.inputs("evaluation", values)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    with cli.ending():
        report = evaluate(args)
        broken = print_report(report, args) if report else []
    if broken:
        raise SystemExit(1)


def print_report(report: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Returns the limits that were broken."""
    print(f"\n{report['probes']} probes of {report['identities']} people ({report['split']} split)")
    for title, by_far in report["rates"].items():
        print(f"\n{title}, thresholds at FAR {args.far:g}; per cent [95 % interval over identities]")
        print(output.table(by_far[f"{args.far:g}"]))
    print("\nlooks; bare faces: edge step 0, fine detail 1, skin tone difference 0, realism AUC 0.5")
    print(output.table(report["looks"], factor=1, digits=2))
    if on_photos := report.get("looks_on_photos"):
        print(f"\nlooks on {on_photos['photos']} photos of {on_photos['people']} people, at their own size")
        print(output.table(on_photos["methods"], factor=1, digits=2))
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"\nfigures: {Path(args.out) / 'report.json'}   page: {Path(args.out) / 'index.html'}")
    broken = [reason for reasons in report["limits"].values() for reason in reasons]
    for reason in broken:
        print(f"limit broken: {reason}", file=sys.stderr)
    return broken
