"""Before and after: what hardening a mask detector was worth, on people that neither it nor its training has seen.

python -m gan_mask.harden.table --data PREPARED --after classifier-hardened --generators CHECKPOINT... --out DIR

Every masked face is written as an 8-bit PNG, then re-detected (faces, landmarks, crops), as in the evaluation.
DIR receives index.html, a page with the figures and the faces that were missed, table.json, table.md, faces.png and the
faces. The same command again resumes where it stopped. Ends with status 1 where a limit of --require does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_mask import attacks, cli, files, masking, pretrained, tables, templates
from gan_mask.attacks.surrogates import Surrogates
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import redetection
from gan_mask.evaluation.intervals import Cell, interval, of_auc
from gan_mask.evaluation.pictures import strip, write_pngs
from gan_mask.evaluation.protocol import Probes, choose_others, choose_probes
from gan_mask.evaluation.redetection import Redetected
from gan_mask.faces import FaceFinder, read_image, to_tensors
from gan_mask.generator import Generator, load_generator
from gan_mask.harden import alarm as alarms
from gan_mask.harden import limits, page, pictures
from gan_mask.harden.options import claimed
from gan_mask.harden.pictures import BARE, MASKED
from gan_mask.harden.pools import Wardrobe, choice, faced_masks
from gan_mask.harden.score_attack import ScoreAttack
from gan_mask.pretrained.protocol import Detector, Embedder, fingerprints
from gan_mask.pretrained.thresholds import far_thresholds
from gan_mask.tables import shown
from gan_mask.values import COUNT, SEED, Range, check, option, to_dict

FAR = "0.001"
FALSE_ALARMS = (0.005, 0.01, 0.02, 0.05, 0.1)  # of the ROC
REAL = ("real masks", "real bare faces")  # rows of --real_masks
SUITS = "templates that suit"  # in names of rows: of --templates the shipped face that suits each wearer best
AFTER = "after"  # the hardened detector among the networks; those before have their own names


@dataclass
class TableConfig:
    data: str = option("", "prepared set; its test split is measured", group="input and output", required=True)
    out: str = option("", "folder for index.html, the table, the picture and the faces", required=True)
    before: tuple[str, ...] = option(
        ("classifier",), "detectors as they were; the first is what masks are made against", group="what is compared"
    )
    after: str = option("classifier-hardened", "the hardened detector")
    alarm: str = option("", "the faced-mask alarm's JSON file; without it the shipped one")
    generators: tuple[str, ...] = option((), "checkpoints of generators; the first one's masks are refined, too")
    attacks: tuple[str, ...] = option(("mf2m", "advface"), "optimised methods; the last one aims at the alarm, too")
    refine: int = option(10, "steps that refine a generator's masks", within=COUNT)
    queries: int = option(1000, "queries of --after per face, by one who sees its scores alone", within=COUNT)
    adaptive: tuple[str, ...] = option((), "checkpoints of generators that were trained against --after")
    embedders: tuple[str, ...] = option(("dlib",), "recognisers of the periocular fallback; the first is attacked")
    templates: tuple[str, ...] = option(
        ("faces",), "templates that the hardening has not seen", group="what is measured"
    )
    real_masks: str = option("", "zip of real masked and bare faces, whose test split is measured")
    probes: int = option(120, "masked faces per row", within=COUNT)
    bare: int = option(500, "unmasked faces at most", within=COUNT)
    attack_steps: int = option(40, "steps of the optimised methods at most", within=COUNT)
    threshold_faces: int = option(
        1500, "faces of the train split whose impostor pairs give the thresholds", within=Range(2, 2**31 - 1)
    )
    attack_probes: int = option(48, "masked faces per row of an optimised method", within=COUNT)
    crops: bool = option(False, "show the networks the crops as they are, instead of re-detecting the faces: faster")
    seed: int = option(0, "of every random choice", within=SEED)
    require: tuple[str, ...] = option((), f"limits that end the command with status 1 where broken: {limits.GRAMMAR}")


@dataclass
class Row:
    """One kind of picture: `paint` gives crops uint8 (N, 3, S, S) for positions (N,) of the set."""

    name: str
    kind: str  # "bare", "ordinary", "faced" or "adaptive"
    paint: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray


def rows_of(
    c: TableConfig, photos: PreparedSet, probes: Probes, before: Detector, after: Detector, alarm: alarms.Alarm
) -> list[Row]:
    everybody = choose_others(photos, c.bare, c.seed)
    shown, few = templates.expand(c.templates), probes.index[: c.attack_probes]
    loaded = [pretrained.load_embedder(name) for name in c.embedders[:1]]
    thresholds = [e.threshold(float(FAR)) for e in loaded]
    options = attacks.Options(steps=c.attack_steps, seed=c.seed, placement="paper")
    generators = {Path(folder).name: load_generator(folder) for folder in c.generators}

    def faced(names: Sequence[str], method: attacks.Method, others: float = 0.0, suited: float = 0.0) -> Any:
        def paint(index: np.ndarray) -> np.ndarray:
            rng = np.random.default_rng(c.seed)
            wardrobe = Wardrobe(photos, names, method.texture_size, rng, others, suited)
            return faced_masks(photos, index, method, wardrobe, "masks")

        return paint

    def optimised(name: str, *attacked: Any) -> Any:
        placement: masking.PlacementName = "seamless" if name == "advface" else "paper"
        surrogates = Surrogates(loaded, thresholds, attacked)
        return faced(shown, attacks.method(name, None, surrogates, replace(options, placement=placement)))

    def refined(net: Generator, detector: Detector) -> Any:
        surrogates = Surrogates(loaded, thresholds, [detector])
        return faced(shown, attacks.method("generator", net, surrogates, replace(options, refine=c.refine)))

    def ordinary(index: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(c.seed)
        items = [photos[int(i)] for i in index]
        worn = [pictures.ordinary_mask(item["face"], item["landmarks"], rng) for item in items]
        return (torch.stack(worn) * 255).round().byte().numpy()

    dm, seamless = attacks.method("dm"), attacks.method("dm-seamless")
    rows = [
        Row("none", "bare", lambda i: np.stack([photos.faces(int(k)).numpy() for k in i]), everybody),
        Row("plain", "ordinary", faced(["plain"], dm), probes.index),
        Row("cloth", "ordinary", faced(["cloth"], dm), probes.index),
        Row("random ordinary masks", "ordinary", ordinary, probes.index),
        Row("dm", "faced", faced(shown, dm), probes.index),
        Row("dm, faces of other people of the set", "faced", faced(shown, dm, 1.0), probes.index),
        Row("dm-seamless", "faced", faced(shown, seamless), probes.index),
        Row("dm-seamless, faces of other people of the set", "faced", faced(shown, seamless, 1.0), probes.index),
    ]
    if choice(shown):
        rows.append(Row(f"dm-seamless, {SUITS}", "faced", faced(shown, seamless, suited=1.0), probes.index))
    for name, net in generators.items():
        rows.append(Row(f"generator {name}", "faced", faced(shown, attacks.method("generator", net)), probes.index))
    first = next(iter(generators.items()), None)
    if first:
        if choice(shown):
            suited = faced(shown, attacks.method("generator", first[1]), suited=1.0)
            rows.append(Row(f"generator {first[0]}, {SUITS}", "faced", suited, probes.index))
        rows.append(Row(f"generator {first[0]}, refine {c.refine}", "faced", refined(first[1], before), few))
    rows += [Row(name, "faced", optimised(name, before), few) for name in c.attacks]
    against = " against the hardened detector"
    for folder in c.adaptive:
        trained = faced(shown, attacks.method("generator", load_generator(folder)))
        rows.append(Row(f"generator {Path(folder).name} (adaptive)", "adaptive", trained, probes.index))
    if first:
        rows.append(Row(f"generator {first[0]}, refine {c.refine}{against}", "adaptive", refined(first[1], after), few))
        asking = faced(shown, ScoreAttack(first[1], after, c.queries, c.seed))
        rows.append(Row(f"generator {first[0]}, {c.queries} queries{against}", "adaptive", asking, few))
    rows += [Row(name + against, "adaptive", optimised(name, after), few) for name in c.attacks]
    for name in c.attacks[-1:]:
        both = optimised(name, after, alarms.as_detector(alarm))
        rows.append(Row(f"{name} against detector and alarm", "adaptive", both, few))
    return rows


# ------------------------------------------------------------------------------------------- re-detection


def redetect(
    row: Row, out: Path, embedders: Mapping[str, Any], detectors: Mapping[str, Detector], photos: PreparedSet | None
) -> Redetected:
    """Write the row's files and re-detect them; kept in OUT/cache. photos: whose landmarks hold, None: re-detect."""
    kept = out / "cache" / f"{files.safe_name(row.name)}.npz"
    if kept.is_file():
        return redetection.load(kept)[0]
    kept.parent.mkdir(parents=True, exist_ok=True)
    paths = [out / page.file_of(row.name, i) for i in range(len(row.index))]
    write_pngs(paths, (picture.transpose(1, 2, 0) for picture in row.paint(row.index)))
    finder = None if photos else FaceFinder()
    pictures = [read_image(path) for path in paths]
    parts = []
    for start in cli.Progress(range(0, len(pictures), 16), desc=row.name, mininterval=5):
        part = pictures[start : start + 16]
        if photos is None:
            assert finder
            parts.append(redetection.redetect(part, embedders, detectors, finder, "cpu"))
        else:
            points = [photos.landmarks(int(i)).numpy() for i in row.index[start : start + 16]]
            parts.append(as_they_are(part, points, embedders, detectors))
    seen = redetection.join(parts)
    redetection.save(kept, seen, {})
    return seen


