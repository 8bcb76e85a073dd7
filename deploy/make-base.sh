#!/usr/bin/env bash
# Makes a slim Debian base image from Debian's packages, for machines that can reach a package
# mirror but no container registry.
#
#   deploy/make-base.sh [NAME]     default: engram-base:bookworm
#
# It uses this machine's own apt sources, and installs mmdebstrap if it is missing (root or sudo).
set -euo pipefail

name="${1:-engram-base:bookworm}"
suite=bookworm

if docker image inspect "$name" >/dev/null 2>&1; then
  echo "make-base: $name is there already"
  exit 0
fi

as_root=()
if [[ "$(id -u)" -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "make-base: run it as root: there is no sudo" >&2; exit 1; }
  as_root=(sudo)
fi
if ! command -v mmdebstrap >/dev/null; then
  echo "make-base: installing mmdebstrap, which assembles a Debian root from packages"
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" apt-get install -q -y --no-install-recommends mmdebstrap
fi

# Whatever this machine installs packages from; mmdebstrap reads both forms.
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
  if [[ -s "$file" ]]; then sources+=("$file"); fi
done
[[ ${#sources[@]} -gt 0 ]] || { echo "make-base: this machine has no apt sources" >&2; exit 1; }

root="$(mktemp --suffix=.tar)"
trap 'rm -f "$root"' EXIT
echo "make-base: assembling a minimal Debian ($suite)"
# Documentation and translations are what the official slim image leaves out, too.
"${as_root[@]}" mmdebstrap --quiet --variant=minbase --include=ca-certificates \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/info/*' \
  --customize-hook='rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/resolv.conf "$1"/etc/hostname' \
  "$suite" "$root" "${sources[@]}"
docker import --change 'CMD ["bash"]' "$root" "$name" >/dev/null
echo "make-base: made $name, $(docker image inspect --format '{{.Size}}' "$name" | numfmt --to=iec) unpacked"
