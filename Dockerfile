# The web page, on a CPU, at http://localhost:7860:
#     docker build -t tcl_d2 . && docker run -p 7860:7860 tcl_d2
# Other commands: docker run -v $PWD:/data -w /data tcl_d2 tcl-d2 segment photo.jpg --classes "brick, grass"
# This file was not built where it was written: no Docker was at hand.
FROM python:3.11-slim

# make, and what OpenCV loads
RUN apt-get update && apt-get install -y --no-install-recommends make libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*

WORKDIR /tcl_d2
COPY . .
RUN make setup && rm -rf /root/.cache

ENV PATH=/tcl_d2/.venv/bin:$PATH
EXPOSE 7860
CMD ["tcl-d2", "app", "--host", "0.0.0.0"]