@torch.no_grad()
def as_they_are(
    pictures: Sequence[np.ndarray], points: Sequence[np.ndarray], embedders: Mapping[str, Any],
    detectors: Mapping[str, Detector],
) -> Redetected:  # fmt: skip
    """Not re-detected: aligned crops uint8 (S, S, 3) with known landmarks (68, 2); every face counts as found."""
    faces, landmarks = to_tensors(list(zip(pictures, points, strict=True)), "cpu")
    every = np.ones(len(pictures), bool)
    seen = Redetected(every, every, {name: e(faces, landmarks).numpy() for name, e in embedders.items()})
    for name, detector in detectors.items():
        seen.mask_logit[name], seen.face_logit[name] = (logit.numpy() for logit in detector(faces))
    return seen


def real_pack(c: TableConfig, detectors: Mapping[str, Detector]) -> dict[str, dict[str, Cell]]:
    """Detection on the pack's own crops, which are framed much like ours; every picture counts as a person."""
    pack = pictures.real_masks(c.real_masks)["test"]
    result: dict[str, dict[str, Cell]] = {}
    for title, label in zip(REAL, (MASKED, BARE), strict=True):
        faces = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pack[label]]).float() / 255
        with torch.no_grad():
            logits = {w: torch.cat([d(part)[0] for part in faces.split(32)]).numpy() for w, d in detectors.items()}
        rates = {when: (logit > 0).astype(float) for when, logit in logits.items()}
        result[title] = {w: interval(rate, np.arange(len(rate))) for w, rate in rates.items()}
    return result


