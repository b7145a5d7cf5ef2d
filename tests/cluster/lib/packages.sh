# shellcheck shell=bash
# What is needed of this computer. Sourced, not run.

# COMMAND=PACKAGE of Debian; a path is looked for as a file.
needed=(runc=runc /usr/lib/cni/ptp=containernetworking-plugins buildah=buildah ip=iproute2 nft=nftables
    iptables=iptables conntrack=conntrack openssl=openssl socat=socat curl=curl cc=gcc
    /usr/include/stdio.h=libc6-dev nsenter=util-linux setsid=util-linux)

install_packages() {
    local entry command missing=()
    for entry in "${needed[@]}"; do
        command=${entry%=*}
        if [[ $command == /* ]]; then [[ -e $command ]]; else command -v "$command" >/dev/null; fi ||
            missing+=("${entry#*=}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        fail "these are needed, and there is no apt-get to install them with (names of Debian's packages): ${missing[*]}"
    say "installing ${missing[*]}"
    # Another installation may be going on.
    local apt=(timeout "$packages_within" apt-get -qq -o "DPkg::Lock::Timeout=$packages_within")
    {
        "${apt[@]}" update
        DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
    } >"$cache/cluster/packages.log" 2>&1 ||
        fail "the packages could not be installed: ${missing[*]}; see $cache/cluster/packages.log"
}

# Programs that are built, each a link in the run's folder.
build_programs() {
    local names=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl
        containerd containerd-shim-runc-v2 ctr coredns)
    local paths path
    paths=$("$here/programs/build.sh" "${names[@]}") || fail "not all programs could be built"
    mkdir -p "$run/programs"
    for path in $paths; do ln -sf "$path" "$run/programs/"; done
}

# What this computer must allow, found out before anything is started.
require_abilities() {
    local path
    for path in /run /var/lib /var/log; do
        [[ $(realpath -m "$run")/ != $path/* ]] ||
            fail "$run lies below $path, which each node has of its own; set TENURE_CACHE to another folder"
    done
    # 107 bytes is the longest path of a unix socket.
    ((${#run} <= 90)) || fail "the path $run is too long for a socket in it; set TENURE_CACHE to a shorter one"
    unshare --pid --fork --mount --net --uts --ipc true 2>/dev/null ||
        fail "no namespaces may be made here (unshare fails); in a container, it must be privileged"
    [[ -n $(cgroup_mounts) && -w $(cgroup_mounts | head -n 1) ]] ||
        fail "no cgroups are writable below /sys/fs/cgroup; in a container, it must be privileged"
}
