"""Draw docs/frontier.png, success against looks, of an evaluation: python docs/frontier_plot.py REPORT.json"""

import json
import sys

import matplotlib.pyplot as plt

LINES = {  # methods of the evaluation, folder:NAME=DIR among them, and what they are called here
    "the generator, by --strength": {
        "dm-seamless": "0: seamless DM", "s0.25": "0.25", "s0.5": "0.5", "s0.75": "0.75", "generator": "1",
        "s1.25": "1.25",
    },
    "refined by 10 steps, by --strength": {"refine.5": "0.5", "refine.75": "0.75", "refine1": "1"},
    "advface, 20 steps": {"adv": ""},
}  # fmt: skip

with open(sys.argv[1]) as f:
    report = json.load(f)
far = f"{report['far']:g}"
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for ax, networks in zip(axes, ("surrogates", "held-out"), strict=True):
    for (title, names), style in zip(LINES.items(), ("o-", "s-", "D"), strict=True):
        cells = [report["rates"][networks][far][name]["joint success"] for name in names]
        looks = [report["looks"][name]["realism AUC (trained)"]["rate"] for name in names]
        rates = [100 * cell["rate"] for cell in cells]
        spread = [[100 * (c["rate"] - c["low"]) for c in cells], [100 * (c["high"] - c["rate"]) for c in cells]]
        line = ax.errorbar(
            looks, rates, yerr=spread, fmt=style, markersize=5, linewidth=1.2, elinewidth=0.5, label=title
        )
        for x, y, label in zip(looks, rates, names.values(), strict=True):
            ax.annotate(
                label, (x, y), (4, -10), textcoords="offset points", fontsize=8, color=line.lines[0].get_color()
            )
    ax.set_title(f"joint success, {networks}, FAR {far}", fontsize=10)
    ax.set_xlabel("trained realism AUC (0.5: not told from bare faces)")
    ax.grid(alpha=0.3)
axes[0].set_ylabel("% of probes [95 % over people]")
axes[0].legend(fontsize=8, loc="upper left")
figure.savefig("docs/frontier.png", dpi=110)
