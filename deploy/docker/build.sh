#!/bin/sh
# Builds the images that deploy/k8s names, with docker, podman or buildah, whichever works.
#
#   BASE=python:3.12-slim@sha256:... deploy/docker/build.sh [NAME...]     names: gateway tokenizer sampler compute-cpu compute-cuda model-smollm2
#
# BASE    image to build on, with python3, venv and pip; by digest, so that the same source gives the same image
# ENGINE  program to build with                                              default: the first that works
# TAG     of the images, triserve-NAME:TAG                                   default: the version in pyproject.toml
# TORCH_INDEX  package index of the torch for compute-cpu or compute-cuda    default: pip's own
# BUILD_ARGS   more options for the program, such as --network=none
set -eu
cd "$(dirname "$0")/../.."

case "${BASE-}" in
  *@sha256:????????????????????????????????????????????????????????????????) ;;
  *)
    echo "build.sh: BASE must name an image by digest, such as python:3.12-slim@sha256:..., and is '${BASE-}'" >&2
    echo "          'docker buildx imagetools inspect python:3.12-slim' or 'skopeo inspect docker://python:3.12-slim' says which it is today" >&2
    exit 2
    ;;
esac

if [ -z "${ENGINE-}" ]; then
  for program in docker podman buildah; do
    # A docker without its daemon is there, and cannot build.
    if command -v "$program" >/dev/null 2>&1 && "$program" info >/dev/null 2>&1; then
      ENGINE=$program
      break
    fi
  done
fi
if [ -z "${ENGINE-}" ]; then
  echo "build.sh: neither docker nor podman nor buildah works here" >&2
  exit 2
fi

TAG=${TAG-$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)}
if [ $# -eq 0 ]; then
  set -- gateway tokenizer sampler compute-cpu model-smollm2
fi
for name in "$@"; do
  case "$name" in
    gateway | tokenizer | sampler)
      file=Dockerfile
      argument=SERVICE=$name
      ;;
    compute-cpu | compute-cuda)
      file=Dockerfile.$name
      argument=TORCH_INDEX=${TORCH_INDEX-}
      ;;
    model-smollm2)
      file=Dockerfile.$name
      argument=
      ;;
    *)
      echo "build.sh: there is no image $name" >&2
      exit 2
      ;;
  esac
  echo "$ENGINE builds triserve-$name:$TAG" >&2
  # Every build of all three programs is called `build`. BUILD_ARGS is split into words on purpose.
  # shellcheck disable=SC2086
  "$ENGINE" build --file "deploy/docker/$file" --build-arg "BASE=$BASE" ${argument:+--build-arg "$argument"} --tag "triserve-$name:$TAG" ${BUILD_ARGS-} .
done