def auc_cell(positive: np.ndarray, people: np.ndarray, negative: np.ndarray, others: np.ndarray) -> Cell:
    """AUC with its interval over identities, those of both sides drawn together."""
    score, label = np.concatenate([positive, negative]), np.repeat([1, 0], [len(positive), len(negative)])
    good = ~np.isnan(score)
    return of_auc(score[good], label[good], np.concatenate([people, others])[good], draws=300)


# ------------------------------------------------------------------------------------------- the table


def measure(c: TableConfig) -> dict[str, Any]:
    check(c)
    photos = PreparedSet(c.data, "test")
    if wrong := [name for name in c.attacks if name not in attacks.OPTIMISED]:
        raise GanMaskError(f"--attacks {wrong[0]}: expected some of {', '.join(attacks.OPTIMISED)}")
    if not c.before:
        raise GanMaskError("--before: name one detector or more")
    before = {name: pretrained.load_detector(name) for name in c.before}
    detectors = {**before, AFTER: pretrained.load_detector(c.after)}
    embedders = {name: pretrained.load_embedder(name) for name in c.embedders}
    networks = fingerprints(embedders, {**before, c.after: detectors[AFTER]})
    with claimed(c, networks, "hardening table", "settings.json"):
        return _measure(c, photos, detectors, embedders)


