"""Clean faces: the mates' embeddings, impostor pairs and the thresholds they give, the LFW protocol."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import looks, verification
from gan_mask.evaluation.protocol import Probes, choose_others, lfw_pairs
from gan_mask.pretrained.thresholds import far_thresholds


def cache_of(args: argparse.Namespace) -> Path:
    return Path(args.cache) if args.cache else Path(args.out) / "cache" / "clean"


class Clean:
    """Embeddings of clean faces, per recogniser: the mates, and the impostors that thresholds come from."""

    def __init__(self, args: argparse.Namespace, photos: PreparedSet, probes: Probes, embedders: Mapping[str, Any]):
        self.photos = PreparedSet(args.data, args.threshold_split)  # of the impostors
        self.index = choose_others(self.photos, args.threshold_faces, args.seed)
        self.identities = self.photos.identities[self.index]
        self.mates, self.others = {}, {}
        for name, embedder in embedders.items():
            self.mates[name] = looks.embed_clean(name, embedder, photos, probes.mate, cache_of(args), args.device)
            self.others[name] = looks.embed_clean(name, embedder, self.photos, self.index, cache_of(args), args.device)

    def impostor_scores(self, name: str) -> np.ndarray:
        """All cosines between two of the impostors, each pair once."""
        vectors, people = self.others[name], self.identities
        rows = ((vectors[i + 1 :] @ vectors[i])[people[i + 1 :] != people[i]] for i in range(len(people)))
        return np.concatenate(list(rows))


def thresholds_of(args: argparse.Namespace, embedders: Mapping[str, Any], clean: Clean) -> dict[str, dict[str, Any]]:
    """Per recogniser: thresholds by FAR, why others were refused, impostor pairs, and where they come from."""
    result = {}
    for name, embedder in embedders.items():
        found, refused, pairs = {}, {}, 0
        for far in sorted({args.far, *args.fars}, reverse=True):
            try:
                if args.stored_thresholds:
                    found[f"{far:g}"] = embedder.threshold(far)
                    continue
                vectors = torch.from_numpy(clean.others[name])
                cosines, pairs = far_thresholds(vectors, torch.from_numpy(clean.identities), (far,))
                found |= cosines
            except GanMaskError as error:
                if far == args.far:
                    remedy = "" if args.stored_thresholds else "; raise --threshold-faces, or --stored-thresholds"
                    raise GanMaskError(f"{name}, FAR {far:g}: {error}{remedy}") from error
                refused[f"{far:g}"] = str(error)
        source = "stored with the network" if args.stored_thresholds else f"{args.threshold_split} split of the set"
        result[name] = {"thresholds": found, "refused": refused, "impostor_pairs": pairs, "source": source}
    return result


def lfw_accuracy(args: argparse.Namespace, embedders: Mapping[str, Any]) -> dict[str, Any]:
    """Clean verification accuracy by the LFW protocol, per recogniser."""
    photos = PreparedSet(args.data)
    pairs = lfw_pairs(Path(args.pairs), photos)
    index, position = np.unique(np.concatenate([pairs.a, pairs.b]), return_inverse=True)
    result = {}
    for name, embedder in embedders.items():
        vectors = looks.embed_clean(name, embedder, photos, index, cache_of(args), args.device)[position]
        scores = (vectors[: len(pairs.a)] * vectors[len(pairs.a) :]).sum(1)
        mean, deviation = verification.accuracy(scores, pairs.same, pairs.fold)
        result[name] = {"accuracy": mean, "sd": deviation, "pairs": len(pairs.a), "missing": pairs.missing}
    return result
