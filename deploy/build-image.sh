#!/usr/bin/env bash
# Builds the container image engram:TAG from a binary.
#
#   deploy/build-image.sh --binary target/release/engram [--tag latest]
#
# BASE chooses the base image. When it is not set and Debian's slim image cannot be had, an
# equivalent one is made from Debian's packages (deploy/make-base.sh).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

binary="" tag=latest
while [[ $# -gt 0 ]]; do
  case "$1" in
    --binary) binary="$2" ;;
    --tag) tag="$2" ;;
    *) echo "build-image: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
[[ -x "$binary" ]] || { echo "build-image: --binary names no program: '$binary'" >&2; exit 2; }
docker version >/dev/null 2>&1 || { echo "build-image: no Docker engine answers" >&2; exit 1; }

base="${BASE:-debian:bookworm-slim}"
if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 120s docker pull -q "$base" 2>/dev/null; then
  [[ -z "${BASE:-}" ]] || { echo "build-image: the base image $base cannot be had" >&2; exit 1; }
  echo "build-image: $base cannot be pulled here: making an equivalent base"
  base=engram-base:bookworm
  "$here/make-base.sh" "$base"
fi

context="$(mktemp -d)"
trap 'rm -rf "$context"' EXIT
install -m 0755 "$here/healthcheck.sh" "$context/healthcheck.sh"
# Line tables of a development build would be most of the image.
strip --strip-debug -o "$context/engram" "$binary"
chmod 0755 "$context/engram"
docker build -q --build-arg "BASE=$base" -t "engram:$tag" -f "$here/Dockerfile" "$context" >/dev/null
echo "build-image: made engram:$tag on $base"