def _measure(
    c: TableConfig, photos: PreparedSet, detectors: dict[str, Detector], whole: dict[str, Embedder]
) -> dict[str, Any]:
    out = Path(c.out)
    probes = choose_probes(photos, c.probes, c.seed)
    recognisers: dict[str, Any] = {**whole, **{upper_name(n): alarms.UpperFace(e) for n, e in whole.items()}}
    alarm = alarms.load(c.alarm or alarms.SHIPPED)
    rows = rows_of(c, photos, probes, detectors[c.before[0]], detectors[AFTER], alarm)
    kinds = {row.name: row.kind for row in rows}
    required = [limits.parse(text, measures_of(c, kinds), kinds, AFTER) for text in c.require]
    networks = {**recognisers, "alarm": alarm.features}
    seen = {row.name: redetect(row, out, networks, detectors, photos if c.crops else None) for row in rows}

    bare, people = rows[0], np.asarray(photos.identities)
    scores = {row.name: scores_of(seen[row.name], alarm, detectors) for row in rows}
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        who = people[row.index]
        cells: dict[str, Any] = {"kind": row.kind, "face found": interval(seen[row.name].found.astype(float), who)}
        for title, score in scores[row.name].items():
            cells[title] = interval(np.where(np.isnan(score), np.nan, score > 0), who)
            if row.kind != "bare":
                cells[f"AUC {title}"] = auc_cell(score, who, scores[bare.name][title], people[bare.index])
        table[row.name] = cells
    result = {
        "command": to_dict(c), "identities": len(np.unique(probes.identity)),
        "rows": table, "roc": roc(rows, scores, people), "alarm ablation": ablation(rows, seen, people),
        "periocular": periocular(c, photos, probes, recognisers, rows, seen, scores),
        "real pack": real_pack(c, detectors) if c.real_masks else {},
    }  # fmt: skip
    cells_by_row = cells_of(result)
    result["limits"] = {limit.text: limits.broken(limit, cells_by_row) for limit in required}
    files.write_json(out / "table.json", result)
    files.write_text(out / "table.md", markdown(result))
    picture(rows, out)
    page.write(result, scores, to_dict(TableConfig()), out)
    return result


def measures_of(c: TableConfig, kinds: Mapping[str, str]) -> dict[str, dict[str, None]]:
    """row -> measures that a limit may name, in the order of `cells_of`. kinds: of the rows."""
    networks, result = [*c.before, AFTER, "alarm"], {}
    recognisers = [*c.embedders, *map(upper_name, c.embedders), *map(fallback_name, c.embedders)]
    for row, kind in kinds.items():
        names = ["face found"]
        for name in networks:
            names += [name] if kind == "bare" else [name, f"AUC {name}"]
        names += [] if kind == "bare" else [f"at {share:g}" for share in FALSE_ALARMS]
        result[row] = dict.fromkeys([*names, *(f"TAR {name}" for name in recognisers)])
    return result | {row: dict.fromkeys([*c.before, AFTER]) for row in (REAL if c.real_masks else ())}


