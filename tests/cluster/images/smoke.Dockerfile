FROM scratch
COPY pause /pause
COPY kubectl /kubectl
USER 65535:65535
ENTRYPOINT ["/pause"]
