"""Clean faces: the mates' embeddings, impostor pairs and the thresholds they give, the LFW protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gan_mask import files
from gan_mask.data import PreparedSet
from gan_mask.errors import GanMaskError
from gan_mask.evaluation import redetection, shards, verification
from gan_mask.evaluation.options import EvaluationConfig, cache_of, engine_of, fars_of
from gan_mask.evaluation.protocol import Pairs, Probes, choose_others, lfw_pairs
from gan_mask.pretrained.thresholds import far_thresholds


class Clean:
    """Embeddings of clean faces, per recogniser: the mates, and the impostors that thresholds come from."""

    def __init__(
        self, c: EvaluationConfig, photos: PreparedSet, probes: Probes, embedders: Mapping[str, Any], device: str
    ) -> None:
        self.photos = PreparedSet(c.data, c.threshold_split)  # of the impostors
        self.index = choose_others(self.photos, c.threshold_faces, c.seed)
        self.identities = self.photos.identities[self.index]
        if engine := engine_of(c):
            faces = [(photos, probes.mate), (self.photos, self.index)]
            if c.pairs:
                faces.append(lfw_faces(c, c.pairs)[1:])
            with files.locked(c.out):
                shards.embed(engine, c, embedders, faces)
        self.mates, self.others = {}, {}
        for name, embedder in embedders.items():
            self.mates[name] = redetection.embed_clean(name, embedder, photos, probes.mate, cache_of(c), device)
            self.others[name] = redetection.embed_clean(name, embedder, self.photos, self.index, cache_of(c), device)

    def impostor_scores(self, name: str) -> np.ndarray:
        """All cosines between two of the impostors, each pair once."""
        vectors, people = self.others[name], self.identities
        rows = ((vectors[i + 1 :] @ vectors[i])[people[i + 1 :] != people[i]] for i in range(len(people)))
        return np.concatenate(list(rows))


def thresholds_of(c: EvaluationConfig, embedders: Mapping[str, Any], clean: Clean) -> dict[str, dict[str, Any]]:
    """Per recogniser: thresholds by FAR, why others were refused, impostor pairs, and where they come from."""
    result = {}
    for name, embedder in embedders.items():
        found, refused, pairs = {}, {}, 0
        for far in fars_of(c):
            try:
                if c.stored_thresholds:
                    found[f"{far:g}"] = embedder.threshold(far)
                    continue
                vectors = torch.from_numpy(clean.others[name])
                cosines, pairs = far_thresholds(vectors, torch.from_numpy(clean.identities), (far,))
                found |= cosines
            except GanMaskError as error:
                if far == c.far:
                    remedy = "" if c.stored_thresholds else "; raise --threshold-faces, or --stored-thresholds"
                    raise GanMaskError(f"{name}, FAR {far:g}: {error}{remedy}") from error
                refused[f"{far:g}"] = str(error)
        source = "stored with the network" if c.stored_thresholds else f"{c.threshold_split} split of the set"
        result[name] = {"thresholds": found, "refused": refused, "impostor_pairs": pairs, "source": source}
    return result


def lfw_faces(c: EvaluationConfig, pairs_file: str) -> tuple[Pairs, PreparedSet, np.ndarray]:
    """The pairs of the LFW protocol, and the set and the rising index of their faces."""
    photos = PreparedSet(c.data)
    pairs = lfw_pairs(Path(pairs_file), photos)
    return pairs, photos, np.unique(np.concatenate([pairs.a, pairs.b]))


def lfw_accuracy(c: EvaluationConfig, pairs_file: str, embedders: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Clean verification accuracy by the LFW protocol, per recogniser."""
    pairs, photos, index = lfw_faces(c, pairs_file)
    a, b = np.searchsorted(index, pairs.a), np.searchsorted(index, pairs.b)
    result = {}
    for name, embedder in embedders.items():
        vectors = redetection.embed_clean(name, embedder, photos, index, cache_of(c), device)
        mean, deviation = verification.accuracy((vectors[a] * vectors[b]).sum(1), pairs.same, pairs.fold)
        result[name] = {"accuracy": mean, "sd": deviation, "pairs": len(pairs.a), "missing": pairs.missing}
    return result
