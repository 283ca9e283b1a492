"""python -m gan_mask.provenance, and its main: see gan_mask.sampling.provenance."""

import sys

from gan_mask.sampling.provenance import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
