# docker build -t netwatch-server .
# docker run -p 8080:8080 -v netwatch-data:/data netwatch-server

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# Remove symbols and debug information: the binary shrinks from 35 MB to about 5 MB.
ENV CARGO_PROFILE_RELEASE_STRIP=symbols
# Build the dependencies first. Docker reuses this layer until Cargo.toml or Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches \
 && echo '//! Placeholder.' > src/lib.rs \
 && echo 'fn main() {}' > src/main.rs \
 && for bench in append flush recover report versus_hyper; do echo 'fn main() {}' > benches/$bench.rs; done \
 && cargo build --release --locked \
 && rm -rf src target/release/.fingerprint/netwatch-server-*
COPY openapi.yaml ./
COPY src src
RUN cargo build --release --locked \
 && install -d -m 0750 /image/data \
 && install -D target/release/netwatch-server /image/netwatch-server

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/netwatch-server /netwatch-server
# Docker gives a new volume the owner of the directory at its mount point.
COPY --from=build --chown=65532:65532 /image/data /data
ENV DATA_DIR=/data
VOLUME /data
EXPOSE 8080
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s CMD ["/netwatch-server", "healthcheck"]
ENTRYPOINT ["/netwatch-server"]
