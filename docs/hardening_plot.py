"""Draw docs/hardening.png from table.json of gan_mask.harden.table: python docs/hardening_plot.py TABLE.json"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

with open(sys.argv[1]) as f:
    table = json.load(f)
rows = {**table["rows"], **table["real pack"]}
names = list(rows)[::-1]
columns = dict(zip([*table["command"]["before"], "after", "alarm"], "ov^sDPX", strict=False))
figure, axes = plt.subplots(figsize=(8.5, 6), layout="constrained")
for shift, (column, marker) in enumerate(columns.items()):
    cells = [rows[name].get(column) for name in names]
    places = [i + 0.3 - 0.2 * shift for i, cell in enumerate(cells) if cell]
    shown = [cell for cell in cells if cell]
    rate = [100 * c["rate"] for c in shown]
    around = [[100 * (c["rate"] - c["low"]) for c in shown], [100 * (c["high"] - c["rate"]) for c in shown]]
    axes.errorbar(rate, places, xerr=around, fmt=marker, markersize=5, linewidth=1, label=Path(column).stem)
axes.set_yticks(range(len(names)), names)
axes.set_xlabel("reported, % of faces (bootstrap 95 % over identities)")
axes.set_xlim(-2, 102)
axes.grid(alpha=0.3)
axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=3, fontsize=8)
figure.savefig("docs/hardening.png", dpi=110)
