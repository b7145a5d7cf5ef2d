#!/usr/bin/env bash
# Builds the image with buildah from a static binary that is built here, and prints its size: no registry is needed.
#   scripts/image.sh [--binary FILE] [--archive FILE] [NAME]
# NAME is tenure:VERSION unless given. --binary takes a static binary that is there already; --archive writes the image
# into a file, which `docker load` and `ctr images import` read.
set -euo pipefail
cd "$(dirname "$0")/.."

# More than this, and something has got in that does not belong there.
size_max=$((15 * 1024 * 1024))
certificates=/etc/ssl/certs/ca-certificates.crt
binary='' archive=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --binary) binary=${2:?"--binary needs a file"} ;;
    --archive) archive=${2:?"--archive needs a file"} ;;
    *) echo "usage: scripts/image.sh [--binary FILE] [--archive FILE] [NAME]" >&2; exit 2 ;;
  esac
  shift 2
done
version=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"$/\1/p' Cargo.toml)
name=${1:-tenure:$version}
command -v buildah >/dev/null || { echo "buildah is needed (Debian: apt-get install buildah); with Docker: docker build -t $name ." >&2; exit 1; }
[[ -r $certificates ]] || { echo "$certificates is missing (Debian: apt-get install ca-certificates): without it no https target is trusted" >&2; exit 1; }

if [[ -z $binary ]]; then
  target=$(rustc -vV | sed -n 's/^host: //p')
  RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin tenure --target "$target"
  binary=${CARGO_TARGET_DIR:-target}/$target/release/tenure
fi
# An interpreter means a dynamic binary, which has no libraries in an empty image.
if LC_ALL=C grep -aq '/ld-linux' <(head -c 4096 "$binary"); then
  echo "$binary is not static: it would not start in an empty image" >&2
  exit 1
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
install -D "$binary" "$context/out/tenure"
install -D -m 0644 "$certificates" "$context/out/etc/ssl/certs/ca-certificates.crt"
install -D -m 0644 LICENSE "$context/LICENSE"
# The last stage of the Dockerfile as it is, but for where its files come from.
sed -n '/^FROM scratch$/,$p' Dockerfile | sed 's#^COPY --from=build /out/ /$#COPY out/ /#' >"$context/Dockerfile"
grep -qx 'COPY out/ /' "$context/Dockerfile" || { echo "the last stage of the Dockerfile is not what this script knows" >&2; exit 1; }

# Sources without their history have no revision; changes that are not committed are not part of one.
revision=$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null) || revision=''
created=$(date -u +%FT%TZ)

buildah=(buildah --storage-driver vfs)
"${buildah[@]}" build --isolation chroot --quiet --build-arg VERSION="$version" --build-arg REVISION="$revision" \
  --build-arg CREATED="$created" --tag "$name" "$context" >/dev/null
# label NAME VALUE: the image has it.
label() {
  local found
  found=$("${buildah[@]}" inspect --type image --format "{{index .OCIv1.Config.Labels \"org.opencontainers.image.$1\"}}" "$name")
  [[ $found == "$2" ]] || { echo "the image says $1 $found, expected $2" >&2; exit 1; }
}
label version "$version"
label revision "$revision"
label created "$created"
size=$(du -sb "$context/out" | cut -f1)
printf '%s: %d.%d MB\n' "$name" $((size / 1048576)) $((size % 1048576 * 10 / 1048576))
((size <= size_max)) || { echo "more than $((size_max / 1048576)) MB" >&2; exit 1; }
if [[ -n $archive ]]; then
  rm -f "$archive"
  "${buildah[@]}" push --quiet "$name" "docker-archive:$archive:$name"
fi
