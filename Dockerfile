# Training and sampling on an NVIDIA GPU. Build: docker build -t gan-mask .
# Run:   mkdir -p runs && docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -e HOME=/tmp \
#            -v "$PWD/data:/data:ro" -v "$PWD/runs:/runs" -v "$PWD/weights:/weights:ro" -e GAN_MASK_WEIGHTS=/weights gan-mask \
#            accelerate launch train.py --config configs/lfw.yaml --data /data/lfw --out /runs/lfw
# --user: so that what it writes is yours. /weights: what docs/training.md says that the config needs; without it add
# --embedders dlib --perceptual 0. data/, runs/ and weights/ stay out of the image (.dockerignore).
# Not built where it was written (no container engine there): the first to build it should say how it went.
FROM python:3.12-slim
WORKDIR /gan_mask
RUN useradd --create-home user
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check -e .
USER user
CMD ["gan-mask-sample", "--help"]
