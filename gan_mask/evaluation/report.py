"""The figures of a report, from re-detected faces and clean embeddings."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from gan_mask._version import __version__
from gan_mask.cli.methods import flat
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import groups, identification, published, rates, verification
from gan_mask.evaluation.clean import Clean
from gan_mask.evaluation.intervals import Cell, interval, of_statistic
from gan_mask.evaluation.options import ENGINE, EvaluationConfig, engine_of
from gan_mask.evaluation.protocol import Probes, one_of_each
from gan_mask.evaluation.redetection import Redetected
from gan_mask.evaluation.run import Experiment

CURVE = 20_000  # impostor scores that equal error rates are computed with, evenly chosen from the sorted ones
FPIR = 0.01


@dataclass(frozen=True)
class Report:
    """What an evaluation found; a cell is {rate, low, high, probes}, with its 95 % interval over identities."""

    figures: dict[str, Any]  # all of report.json

    @property
    def probes(self) -> int:
        return int(self.figures["probes"])

    @property
    def identities(self) -> int:
        return int(self.figures["identities"])

    @property
    def rates(self) -> dict[str, dict[str, dict[str, dict[str, Cell]]]]:
        """Set of networks -> FAR, as "0.001" -> method -> measure -> cell."""
        return self.figures["rates"]

    @property
    def looks(self) -> dict[str, dict[str, Cell]]:
        """Method -> measure -> cell."""
        return self.figures["looks"]

    @property
    def notes(self) -> list[str]:
        """What could not be measured, and why."""
        return self.figures["notes"]

    @property
    def broken(self) -> list[str]:
        """Why limits do not hold; [] where all do."""
        return [reason for reasons in self.figures["limits"].values() for reason in reasons]


def figures_of(
    c: EvaluationConfig,
    e: Experiment,
    sets: rates.Sets,
    calibration: Mapping[str, dict[str, Any]],
    clean: Clean,
    redetected: Mapping[str, Redetected],
    changed: Mapping[str, Mapping[str, Redetected]],
    estimated: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """All figures that depend on data, options and seed alone: the same again in a second run."""
    people = e.probes.identity
    seen = {name: rates.seen_of(s, clean.mates) for name, s in redetected.items()}
    fars = {f"{c.far:g}", *(far for found in calibration.values() for far in found["thresholds"])}
    at = {far: {name: found["thresholds"].get(far, np.nan) for name, found in calibration.items()} for far in fars}
    headline = at[f"{c.far:g}"]
    figures = header(c, e, sets, calibration, sorted(map(float, fars), reverse=True))

    # Rates of each set of networks
    figures["rates"] = {
        title: {
            far: rates.table(seen, at[far], networks, people)
            for far in sorted(fars, key=float)
            if all(far in calibration[name]["thresholds"] for name in networks[0])
        }
        for title, networks in sets.items()
    }
    figures["transfer"] = rates.transfer(seen, headline, sets, people)
    figures["groups"] = {
        title: groups.table(seen, headline, networks, people, estimated) for title, networks in sets.items()
    }

    # At the thresholds of other papers
    notes: list[str] = []
    if c.protocol:
        thresholds = published.thresholds_of(c.protocol, e.embedders)
        figures["published"], notes = published.figures_of(
            c.protocol, thresholds, calibration, e.embedders, clean, seen, sets, people
        )

    # Each recogniser by itself
    notes += [f"{n}, FAR {far}: {why}" for n, found in calibration.items() for far, why in found["refused"].items()]
    figures |= {"verification": {}, "identification": {}}
    for name in e.embedders:
        at_fars, scores = calibration[name]["thresholds"], clean.impostor_scores(name)
        figures["verification"][name] = verify(seen, scores, name, at_fars, people)
        figures["identification"][name], refused = identify(redetected, clean, name, e.probes, c.distractors)
        notes += refused

    # What is left of it under changes of the files
    if changed:
        figures["robustness"] = robustness(e, sets, clean, redetected, changed, headline)
        figures["robustness_probes"] = len(e.changed)
    figures["notes"] = notes
    figures["pictures"] = {
        "strip": "strip.png",
        "faces": {m: [str(p.relative_to(e.out).as_posix()) for p in e.paths(m)] for m in e.methods},
    }
    return figures


def header(
    c: EvaluationConfig,
    e: Experiment,
    sets: rates.Sets,
    calibration: Mapping[str, dict[str, Any]],
    fars: Sequence[float],
) -> dict[str, Any]:
    """What was measured, and how."""
    title_of = {name: title for title, networks in sets.items() for group in networks for name in group}
    return {
        "version": __version__,
        "data": c.data,
        "split": " ".join(c.split),
        "seed": c.seed,
        "probes": len(e.probes.identity),
        "identities": len(set(e.probes.identity)),
        "far": c.far,
        "fars": fars,
        "templates": list(c.templates),
        "checkpoint": c.checkpoint or ("shipped" if "generator" in e.methods else None),
        "command": {k: v for k, v in flat(c).items() if k not in {"out", "cache", "device"} | ENGINE},
        "embedders": {name: {"set": title_of[name], **found} for name, found in calibration.items()},
        "detectors": {name: {"set": title_of[name]} for name in e.detectors},
    }


def robustness(
    e: Experiment,
    sets: rates.Sets,
    clean: Clean,
    redetected: Mapping[str, Redetected],
    changed: Mapping[str, Mapping[str, Redetected]],
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """Set -> method -> change -> joint success, of sets with both kinds of networks."""
    mates = {name: vectors[e.changed] for name, vectors in clean.mates.items()}
    under = {
        method: {
            change: rates.seen_of(s, mates)
            for change, s in {"unchanged": redetected[method].rows(e.changed), **row}.items()
        }
        for method, row in changed.items()
    }
    return {
        title: rates.joint_under(under, under["none"]["unchanged"], thresholds, networks, e.probes.identity[e.changed])
        for title, networks in sets.items()
        if all(networks)
    }


def cost_of(c: EvaluationConfig, e: Experiment, costs: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """What depends on the machine: seconds per face, peak memory; and the iterations of optimised methods."""
    threads = 1 if engine_of(c) else torch.get_num_threads()  # of each process that masks faces
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if e.device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated() / 2**20
    return {
        "machine": f"{platform.machine()}, {threads} threads, device {c.device}",
        "peak_memory_mb": round(memory),  # of this process, throughout
        "methods": {
            name: {
                "seconds_per_face": float(np.median(its["seconds"])) if "seconds" in its else None,  # of a folder's
                "iterations": interval(its["iterations"].astype(float), e.probes.identity, rate=False)
                if "iterations" in its
                else None,
            }
            for name, its in costs.items()
        },
    }


def verify(
    seen: Mapping[str, rates.Seen], impostor: np.ndarray, name: str, at: Mapping[str, float], identities: np.ndarray
) -> dict[str, dict[str, Any]]:
    """method -> TAR at each FAR, EER, ROC of one recogniser; impostor scores are the clean ones throughout."""
    few = np.sort(impostor)[np.linspace(0, len(impostor) - 1, min(CURVE, len(impostor))).astype(int)]
    result: dict[str, dict[str, Any]] = {}
    for method, s in seen.items():
        scores = s.similarity[name]
        cells: dict[str, Any] = {
            f"TAR at FAR {far}": interval(verification.accepted(scores, value).astype(float), identities)
            for far, value in at.items()
        }
        cells["EER"] = of_statistic(partial(_eer_of_rows, scores, few), identities, draws=200)
        far, hit = verification.roc(scores, impostor)
        cells["roc"] = {"far": far.tolist(), "tar": hit.tolist()}
        result[method] = cells
    return result


def _eer_of_rows(mated: np.ndarray, impostor: np.ndarray, rows: np.ndarray) -> float:
    return verification.eer(mated[rows], impostor)


def identify(
    seen: Mapping[str, Redetected], clean: Clean, name: str, probes: Probes, limit: int
) -> tuple[dict[str, Any], list[str]]:
    """Rank-1 and rank-5 among mate and distractors, drops against the baselines, FNIR at FPIR 0.01."""
    distractors = clean.others[name][one_of_each(clean.identities, limit)]
    mates = clean.mates[name]
    own = np.zeros(len(mates), int)
    notes: list[str] = []
    hits: dict[str, dict[str, np.ndarray]] = {}
    for method, s in seen.items():
        embedding = s.embedding[name]
        gallery = np.concatenate([(embedding * mates).sum(1)[:, None], embedding @ distractors.T], 1)
        rank = identification.ranks(gallery, own)
        hits[method] = {f"rank-{k}": (rank <= k).astype(float) for k in (1, 5)}
    # Open set: one photo of each person is enrolled, the distractors are the ones who are not.
    people, first, person = np.unique(probes.identity, return_index=True, return_inverse=True)
    gallery, enrolled = mates[first], probes.mate[first]
    try:
        for method, s in seen.items():
            similarity = s.embedding[name] @ gallery.T
            top = np.nan_to_num(similarity.max(1), nan=-np.inf)
            right = np.nan_to_num(similarity, nan=-np.inf).argmax(1) == person
            _, at = identification.fnir(top, right, (distractors @ gallery.T).max(1), FPIR)
            missed = (~(right & (top >= at))).astype(float)
            hits[method][f"FNIR at FPIR {FPIR:g}"] = np.where(probes.index == enrolled[person], np.nan, missed)
    except GanMaskError as error:
        notes.append(f"{name}: {error}; raise --threshold-faces or --distractors")
    cells: dict[str, dict[str, Cell]] = {}
    for method, row in hits.items():
        cells[method] = {measure: interval(values, probes.identity) for measure, values in row.items()}
        for baseline in rates.BASELINES:
            if baseline in hits and method not in ("none", *rates.BASELINES):
                drop = hits[baseline]["rank-1"] - row["rank-1"]
                cells[method][f"rank-1 drop against {baseline}"] = interval(drop, probes.identity, rate=False)
    return {"distractors": len(distractors), "gallery": len(people), "methods": cells}, notes
