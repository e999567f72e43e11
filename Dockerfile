# Targets: cpu, gpu, triton (gateway without an ONNX Runtime), tritonserver, train.
#   docker build --target cpu -t alexnet:0.1.0-cpu .
# Without --target it is cpu. --build-arg WEIGHTS=none leaves the weights out, whose licence is not the code's.
# Buildah 1.28 wants --build-arg WEIGHTS=shipped for the others: it skips a stage that a default value names.
# Packages are pinned by hash in docker/locks (`make lock`). Base images can be pinned by digest:
#   --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:25.08-py3
# shipped or none
ARG WEIGHTS=shipped

FROM ${PYTHON_IMAGE} AS build
ARG WEIGHTS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY docker/locks/build.txt docker/locks/
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --quiet --require-hashes -r docker/locks/build.txt
COPY pyproject.toml README.md LICENSE LICENSE-WEIGHTS ./
COPY clients clients
COPY server server
COPY training training
COPY model_repository model_repository
COPY docker/environment.sh docker/models.sh docker/
RUN [ "$WEIGHTS" = shipped ] || { [ "$WEIGHTS" = none ] && rm model_repository/alexnet.weights \
    && sed -i 's/^license = .*/license = "Apache-2.0"/' pyproject.toml; }
RUN /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .

# One environment for each target, without pip, and the models it serves.
FROM build AS cpu-environment
COPY docker/locks/cpu.txt docker/locks/
RUN docker/environment.sh cpu
RUN docker/models.sh int8

FROM build AS gpu-environment
COPY docker/locks/gpu.txt docker/locks/
RUN docker/environment.sh gpu
RUN docker/models.sh fp16

FROM build AS triton-environment
COPY docker/locks/triton.txt docker/locks/
RUN docker/environment.sh triton

FROM build AS train-environment
COPY docker/locks/train.txt docker/locks/
RUN docker/environment.sh train

# What all final images of ours have in common: a user without rights, and nothing that wants to write.
FROM ${PYTHON_IMAGE} AS licence-shipped
LABEL org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-AlexNet-Weights"

FROM ${PYTHON_IMAGE} AS licence-none
LABEL org.opencontainers.image.licenses="Apache-2.0"

FROM licence-${WEIGHTS} AS final
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="AlexNet" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin alexnet
ENV PATH=/opt/alexnet/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /tmp

FROM final AS server
COPY docker/healthcheck.py /opt/healthcheck.py
ENV ALEXNET_HOST=0.0.0.0
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "/opt/healthcheck.py"]
# No shell between: SIGTERM reaches the server itself.
ENTRYPOINT ["alexnet-server"]

FROM server AS cpu
LABEL org.opencontainers.image.description="AlexNet server, OpenVINO and ONNX Runtime on CPUs"
COPY --from=cpu-environment /opt/alexnet /opt/alexnet
COPY --from=cpu-environment /models /models
ENV ALEXNET_MODEL_REPOSITORY=/models ALEXNET_DEVICE=cpu

FROM server AS gpu
LABEL org.opencontainers.image.description="AlexNet server, ONNX Runtime on NVIDIA GPUs"
COPY --from=gpu-environment /opt/alexnet /opt/alexnet
COPY --from=gpu-environment /models /models
ENV ALEXNET_MODEL_REPOSITORY=/models \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM server AS triton
LABEL org.opencontainers.image.description="AlexNet gateway in front of a Triton server"
COPY --from=triton-environment /opt/alexnet /opt/alexnet
ENV ALEXNET_ENGINE=triton

FROM final AS train
LABEL org.opencontainers.image.description="AlexNet training"
# Triton compiles its launcher, and inductor its kernels, with the C compiler that they find.
USER root
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001:10001
COPY --from=train-environment /opt/alexnet /opt/alexnet
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# `alexnet-train ...`, or for several machines `torchrun ... -m alexnet_train ...`
CMD ["alexnet-train", "--help"]

FROM ${TRITON_IMAGE} AS tritonserver
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="AlexNet for Triton" \
      org.opencontainers.image.description="NVIDIA Triton with the AlexNet model repository" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY docker/locks/tritonserver.txt /tmp/
RUN python3 -m pip install --quiet --no-cache-dir --break-system-packages --require-hashes -r /tmp/tritonserver.txt \
    && rm /tmp/tritonserver.txt
COPY --from=gpu-environment /models /models
# Its ONNX Runtime would report to its maker.
ENV ORT_DISABLE_TELEMETRY=1
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--show-error", "http://127.0.0.1:8000/v2/health/ready"]
# triton-server in NVIDIA's image.
USER 1000:1000
CMD ["tritonserver", "--model-repository=/models"]

# The default target.
FROM cpu
