"""python -m gan_mask.alarm, and its main: see gan_mask.harden.alarm."""

from gan_mask.harden.alarm import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
