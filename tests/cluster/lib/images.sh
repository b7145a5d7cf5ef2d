# shellcheck shell=bash
# Container images: built from local files, for nothing can be pulled, and put into each node's containerd. Sourced.

pause_image=localhost/tenure-cluster/pause:1

# build_image NAME ARCHIVE DOCKERFILE CONTEXT: a docker-archive. Its own storage, which is gone afterwards.
build_image() {
    local name=$1 archive=$2 dockerfile=$3 context=$4
    local storage
    storage=$(mktemp -d "$run/buildah.XXXXXX")
    (
        trap 'rm -rf "$storage"' EXIT
        # No process is run while building, so no more isolation than a folder is needed.
        buildah=(buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs)
        "${buildah[@]}" build --quiet --isolation chroot --tag "$name" --file "$dockerfile" "$context" >/dev/null
        rm -f "$archive.new"
        "${buildah[@]}" push --quiet "$name" "docker-archive:$archive.new:$name" >/dev/null
        mv "$archive.new" "$archive"
    )
}

# The container that holds a pod's namespaces; also what the smoke check runs, with kubectl beside it.
build_pause() {
    local folder
    folder="$cache/cluster-images/pause-$(cat "$here/images/pause.c" "$here/images/pause.Dockerfile" | sha256sum | cut -c1-12)"
    pause_archive="$folder/pause.tar"
    [[ -f $pause_archive ]] && return
    say "building the pause image"
    mkdir -p "$folder"
    cc -Os -static -Wall -Wextra -Werror -o "$folder/pause" "$here/images/pause.c"
    build_image "$pause_image" "$pause_archive" "$here/images/pause.Dockerfile" "$folder"
}

# What gives a program a wrong time of day. Sets `skew_library`.
build_skew() {
    local folder
    folder="$cache/cluster-images/skew-$(sha256sum <"$here/images/skew.c" | cut -c1-12)"
    skew_library="$folder/skew.so"
    [[ -f $skew_library ]] && return
    mkdir -p "$folder"
    cc -O2 -shared -fPIC -Wall -Wextra -Werror -o "$skew_library.new" "$here/images/skew.c"
    mv "$skew_library.new" "$skew_library"
}

# program_image NAME: of one program that is built and the pause program, as localhost/tenure-cluster/NAME:1. Sets
# `archive`.
program_image() {
    local name=$1 program=$2 path context
    path=$(realpath "$(program "$program")")
    archive="$cache/cluster-images/$name-$(cat "$here/images/$name.Dockerfile" <(echo "$path") "$pause_archive" | sha256sum | cut -c1-12).tar"
    [[ -f $archive ]] && return
    say "building the $name image"
    context=$(mktemp -d "$run/context.XXXXXX")
    cp "$path" "$(dirname "$pause_archive")/pause" "$context"
    build_image "localhost/tenure-cluster/$name:1" "$archive" "$here/images/$name.Dockerfile" "$context"
    rm -rf "$context"
}

# What Tenure's image is made of that the nodes have: as an annotation of its pods, it has them replaced when another one
# has been loaded under the same name.
loaded() { cat "$run/tenure.sha256" 2>/dev/null || echo none; }

# load_image ARCHIVE: into every node.
load_image() {
    local node
    for node in "${nodes[@]}"; do
        ctr_on "$node" images import "$1" >>"$run/machines/$node/log/images" 2>&1 ||
            fail "$node does not take the image $1; see $run/machines/$node/log/images"
    done
}
