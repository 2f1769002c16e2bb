# The app for Docker or Podman. It cannot be built where this project is made: read it before you trust it.
#
#     docker build -t sounds --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .    # small; no GPU
#     docker run --rm -p 7860:7860 sounds                                                      # http://localhost:7860
#
# Without TORCH_INDEX it takes the CUDA builds, some gigabytes: docker run --gpus all ... Flags are environment
# variables: -e AUDIO_CNN_AUTH=user:password -e AUDIO_CNN_REMOTE=https://...
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 app
WORKDIR /home/app/audio-cnn

ARG TORCH_INDEX=""
COPY requirements.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" \
            $(grep -oE '^(torch|torchaudio)==[0-9.]+' requirements.txt); \
    fi \
    && pip install --no-cache-dir -r requirements.txt

COPY app.py LICENSE ./
COPY cnn ./cnn
COPY assets ./assets

USER app
ENV AUDIO_CNN_HOST=0.0.0.0 AUDIO_CNN_PORT=7860 GRADIO_ANALYTICS_ENABLED=False PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
CMD ["python", "app.py"]
