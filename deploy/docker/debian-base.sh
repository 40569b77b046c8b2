#!/bin/sh
# Makes an image to build on, with Debian's Python 3.11, from Debian's packages alone, and prints its name with its digest. For machines that reach
# no registry; elsewhere python:3.12-slim by digest is the better BASE. Needs root, mmdebstrap, and podman or buildah.
#
#   BASE=$(deploy/docker/debian-base.sh) ENGINE=buildah make images
#
# MIRROR  of Debian                  default: that of the machine's apt
# NAME    of the image               default: localhost/triserve-debian-base
set -eu
MIRROR=${MIRROR-}
NAME=${NAME-localhost/triserve-debian-base}
for program in mmdebstrap buildah; do
  command -v "$program" >/dev/null || {
    echo "debian-base.sh: there is no $program" >&2
    exit 2
  }
done
root=$(mktemp)
trap 'rm -f "$root"' EXIT
# python3-venv brings ensurepip: the images have to get rid of it, as of python:3.12-slim's.
mmdebstrap --quiet --variant=minbase --format=tar --include=ca-certificates,python3,python3-pip,python3-venv \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  bookworm "$root" ${MIRROR:+"$MIRROR"} >&2
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >&2
buildah commit --quiet --rm "$container" "$NAME" >&2
digest=$(buildah inspect --type image --format '{{.FromImageDigest}}' "$NAME")
echo "$NAME@$digest"
