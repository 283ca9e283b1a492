"""Options of masking a folder of photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gan_mask import attacks
from gan_mask.engines import EngineName
from gan_mask.faces import FaceFinder
from gan_mask.masking import PlacementName
from gan_mask.values import FRACTION, SEED, WORKERS, Range, option

MethodName = Literal["plain", "dm", "advnoise-dm", "mf2m", "advface", "generator"]


@dataclass(frozen=True)
class SampleConfig:
    faces: str = option(
        "", "folder of photos, searched with its subfolders, or one photo or clip; never written to", group="photos",
        required=True, metavar="FACES",
    )  # fmt: skip
    out: str = option(
        "", "folder for the masked photos or the clip, results.csv and overview.png", required=True, metavar="OUT"
    )  # fmt: skip
    show: bool = option(False, "write OUT/gallery.html, too: a slider between before and after per face")
    largest: bool = option(False, "only the largest face of each photo")
    min_score: float = option(0.9, "lowest score of a face, in [0, 1]", within=FRACTION)
    min_face: int = option(
        0, "smallest face looked for, pixels of the photo; smaller ones take longer to look for",
        within=Range(0, 65536, also=("0, or 20 and more", lambda side: side == 0 or side >= FaceFinder.SMALLEST)),
        shown="1/32 of the photo's longest side, and 20 at least",
    )  # fmt: skip

    method: MethodName = option("generator", "what makes the masks", group="masks")
    checkpoint: str | None = option(
        None, "generator: its folder, or a run folder of train.py", shown="the shipped one", metavar="CHECKPOINT"
    )
    template: str | None = option(
        None, "what the mask shows: a shipped template, a photo, 'random', or 'match': for each face the shipped one "
        "nearest in pose, expression and skin",
        shown="match; of a checkpoint that was trained with a photo, that one", metavar="TEMPLATE",
    )  # fmt: skip
    placement: PlacementName = option(
        "seamless", "'seamless' clones the mask into the face, 'paper' lays it over; a generator has the one that it "
        "was trained with",
    )  # fmt: skip
    harmonise: bool = option(False, "give the template the colours of the wearer's lower face first")
    seed: int = option(0, "of the methods' randomness and of random templates", within=SEED)

    embedders: tuple[str, ...] = option(
        ("dlib",), "measure similarity with these, optimise against them", group="networks and device", metavar="NAME"
    )
    detectors: tuple[str, ...] = option(("classifier",), "mask detectors", metavar="NAME")
    no_measure: bool = option(
        False, "write the masked photos and the table's first columns only: nothing is re-detected or recognised"
    )
    search_whole: bool = option(
        False, "look for the faces again in the whole written photo, in place of around where they were"
    )
    batch_size: int = option(16, "photos and faces at a time", within=Range(1, 65536))
    device: Literal["cpu", "cuda"] = option("cpu", "cpu or cuda")
    workers: int = option(
        0, "processes that share the photos", within=WORKERS,
        shown="one for each core, for 2 GiB of the machine's memory and 32 photos each; on a GPU 1",
    )  # fmt: skip

    shards: int = option(
        0, "write tar files (WebDataset) of the masked copies of so many photos each, with their rows of the table; "
        "FACES may then be a .zip or .tar, a folder of .tar files, or an fsspec address, too",
        group="millions of photos", within=Range(0, 1_000_000), shown="0: single files",
    )  # fmt: skip
    engine: EngineName = option("local", "with --shards: 'local' processes, or a 'ray' cluster")
    ray_address: str = option(
        "", "of a running cluster", shown="what RAY_ADDRESS says, or one that is started here", metavar="ADDRESS"
    )

    attack: attacks.Options = attacks.Options()  # of the optimised methods; seed and placement are those above
