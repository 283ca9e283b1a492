"""python -m gan_mask.calibrate, and its main: see gan_mask.evaluation.embedder_thresholds."""

from gan_mask.evaluation.embedder_thresholds import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
