# Tenure as it runs on the nodes: a static binary and nothing else.
FROM scratch
COPY tenure /tenure
USER 65532:65532
ENTRYPOINT ["/tenure"]
