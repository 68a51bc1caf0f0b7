# The project's images, by target:
#   engineroom      operator, webhooks, limiter and command line
#   worker-runtime  what an init container copies into the pods of users' workers
#
#   docker build --target engineroom -t ghcr.io/engineroom-dev/engineroom:0.1.0 .
#   docker build --target worker-runtime -t ghcr.io/engineroom-dev/engineroom-worker-runtime:0.1.0 .

FROM debian:trixie-slim AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# pip stays here: it installs into the other environment, which is all that is delivered.
FROM builder AS environment
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/engineroom
WORKDIR /src
COPY requirements/image.txt requirements/image.txt
RUN /opt/build/bin/pip --python /opt/engineroom/bin/python install --no-cache-dir --require-hashes \
    --only-binary :all: --requirement requirements/image.txt
# The build backend by its locked hash, too, instead of whatever is newest today.
COPY requirements/build.txt requirements/build.txt
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY operator operator
COPY webhooks webhooks
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /opt/wheels . \
    && /opt/build/bin/pip --python /opt/engineroom/bin/python install --no-cache-dir --no-deps --no-index \
    /opt/wheels/*.whl
# What is in it, for whoever has to know: CycloneDX, beside Debian's own list of packages.
RUN /opt/build/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
    --output-file /opt/engineroom/sbom.cdx.json /opt/engineroom/bin/python

FROM builder AS copier
COPY deploy/worker-runtime /src
RUN for program in copy-runtime heard start; do \
    gcc -std=c11 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Werror -Os -static -s -o /$program /src/$program.c || exit 1; \
    done

FROM scratch AS worker-runtime
LABEL org.opencontainers.image.title="engineroom-worker-runtime" \
    org.opencontainers.image.description="Puts Engineroom's worker runtime into a user's pod" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=copier /copy-runtime /copy-runtime
COPY --from=copier /heard /start /runtime/
COPY operator/engineroom_worker /runtime/engineroom_worker
USER 65532:65532
ENTRYPOINT ["/copy-runtime"]
CMD ["/engineroom"]

FROM debian:trixie-slim AS engineroom
LABEL org.opencontainers.image.title="engineroom" \
    org.opencontainers.image.description="Engineroom's operator, webhooks, limiter and command line" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 tzdata \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
    && useradd --uid 65532 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin engineroom
COPY --from=environment /opt/engineroom /opt/engineroom
# The root file system is read-only: nothing is compiled at run time, and what wants a home finds /tmp.
ENV PATH=/opt/engineroom/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["engineroom"]
CMD ["--help"]
