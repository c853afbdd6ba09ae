# A hospital's silo: one container, one command, no open port.
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 SILO_HOME=/silo
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY platform platform
COPY silo_node silo_node
RUN pip install --no-cache-dir torch==2.13.0 && pip install --no-cache-dir ".[silo]" \
 && useradd --uid 1000 silo && mkdir /silo && chown silo /silo
USER silo
VOLUME /silo
CMD ["silo", "run"]
