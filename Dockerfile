# The worker, and `alembic upgrade head`, from one image.

FROM debian:bookworm-slim AS build
# Debian stable changes a version only to mend it; a pinned one soon cannot be found.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv
# pip stays here: the environment that is copied below has none.
RUN python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/heartbeat_app
WORKDIR /src
COPY . .
RUN /opt/pip/bin/pip --python /opt/heartbeat_app/bin/python install --no-cache-dir -c constraints.txt .

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="heartbeat_app" \
      org.opencontainers.image.description="Takes heartbeats from Kafka and keeps each one exactly once in PostgreSQL" \
      org.opencontainers.image.licenses="MIT"
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/heartbeat_app /opt/heartbeat_app
# A new volume that is mounted here belongs to the user of below.
RUN install -d -o 10001 -g 10001 /run/web-token /run/owner-password /run/reader-password
WORKDIR /app
COPY alembic.ini ./
COPY alembic alembic
ENV PATH=/opt/heartbeat_app/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 6066
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; page = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('WEB_PORT') or 6066), timeout=4); page.request('GET', '/health/ready'); sys.exit(page.getresponse().status != 200)"]
CMD ["heartbeat_app", "worker", "-l", "info"]
