"""Masked copies of a folder of photos: `python sample.py --faces DIR --out DIR --checkpoint CHECKPOINT`."""

from gan_mask.sampling import main

if __name__ == "__main__":
    main()
