# A server of `wavlink serve` on the CPU.
#
#   docker build -t wavlink --build-arg TORCH_INDEX_URL=... .
#   docker run -p 8000:8000 -v "$PWD/runs/my/best:/model:ro" -e WAVLINK_API_KEY wavlink
#
# TORCH_INDEX_URL is the package index of torch's builds for CPUs. Without it pip takes the builds of the default index,
# which on Linux bring several GB of CUDA.
FROM python:3.12-slim

ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 HF_HOME=/tmp/hf HOME=/tmp

WORKDIR /app
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY hub_cards ./hub_cards
COPY modeling_wavlink ./modeling_wavlink
COPY processing ./processing
COPY wavlink ./wavlink
COPY examples/sounds ./examples/sounds
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -c constraints.txt torch \
    && pip install -c constraints.txt '.[serve]' \
    && useradd --system --no-create-home --uid 10001 wavlink

WORKDIR /tmp
USER wavlink
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["wavlink", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/model"]
