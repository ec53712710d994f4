# The page in a container, for the CPU:
#   docker build -t mae-demo .
#   docker run --rm -p 7860:7860 --read-only --tmpfs /tmp mae-demo
# For an NVIDIA GPU, with PyPI's torch, which brings CUDA 13.0 (as does PyTorch's index /whl/cu130):
#   docker build --build-arg TORCH_INDEX= -t mae-demo:cuda .
#   docker run --rm -p 7860:7860 --gpus all mae-demo:cuda
# It stops within --drain-seconds (20) of SIGTERM: `docker stop -t 30`.

# Pinned to a patch version, not to a digest: that needs the registry, to be looked up and kept up.
ARG PYTHON_IMAGE=docker.io/library/python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# PyTorch's index of CPU wheels; theirs have a local version (+cpu) and so come before PyPI's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /demo

# The slow layer first: it changes with the requirements only. pip stays behind in this stage.
COPY requirements.txt .
RUN python -m venv --without-pip /venv \
    && python -m pip --python /venv/bin/python install --no-cache-dir --no-compile \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement requirements.txt \
    # What torch's own tests and C++ extensions need; nothing here does.
    && rm -rf /venv/lib/python3*/site-packages/torch/test \
        /venv/lib/python3*/site-packages/torch/include
# The container cannot write bytecode, and what pip compiles counts as stale once it is copied. A
# package may bring files for other Pythons, which do not compile and are never imported.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /venv || true

COPY mae_core mae_core
COPY app app
COPY weights weights
# Readable to everybody, writable to root alone.
RUN chmod -R u=rwX,go=rX /demo \
    && python -m compileall -q --invalidation-mode unchecked-hash mae_core app


FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="mae-demo" \
    org.opencontainers.image.description="Masked autoencoders to look at" \
    org.opencontainers.image.licenses="Apache-2.0"

# Docker Spaces run as uid 1000. What visitors have fetched goes to /cache, where a volume may be;
# all else that is written goes to /tmp.
# The base image comes without bytecode of Python's own library.
RUN useradd --uid 1000 --no-create-home --home-dir /tmp user \
    && install --directory --owner=user /cache \
    && python -m compileall -q -x '/(idlelib|lib2to3|test|tkinter)/' \
        --invalidation-mode unchecked-hash /usr/local/lib
COPY --from=build /venv /venv
COPY --from=build /demo /demo

ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    GRADIO_TEMP_DIR=/tmp/gradio \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    MAE_HOST=0.0.0.0 \
    MAE_PORT=7860

USER 1000
WORKDIR /demo
VOLUME /cache
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-ISc", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['MAE_PORT']), 4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "app"]
