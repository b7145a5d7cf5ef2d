FROM scratch
COPY coredns /coredns
USER 65535:65535
ENTRYPOINT ["/coredns"]
