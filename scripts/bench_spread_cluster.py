#!/usr/bin/env python3
"""Spreads through three nodes on loopback, and through one, beside an empty call in the same run.

Writes docs/benchmarks/spread-cluster.{md,json,svg}. ENGRAM_DATA holds wordnet/.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent


def run(binaries, nodes, arguments):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [HERE / "bench-cluster.sh", binaries, "spread_cluster", "--json", out.name]
        command += ["--partitions", nodes, "--replicas", nodes, *arguments]
        environment = {**os.environ, "NODES": str(nodes)}
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, env=environment)
        return json.loads(pathlib.Path(out.name).read_text())


def drawing(results):
    bars = []
    for name, result in results.items():
        bars.append((f"{name}: empty call", result["empty_call"]))
        bars += [(f"{name}: {kind['name']}", kind["latency"]) for kind in result["kinds"]]
    most = max(latency["p99_ms"] for _, latency in bars)
    left, width, step = 330, 460, 26
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 120}" height="{36 + step * len(bars)}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="18" font-size="14">p50 (dark) and p99 (light), ms</text>',
    ]
    for index, (name, latency) in enumerate(bars):
        y = 28 + step * index
        for value, colour in ((latency["p99_ms"], "#a9d6e5"), (latency["p50_ms"], "#2a6f97")):
            out.append(
                f'<rect x="{left}" y="{y}" width="{max(width * value / most, 1):.1f}" height="{step - 8}" fill="{colour}"/>'
            )
        x = left + width * latency["p99_ms"] / most
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>')
        out.append(f'<text x="{x + 6:.1f}" y="{y + 13}">{latency["p50_ms"]:.2f}, {latency["p99_ms"]:.2f}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def table(name, result):
    nodes, empty = result["nodes"], result["empty_call"]["p50_ms"]
    frames = result["hops"] * nodes * (nodes - 1)
    lines = [
        f"## {name}: {result['partitions']} partition(s) x {result['replicas']} replica(s)",
        "",
        f"WordNet: {result['memories']:,} memories, {result['edges']:,} associations; {result['hops']} hops."
        f" {result['crossing_share'] * 100:.1f} % of the associations join two partitions."
        f" A frame for each hop and ordered pair of nodes would be {frames}.",
        "",
        "| what | p50 | p90 | p99 | p50, empty call = 1 | messages | bytes | steps of a node |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| empty call | {empty:.3f} ms | {result['empty_call']['p90_ms']:.3f} ms | {result['empty_call']['p99_ms']:.3f} ms | 1 | | | |",
    ]
    for kind in result["kinds"]:
        latency = kind["latency"]
        lines.append(
            f"| {kind['name']}, {kind['activated_mean']:.0f} activated | {latency['p50_ms']:.3f} ms | {latency['p90_ms']:.3f} ms"
            f" | {latency['p99_ms']:.3f} ms | {latency['p50_ms'] / empty:.1f} | {kind['sent_messages']:.1f}"
            f" | {kind['sent_bytes']:,.0f} | {kind['steps_of_a_node']:.1f} |"
        )
    concurrent = result["concurrent"]
    lines += [
        "",
        f"{result['concurrency']} clients at once, exact, linearizable: {result['spreads_per_second']:,.0f} spreads a"
        f" second, p50 {concurrent['p50_ms']:.2f} ms, p99 {concurrent['p99_ms']:.2f} ms.",
        "",
    ]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binaries", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/benchmarks"))
    parser.add_argument("--nodes", default="3,1")
    args, rest = parser.parse_known_args()
    results = {}
    for nodes in map(int, args.nodes.split(",")):
        results[f"{nodes} node(s)"] = run(args.binaries, nodes, rest)
        if nodes > 1:
            placed = f"{nodes} node(s), colocated"
            results[placed] = run(args.binaries, nodes, ["--colocate", *rest])
    about = (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} processors ({platform.machine()}) for all nodes and"
        f" the client, load {os.getloadavg()[0]:.1f} at the end."
    )
    lines = [
        "# Spreads through a cluster",
        "",
        "Made by `make bench-spread-cluster`; do not edit. The empty call is `ListSpaces`, answered from memory. Messages",
        "and bytes are what all nodes together send for a query besides its starts: frames or pushes, and reports.",
        "",
        about,
        "",
        "![latencies](spread-cluster.svg)",
        "",
    ]
    for name, result in results.items():
        lines += table(name, result)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "spread-cluster.md").write_text("\n".join(lines))
    (args.out / "spread-cluster.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    (args.out / "spread-cluster.svg").write_text(drawing(results))
    print(args.out / "spread-cluster.md")


if __name__ == "__main__":
    main()
