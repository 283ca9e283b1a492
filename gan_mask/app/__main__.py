"""python -m gan_mask.app"""

from gan_mask.app import main

if __name__ == "__main__":
    main()
