#!/usr/bin/env bash
# Build the image with docker where its daemon answers, else with buildah.
#
#   docker/build.sh [further options of the build, such as --build-arg RUN_AS=root]
#
#   IMAGE       its name (wavespace:latest)
#   BASE_IMAGE  its base (default: the Dockerfile's). "debootstrap" makes one from Debian's packages, without a registry;
#               buildah as root does so, too, if the registry can't be reached.
set -euo pipefail
cd "$(dirname "$0")/.."
image=${IMAGE:-wavespace:latest}
base=${BASE_IMAGE:-}
default_base=$(sed -n 's/^ARG BASE_IMAGE=//p' docker/Dockerfile)
options=()

# Settings of this machine to reach a package index go to the build as secrets, which no layer keeps.
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
certificates=${SSL_CERT_FILE:-${PIP_CERT:-${REQUESTS_CA_BUNDLE:-}}}
env | grep -E '^(PIP|UV)_[A-Z_]+=|^(https?|no|all)_proxy=|^(HTTPS?|NO|ALL)_PROXY=' | grep -vE '^(PIP_CERT|PIP_FIND_LINKS|UV_FIND_LINKS|UV_CACHE_DIR|UV_OFFLINE)=' \
  | while IFS='=' read -r name value; do printf '%s=%q\n' "$name" "$value"; done > "$secrets/builder" || true
if [ -f "$certificates" ]; then
  cp -L "$certificates" "$secrets/certificates"
  for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE; do echo "$name=/run/secrets/certificates" >> "$secrets/builder"; done
  options+=(--secret "id=certificates,src=$secrets/certificates")
fi
for file in "${PIP_CONFIG_FILE:-}" ~/.config/pip/pip.conf /etc/pip.conf; do
  if [ -f "$file" ]; then
    grep -vE '^ *cert *=' "$file" > "$secrets/pip.conf" || true
    echo "PIP_CONFIG_FILE=/run/secrets/pip.conf" >> "$secrets/builder"
    options+=(--secret "id=pip.conf,src=$secrets/pip.conf")
    break
  fi
done

bare_base() {  # Debian and its Python, nothing else
  local tree container
  tree=$(mktemp -d)
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$tree" > "$secrets/debootstrap.log" \
    || { tail -n 20 "$secrets/debootstrap.log" >&2; return 1; }
  rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "$tree" / > /dev/null
  buildah commit --quiet --rm "$container" localhost/wavespace-base > /dev/null
  rm -rf --one-file-system "$tree"
}

if [ "$base" != debootstrap ] && docker info > /dev/null 2>&1; then
  options+=(--secret "id=builder,src=$secrets/builder")
  [ -z "$base" ] || options+=(--build-arg "BASE_IMAGE=$base")
  build=(docker build --file docker/Dockerfile)
elif command -v buildah > /dev/null; then
  if [ -z "$base" ] && ! buildah pull --quiet --policy missing "$default_base" > /dev/null 2>&1; then
    command -v debootstrap > /dev/null || { echo "docker/build.sh: $default_base can't be pulled, and debootstrap, which could replace it, is missing" >&2; exit 1; }
    echo "docker/build.sh: $default_base can't be pulled; debootstrap makes the base" >&2
    base=debootstrap
  fi
  if [ "$base" = debootstrap ]; then
    base=localhost/wavespace-base
    buildah inspect --type image "$base" > /dev/null 2>&1 || bare_base
  fi
  [ -z "$base" ] || options+=(--build-arg "BASE_IMAGE=$base")
  cache=${UV_CACHE_DIR:-$HOME/.cache/uv}
  if [ -d "$cache" ]; then
    options+=(--volume "$cache:/var/cache/uv")
    echo "UV_CACHE_DIR=/var/cache/uv" >> "$secrets/builder"
  fi
  options+=(--secret "id=builder,src=$secrets/builder")
  build=(buildah build --layers --format docker --file docker/Dockerfile)
  [ "$(id -u)" != 0 ] || build+=(--isolation chroot)
else
  echo "docker/build.sh: needs a docker daemon or buildah (apt-get install buildah debootstrap)" >&2
  exit 1
fi
commit=$(git describe --always --dirty --abbrev=12 2> /dev/null || true)
"${build[@]}" "${options[@]}" --build-arg "COMMIT=$commit" --tag "$image" "$@" .
echo "built $image"
