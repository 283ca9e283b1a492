"""The page of gan-mask-app as a Hugging Face Space; the package's folder gan_mask lies beside this file."""

import torch

from gan_mask.app import main

if __name__ == "__main__":
    torch.set_num_threads(2)  # of a free Space
    main(["--host", "0.0.0.0", "--megabytes", "15", "--megapixels", "25"])
