"""python -m gan_mask.prepare, and its main: see gan_mask.data.prepare."""

from gan_mask.data.prepare import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
