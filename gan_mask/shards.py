"""python -m gan_mask.shards, and its main: see gan_mask.data.shards."""

from gan_mask.data.shards import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
