# The page in a container:
#   docker build -t mae-demo .
#   docker run --rm -p 7860:7860 mae-demo
# Without an NVIDIA GPU, spare several GB by the address of PyTorch's CPU wheels:
#   docker build --build-arg TORCH_INDEX=ADDRESS -t mae-demo .
FROM python:3.12-slim

ARG TORCH_INDEX=
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user/demo

# The slow layer first: it changes with the requirements only.
COPY requirements.txt .
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements.txt

COPY --chown=user:user mae_core mae_core
COPY --chown=user:user app app
COPY --chown=user:user weights weights

USER user
ENV MAE_HOST=0.0.0.0
EXPOSE 7860
CMD ["python", "-m", "app"]
