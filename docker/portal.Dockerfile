# The portal: web server and worker are the same image with another command (compose.portal.yml).
FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app:/app/platform DJANGO_SETTINGS_MODULE=portal.settings.production CONSILIUM_HOME=/data
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY manage.py ./
COPY protocol protocol
COPY platform platform
COPY templates templates
COPY static static
RUN pip install --no-cache-dir ".[portal]" && useradd --uid 1000 consilium && mkdir /data && chown consilium /data
USER consilium
VOLUME /data
EXPOSE 8000
CMD ["granian", "--interface", "asginl", "--host", "0.0.0.0", "--port", "8000", "--workers", "1", "--no-ws", "--log-level", "warning", "portal.asgi:application"]
