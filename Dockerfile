# Training and sampling on an NVIDIA GPU. Build: docker build -t gan-mask .
# Run:   docker run --gpus all --shm-size 8g -v "$PWD/data:/data" -v "$PWD/runs:/runs" gan-mask \
#            accelerate launch train.py --config configs/lfw.yaml --data /data/lfw --out /runs/lfw
# Not built where it was written (no container engine there): the first to build it should say how it went.
FROM python:3.12-slim
WORKDIR /gan_mask
RUN useradd --create-home user
COPY . .
RUN pip install --no-cache-dir -e .
USER user
CMD ["gan-mask-sample", "--help"]