def cells_of(result: Mapping[str, Any]) -> dict[str, dict[str, Cell]]:
    """row -> measure -> cell, of all that a limit may name."""
    return {
        row: {
            **{name: cell for name, cell in cells.items() if name != "kind"},
            **{f"at {share}": cell for share, cell in result["roc"].get(row, {}).items()},
            **{f"TAR {name}": by_row[row] for name, by_row in result["periocular"].items()},
        }
        for row, cells in result["rows"].items()
    } | result["real pack"]


def scores_of(seen: Redetected, alarm: alarms.Alarm, detectors: Mapping[str, Detector]) -> dict[str, np.ndarray]:
    """Per detector and of the alarm: above 0 for a mask, NaN where no face is found."""
    return {**{name: seen.mask_logit[name] for name in detectors}, "alarm": alarm.score(seen.embedding["alarm"])}


def roc(rows: Sequence[Row], scores: Mapping[str, Mapping[str, np.ndarray]], people: np.ndarray) -> dict[str, Any]:
    """row -> share of these unmasked faces reported -> share of masks that the hardened detector then reports.

    Which threshold gives that share is read off these faces, unlike the detector's own operating point.
    """
    bare = scores[rows[0].name][AFTER]
    bare = bare[~np.isnan(bare)]
    result: dict[str, dict[str, Cell]] = {}
    for row in rows[1:]:
        score = scores[row.name][AFTER]
        result[row.name] = {
            f"{share:g}": interval(
                np.where(np.isnan(score), np.nan, score > alarms.threshold(bare, share)), people[row.index]
            )
            for share in FALSE_ALARMS
        }
    return result


def ablation(rows: Sequence[Row], seen: Mapping[str, Redetected], people: np.ndarray) -> dict[str, Any]:
    """AUC of alarms with fewer features against unmasked faces, fitted and tested in turn on halves of the people."""
    bare = seen[rows[0].name].embedding["alarm"]
    width = bare.shape[1]
    columns = {"crop only": [0], "disagreement only": list(range(1, width)), "both": list(range(width))}
    faced = [row for row in rows if row.kind == "faced"]
    x = np.concatenate([bare, *(seen[row.name].embedding["alarm"] for row in faced)])
    who = np.concatenate([people[rows[0].index], *(people[row.index] for row in faced)])
    y = np.repeat([0.0, 1.0], [len(bare), len(x) - len(bare)])
    good = ~np.isnan(x).any(1)
    x, who, y = x[good], who[good], y[good]
    half = np.isin(who, np.unique(who)[::2])
    if any(len(set(y[part])) < 2 for part in (half, ~half)):
        raise GanMaskError("--probes and --bare: too few people found to fit an alarm on half of them; raise both")
    result = {}
    for name, chosen in columns.items():
        score = np.empty(len(x))
        for part in (half, ~half):
            weights, intercept = alarms.logistic(x[~part][:, chosen], y[~part])
            score[part] = x[part][:, chosen] @ weights + intercept
        result[name] = auc_cell(score[y == 1], who[y == 1], score[y == 0], who[y == 0])
    return result


