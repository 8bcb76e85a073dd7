#!/usr/bin/env bash
# Starts the compose cluster and uses it as its users would: writes through one node, reads through
# another, kills the container of one node, writes on, compares all replicas, takes it down.
#
#   TAG=latest deploy/try-compose.sh      the image engram:TAG must exist (make image)
set -euo pipefail
exec </dev/null
cd "$(dirname "$0")"

export TAG="${TAG:-latest}"
# A project of its own, so that a cluster someone is using is left alone.
project="engram-try-$$"
override="$(mktemp --suffix=.yaml)"
trap 'rm -f "$override"' EXIT
# A trial needs no port on the host.
sed '/^    ports:$/,/^$/{/^$/!d}' compose.yaml >"$override"

if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
else
  echo "try-compose: neither 'docker compose' nor docker-compose is here" >&2
  exit 1
fi
compose+=(-p "$project" --project-directory . -f "$override")

docker image inspect "engram:$TAG" >/dev/null 2>&1 || {
  echo "try-compose: there is no image engram:$TAG: run 'make image TAG=$TAG'" >&2
  exit 1
}

say() { printf '\n--> %s\n' "$*"; }

take_down() {
  local status=$?
  if [[ $status -ne 0 ]]; then
    say "FAILED: the state and the last lines of each service"
    "${compose[@]}" ps || true
    "${compose[@]}" logs --no-color --tail=40 || true
  fi
  "${compose[@]}" down --volumes --timeout 10 >/dev/null 2>&1 || true
  rm -f "$override"
  exit "$status"
}
trap take_down EXIT

# engram NODE ARGS...: the command, inside the container of that node, speaking to that node.
engram() {
  local node="$1"
  shift
  "${compose[@]}" exec -T "$node" engram "$@" \
    --endpoint "$node:7400" --token-file /material/admin.token
}

# remember NODE ID VECTOR CONTENT
remember() {
  printf '%s' "$3" | engram "$1" remember trial "$4" --id "$2" --vector-file /dev/stdin
}

three_members() {
  [[ "$(engram node1 cluster nodes --output json | grep -o '"id"' | wc -l)" -eq 3 ]]
}

# until_true SECONDS WHAT COMMAND...: repeats the command until it succeeds.
until_true() {
  local limit="$1" what="$2" began=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS - began >= limit)); then
      echo "try-compose: not within $limit s: $what" >&2
      "$@" || true
      return 1
    fi
    sleep 0.5
  done
  echo "$what: after $((SECONDS - began)) s"
}

healthy() {
  local id
  id="$("${compose[@]}" ps -q "$1")"
  [[ -n "$id" && "$(docker inspect --format '{{.State.Health.Status}}' "$id")" == healthy ]]
}

say "Starting three nodes"
"${compose[@]}" up -d
for node in node1 node2 node3; do
  until_true 120 "$node is healthy" healthy "$node"
done
until_true 60 "all three nodes are members" three_members

say "Without a token nothing is answered"
if "${compose[@]}" exec -T node1 engram cluster status --endpoint node1:7400; then
  echo "try-compose: a call without a token was answered" >&2
  exit 1
fi

say "Writing through node1, reading through node2"
engram node1 space create trial --dimension 4 --partitions 3 --replicas 3
for n in 1 2 3 4 5 6 7 8; do
  remember node1 "m$n" "[0.$n, 0.5, 0.1, 0.2]" "memory $n"
done
engram node1 associate trial m1 m2 --relation next
engram node2 get trial m1 | grep -q "memory 1"
engram node2 neighbors trial m1 | grep -q m2
engram node3 recall trial --like m1 --limit 3
engram node2 spread trial --seed m1 --hops 2 --explain

say "Killing node3, writing on"
docker kill "$("${compose[@]}" ps -q node3)" >/dev/null
until_true 60 "a write is taken again" \
  remember node1 after "[0.1, 0.2, 0.3, 0.4]" "after the kill"
engram node2 get trial after | grep -q "after the kill"

say "node3 comes back, and all replicas are equal"
"${compose[@]}" start node3
until_true 120 "node3 is healthy" healthy node3
until_true 120 "all replicas are equal" engram node1 verify trial
engram node3 get trial after | grep -q "after the kill"
engram node1 verify trial

say "The compose cluster works"
