#!/usr/bin/env bash
# Exits 0 when the node in this container is ready for requests. It asks /readyz over bash's own
# sockets: the image has no HTTP client.
set -euo pipefail

exec 3<>"/dev/tcp/127.0.0.1/${ENGRAM_HTTP_PORT:-7402}"
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r _ status _ <&3
[[ "$status" == 200 ]]
