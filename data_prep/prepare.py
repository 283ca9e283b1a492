#!/usr/bin/env python3
"""python data_prep/prepare.py SRC DST: any face data set -> prepared set. See --help and gan_mask/data/prepare.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gan_mask.data.prepare import main  # noqa: E402

if __name__ == "__main__":
    main()
