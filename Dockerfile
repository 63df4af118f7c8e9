# The agent as an image, for every architecture that Debian 12 has packages and PyPI has wheels for (amd64, arm64):
#
#     docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/otel-procmon .
#
# The BPF object is part of the package, the same for all of them. The path of every event is compiled here, with mypyc.
#
#     --build-arg BASE=…            another Debian 12 or Ubuntu 24.04, with or without Python
#     --build-arg PIP_INDEX_URL=…   another package index than PyPI; likewise PIP_NO_INDEX and PIP_FIND_LINKS
ARG BASE=docker.io/library/debian:12-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev python3-dev python3-venv
COPY . /source
# pip stays out of what is shipped: nothing is to be installed there any more.
RUN python3 -m venv /opt/otel-procmon && \
    PROCMON_COMPILE=1 PIP_CONSTRAINT=/source/.ci/constraints.txt PIP_BUILD_CONSTRAINT=/source/.ci/constraints.txt \
    /opt/otel-procmon/bin/pip install --no-cache-dir /source && \
    /opt/otel-procmon/bin/pip uninstall -y setuptools pip

FROM ${BASE}
LABEL org.opencontainers.image.title="otel-procmon" \
      org.opencontainers.image.description="Every process on a Linux host, from exec to exit, as OpenTelemetry logs and spans" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libbpf1 python3 && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=build /opt/otel-procmon /opt/otel-procmon
ENV PATH=/opt/otel-procmon/bin:$PATH PYTHONUNBUFFERED=1
# Root, and yet with no more rights than it is given: the kernel asks for capabilities, which a container's other users
# cannot have (examples/kubernetes/daemonset.yaml names them, and docs/kubernetes.md says how to go without root).
ENTRYPOINT ["otel-procmon"]
CMD ["run"]
