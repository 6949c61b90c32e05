# syntax=docker/dockerfile:1.7
# One image for every service: `autoft`, Ray and Python, run as a user without rights. The GPU's driver comes from the host; CUDA comes
# with torch's wheels. A package index of your own goes in as a build secret, so that it stays in no layer:
#   docker build --secret id=pip_conf,src=pip.conf -t autoft:0.1.0 .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY autoft/ autoft/
COPY workers/ workers/
COPY storage/ storage/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=cache,target=/var/cache/pip \
    pip wheel --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/autoft \
    && wheel=$(echo /wheels/autoft-*.whl) \
    && /opt/autoft/bin/pip install --constraint constraints.txt "${wheel}[hdf5]" \
    && /opt/autoft/bin/python -m compileall -q /opt/autoft/lib

FROM ${PYTHON_IMAGE} AS final
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="AutoFT" \
      org.opencontainers.image.description="Learns how to fine-tune a foundation model so that it holds up on data it was not tuned on" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 10001 autoft \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --shell /usr/sbin/nologin autoft \
    && install --directory --owner=autoft --group=autoft --mode=0750 /runs /cache /models
COPY --from=build /opt/autoft /opt/autoft
COPY --chmod=0755 deploy/entrypoint.sh /usr/local/bin/autoft-entrypoint
ENV PATH=/opt/autoft/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TZ=UTC \
    HOME=/home/autoft \
    AUTOFT_CACHE_DIR=/cache \
    HF_HOME=/models \
    MPLCONFIGDIR=/tmp/matplotlib \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
# By number, so that Kubernetes can check runAsNonRoot.
USER 10001:10001
WORKDIR /home/autoft
VOLUME ["/runs", "/cache", "/models"]
# Each service has a health check of its own (docker-compose.yml, deploy/kuberay/): the image cannot know which one it is.
HEALTHCHECK NONE
ENTRYPOINT ["autoft-entrypoint"]
CMD ["autoft", "--help"]
