# The server for one trained model: docker build --build-arg RUN=runs/tickets -t tickets . && docker run -p 8080:8080 tickets
FROM python:3.11-slim
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
ARG EXTRA_INDEX=""
RUN pip install --no-cache-dir ${EXTRA_INDEX:+--extra-index-url "$EXTRA_INDEX"} -c constraints.txt '.[serve]'
ARG RUN=runs/tickets
COPY --chmod=a+rX ${RUN} /model
RUN useradd --system limbert && rm -rf /build
WORKDIR /tmp
USER limbert
ENV HF_HUB_OFFLINE=1 LIMBERT_CACHE=/tmp/limbert
EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
ENTRYPOINT ["limbert", "serve", "/model", "--host", "0.0.0.0"]
CMD ["--slo", "50ms", "--threads", "1"]
