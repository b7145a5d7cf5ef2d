# The image of Tenure: one static binary, the certificates it trusts, its license, nothing else.
#
#   docker build -t tenure --build-arg REVISION="$(git rev-parse HEAD)" --build-arg CREATED="$(date -u +%FT%TZ)" .
#
# Both arguments may be left out.
#
# scripts/image.sh builds the last stage alone, from a binary that was built on this machine and without any registry.

ARG RUST_VERSION=1.95
FROM docker.io/library/rust:${RUST_VERSION}-bookworm AS build
WORKDIR /src
COPY . .
# Static by crt-static rather than musl: it is the same C library and allocator that all tests and measurements ran with.
# The target is named although it is the host's, or the flags would apply to procedural macros, too, which are not static.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
 && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin tenure --target "$target" \
 && install -D "target/$target/release/tenure" /out/tenure \
 && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt

FROM scratch
# scripts/chart.sh holds it to Cargo.toml.
ARG VERSION=0.1.0
# Of which sources, and when: an image outlives its name.
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="Tenure" \
      org.opencontainers.image.description="Background work on Kubernetes, each piece of it in exactly one place at a time" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY LICENSE /licenses/LICENSE
COPY --from=build /out/ /
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/tenure"]
CMD ["run"]
