"""python -m gan_mask.calibrate, and its main: see gan_mask.evaluation.calibrate."""

from gan_mask.evaluation.calibrate import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
