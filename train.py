"""Train the conditional generator: `accelerate launch train.py --data PREPARED --out RUN`."""

from gan_mask.training import main

if __name__ == "__main__":
    main()
