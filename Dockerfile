# cispbench as a command:
#   docker build --tag cispbench .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" cispbench run --method mbs --setting overlapped-100-10
FROM python:3.12-slim

# An index with other builds of torch (another CUDA version, or CPU only). Empty: the usual builds.
ARG TORCH_INDEX=""

WORKDIR /opt/cispbench
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY cispbench cispbench
COPY splits splits
COPY results results
COPY harness harness
COPY methods methods
COPY reports reports
RUN PIP_EXTRA_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir . \
    && useradd --uid 1000 cispbench \
    && install --directory --mode 1777 /work

# Any user may run it: caches go where everybody may write.
ENV HOME=/tmp
USER 1000
WORKDIR /work
ENTRYPOINT ["cispbench"]
CMD ["--help"]
