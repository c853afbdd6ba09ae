# A hospital's silo: one container, one command, no open port. Nothing outside /silo and /tmp is written.
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SILO_HOME=/silo
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY platform platform
COPY silo_node silo_node
RUN pip install --no-cache-dir torch==2.13.0 && pip install --no-cache-dir ".[silo]" \
 && useradd --uid 1000 silo && mkdir --mode=0700 /silo && chown silo /silo
USER silo
VOLUME /silo
# SIGTERM ends it cleanly. A portal that is away does not make it unhealthy: a new start would not help.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s --retries=3 CMD ["silo", "healthy"]
CMD ["silo", "run"]
