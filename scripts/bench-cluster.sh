#!/usr/bin/env bash
# Starts nodes on free loopback ports in a temporary directory, loads WordNet through the
# cluster and measures it. Called by `make bench`.
#
#   ENGRAM_DATA=DIR   holds wordnet/ (memories.jsonl, embeddings.f16.npy, edges.jsonl, queries.*)
#   $1                directory with the binaries `engram`, `wordnet` and `spread_cluster`
#   $2                `wordnet` or `spread_cluster`
#   NODES=3           nodes to start
#   the rest          arguments of the benchmark
set -euo pipefail

binaries="$1" benchmark="$2"
shift 2
data="${ENGRAM_DATA:?set it to the directory that holds wordnet/}/wordnet"
work="$(mktemp -d)"
nodes=()
stop() {
  kill "${nodes[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT

address() { # NODE KIND: waits until the node has written where it listens
  local file="$work/$1/addresses.json"
  for _ in $(seq 600); do
    if [[ -s "$file" ]]; then
      python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$file" "$2"
      return
    fi
    sleep 0.1
  done
  echo "node $1 did not start: see its log" >&2
  tail -n 20 "$work/$1.log" >&2
  return 1
}

start() { # NODE [JOIN]
  "$binaries/engram" start --data-dir "$work/$1" --listen 127.0.0.1:0 --peer-listen 127.0.0.1:0 \
    --http-listen 127.0.0.1:0 ${2:+--join "$2"} >"$work/$1.log" 2>&1 &
  nodes+=("$!")
}

start 1
peer="$(address 1 peer)"
for node in $(seq 2 "${NODES:-3}"); do start "$node" "$peer"; done
list() { # KIND: the addresses of all nodes
  local all=()
  for node in $(seq "${NODES:-3}"); do all+=("$(address "$node" "$1")"); done
  (IFS=,; echo "${all[*]}")
}
case "$benchmark" in
  wordnet) "$binaries/wordnet" --endpoints "$(list client)" --data "$data" "$@" ;;
  spread_cluster) "$binaries/spread_cluster" --endpoints "$(list client)" --http "$(list http)" --data "$data" "$@" ;;
  *) echo "no such benchmark: $benchmark" >&2; exit 2 ;;
esac