def periocular(
    c: TableConfig, photos: PreparedSet, probes: Probes, recognisers: Mapping[str, Any], rows: Sequence[Row],
    seen: Mapping[str, Redetected], scores: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """recogniser -> row -> TAR at FAR 1e-3, each with the threshold of its own impostor pairs (train split, clean).

    "NAME, upper face if alarmed" decides by the upper face where the alarm is raised, else by the whole one.
    """
    others = PreparedSet(c.data, "train")
    index = choose_others(others, c.threshold_faces, c.seed)
    cache = Path(c.out) / "cache" / "clean"
    where = {int(k): i for i, k in enumerate(rows[0].index)}
    known = np.array([int(k) in where for k in probes.index])
    # Of each row's pictures those of the probes, and which probes these are.
    chosen = {row.name: (np.arange(len(row.index)), np.arange(len(row.index))) for row in rows[1:]}
    chosen[rows[0].name] = np.array([where[int(k)] for k in probes.index[known]], int), np.flatnonzero(known)
    result: dict[str, dict[str, Any]] = {}
    accepted: dict[str, dict[str, np.ndarray]] = {}
    for name, embedder in recognisers.items():
        clean = torch.from_numpy(redetection.embed_clean(name, embedder, others, index, cache, "cpu"))
        found, pairs = far_thresholds(clean, torch.from_numpy(others.identities[index]), (float(FAR),))
        mates = redetection.embed_clean(name, embedder, photos, probes.mate, cache, "cpu")
        result[name], accepted[name] = {"threshold": found[FAR], "impostor pairs": pairs}, {}
        for row in rows:
            ours, theirs = chosen[row.name]
            accepted[name][row.name] = (seen[row.name].embedding[name][ours] * mates[theirs]).sum(1) >= found[FAR]
    for name in c.embedders:
        both = fallback_name(name)
        result[both], accepted[both] = {}, {}
        for row in rows:
            raised = scores[row.name]["alarm"][chosen[row.name][0]] > 0
            parts = accepted[upper_name(name)][row.name], accepted[name][row.name]
            accepted[both][row.name] = np.where(raised, *parts)
    for name, cells in accepted.items():
        for row in rows:
            result[name][row.name] = interval(cells[row.name].astype(float), probes.identity[chosen[row.name][1]])
    return result


def upper_name(embedder: str) -> str:
    return f"upper {embedder}"


def fallback_name(embedder: str) -> str:
    return f"{embedder}, upper face if alarmed"


def markdown(result: Mapping[str, Any]) -> str:
    rates = [*result["command"]["before"], AFTER, "alarm"]
    aucs = [f"AUC {name}" for name in rates]
    titles = [Path(files.split_scheme(name)[1]).stem for name in rates]
    body = {**result["rows"], **result["real pack"]}
    reported = [
        [name, *(shown(cells.get(k)) for k in rates), *(shown(cells.get(k), 1, 3) for k in aucs),
         str(cells[AFTER]["probes"])]
        for name, cells in body.items()
    ]  # fmt: skip
    names = list(result["periocular"])
    parts = [
        (["", *titles, *(f"AUC {title}" for title in titles), "faces"], reported),
        (["reported at false alarms of", *(f"{share:.1%}" for share in FALSE_ALARMS)],
         [[name, *map(shown, cells.values())] for name, cells in result["roc"].items()]),
        (["alarm", "AUC"], [[name, shown(cell, 1, 3)] for name, cell in result["alarm ablation"].items()]),
        (["TAR at FAR 1e-3", *names],
         [[row, *(shown(result["periocular"][name].get(row)) for name in names)] for row in result["rows"]]),
    ]  # fmt: skip
    return "\n".join(tables.markdown(*part) + "\n" for part in parts)


def picture(rows: Sequence[Row], out: Path, columns: int = 8) -> None:
    """faces.png: a line of the same people per row of the table; none when the rows are too short to share anybody."""
    place = {int(k): i for i, k in enumerate(rows[0].index)}
    count = min(len(row.index) for row in rows)
    shared = [i for i, k in enumerate(rows[-1].index[:count]) if int(k) in place]
    if not shared:
        return
    chosen = [shared[i] for i in np.linspace(0, len(shared) - 1, min(columns, len(shared))).astype(int)]
    paths = {}
    for row in rows:
        numbers = [place[int(rows[-1].index[i])] for i in chosen] if row.kind == "bare" else chosen
        paths[row.name] = [out / page.file_of(row.name, i) for i in numbers]
    with files.replacing(out / "faces.png") as temporary:
        strip(paths, columns).save(temporary, format="PNG")


def main(argv: Sequence[str] | None = None) -> None:
    with cli.ending():
        c = cli.parse(TableConfig, argv, (__doc__ or "").partition("\n\n")[0])
        result = measure(c)
        print(markdown(result))
        print(f"figures: {Path(c.out) / 'table.json'}   page: {Path(c.out) / 'index.html'}")
        broken = [reason for reasons in result["limits"].values() for reason in reasons]
        for reason in broken:
            print(f"limit broken: {reason}", file=sys.stderr)
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
