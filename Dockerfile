# The web page, on a CPU, at http://localhost:7860:
#     docker build -t tcl_d2 . && docker run -p 7860:7860 tcl_d2
# Other commands: docker run --user $(id -u) -v $PWD:/data -w /data tcl_d2 tcl-d2 segment photo.jpg --classes "brick, grass"
# Behind a server, with a login: docs/serve.md
# This file was not built where it was written: no Docker was at hand.
FROM python:3.11-slim

# make, and what OpenCV loads
RUN apt-get update && apt-get install -y --no-install-recommends make libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*

WORKDIR /tcl_d2
COPY . .
RUN make setup && rm -rf /root/.cache

# A user without rights, whose home has the caches of models and uploads
RUN useradd --uid 1000 --create-home tcl_d2
USER tcl_d2

ENV PATH=/tcl_d2/.venv/bin:$PATH MALLOC_ARENA_MAX=2
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health')"]
CMD ["tcl-d2", "app", "--server-name", "0.0.0.0"]
