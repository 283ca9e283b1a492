"""The adaptive attacker of docs/hardening.md: the shipped generator, fine-tuned against the hardened detector.

python docs/adaptive_generator.py LFW160
"""

import sys

import numpy as np
import torch

from gan_mask import alarm, augment, masking, pretrained, templates
from gan_mask.augment import Draws
from gan_mask.data import PreparedSet
from gan_mask.evaluation.intervals import interval
from gan_mask.evaluation.protocol import batches, choose_probes
from gan_mask.networks import load_generator
from gan_mask.surrogates import Goal, Surrogates, evasion_terms

STEPS, BATCH = 101, 8
torch.manual_seed(0)
generator = load_generator("checkpoints/synthfaces")
dlib, before = pretrained.load_embedder("dlib"), pretrained.load_detector("classifier")
hardened, raised = pretrained.load_detector("classifier-hardened"), alarm.load()
at = dlib.threshold(1e-3)
surrogates = Surrogates([dlib], [at], [hardened])

train, rng = PreparedSet(sys.argv[1], "train"), np.random.default_rng(0)
bank = templates.load_all([f"face-{i:03d}" for i in range(1, 37)], generator.texture_size)
generator.train().requires_grad_(True)
optimizer = torch.optim.AdamW(generator.net.parameters(), 1e-3)
for step in range(STEPS):
    face, landmarks = next(batches(train, rng.integers(len(train), size=BATCH), BATCH))
    template = bank[rng.integers(len(bank), size=BATCH)]
    with torch.no_grad():
        references = [dlib(face, landmarks)[:, None]]
    texture = generator.texture(face, landmarks, template)
    masked = augment.round_to_8_bit(masking.wear(face, landmarks, texture, 0.03))
    draws = Draws(0, step, range(BATCH), BATCH, "cpu")
    terms = evasion_terms(masked, landmarks, references, surrogates, draws, 0.5, Goal())
    loss = (2 * terms["dodging"] + 0.5 * terms["undetected"] + 0.5 * terms["found"]).mean()
    loss = loss + 30 * (texture - template).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(generator.net.parameters(), 1.0)
    optimizer.step()

generator.eval()
test = PreparedSet(sys.argv[1], "test")
probes = choose_probes(test, 80, 0)
bank = templates.load_all([f"face-{i:03d}" for i in range(37, 49)], generator.texture_size)
rates: dict[str, list[bool]] = {"classifier": [], "classifier-hardened": [], "alarm": [], "accepted by dlib": []}
with torch.no_grad():
    pairs = zip(batches(test, probes.index, 16), batches(test, probes.mate, 16), strict=True)
    for start, ((face, landmarks), (mate, mate_landmarks)) in enumerate(pairs):
        template = bank[(16 * start + torch.arange(len(face))) % len(bank)]
        worn = masking.wear(face, landmarks, generator.texture(face, landmarks, template), 0.03)
        worn = (worn * 255).round() / 255
        rates["classifier"] += (before(worn)[0] > 0).tolist()
        rates["classifier-hardened"] += (hardened(worn)[0] > 0).tolist()
        rates["alarm"] += (raised(worn, landmarks) > 0).tolist()
        rates["accepted by dlib"] += ((dlib(worn, landmarks) * dlib(mate, mate_landmarks)).sum(1) >= at).tolist()
for name, values in rates.items():
    print(name, interval(np.array(values, float), probes.identity))
