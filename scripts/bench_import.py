#!/usr/bin/env python3
"""A graph without embeddings from JSONL on disk into one node, through `engram import`.

Writes the graph (an R-MAT one, made from a seed), starts a node with one partition on a directory of its
own, imports, asks for the first spread and stops it. Writes docs/benchmarks/import.{md,json}.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import tempfile
import time


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit(f"{what}: not within {seconds} s")


def status(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metric(address, name):
    import urllib.request

    text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)]
    return sum(values)


class Node:
    def __init__(self, engram, directory):
        self.directory = directory
        log = open(directory / "node.log", "w")
        command = [engram, "start", "--data-dir", directory / "data"]
        for port in ("--listen", "--peer-listen", "--http-listen"):
            command += [port, "127.0.0.1:0"]
        self.process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        file = directory / "data" / "addresses.json"
        read = lambda: file.exists() and file.stat().st_size and json.loads(file.read_text())
        self.addresses = wait_for(read, 60, "the node's start")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def measure(binaries, lines, memories, edges, work):
    data = work / "lines"
    command = [lines, "--out", data, "--memories", memories, "--edges", edges]
    subprocess.run([str(word) for word in command], check=True)
    node = Node(binaries / "engram", work)
    try:
        engram = lambda *words: json.loads(
            subprocess.run(
                [str(word) for word in (binaries / "engram", *words, "--output", "json", "--endpoint", node.addresses["client"])],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ).stdout
        )
        began = time.perf_counter()
        done = engram(
            "import", "bulk", "--create", "--dimension", 1, "--partitions", 1, "--replicas", 1,
            "--memories", data / "memories.jsonl", "--edges", data / "edges.jsonl",
        )
        took = time.perf_counter() - began
        after_import = processor_seconds(node.process.pid)
        peak = status(node.process.pid, "VmHWM")
        assert done["memories"] == memories and done["edges"] == edges, done
        with open(data / "edges.jsonl") as file:
            seed = json.loads(file.readline())["from"]
        http = node.addresses["http"]
        began = time.perf_counter()
        engram("spread", "bulk", "--seed", seed)
        first = time.perf_counter() - began
        wait_for(lambda: metric(http, "engram_graph_bytes"), 1_800, "the arrays")
        ready = time.perf_counter() - began
        return {
            "memories": memories,
            "edges": edges,
            "lines_bytes": sum((data / name).stat().st_size for name in ("memories.jsonl", "edges.jsonl")),
            "seconds": took,
            "per_second": (memories + edges) / took,
            "memories_per_second": memories / done["memories_seconds"],
            "edges_per_second": edges / done["edges_seconds"],
            "node_processor_seconds": after_import,
            "node_peak_bytes": peak,
            "first_spread_seconds": first,
            "arrays_after_seconds": ready,
            "arrays_bytes": metric(http, "engram_graph_bytes"),
            "node_peak_with_arrays_bytes": status(node.process.pid, "VmHWM"),
            "disk_bytes": sum(file.stat().st_size for file in (work / "data").rglob("*") if file.is_file()),
        }
    finally:
        node.stop()


def text(about, results):
    out = [
        "# Import of a graph without embeddings",
        "",
        "Made by `make bench-import`; do not edit. One node, one partition, one replica, one client; JSONL on disk to",
        "acknowledged, each batch after an fsync. The processor time is the node's, the client has its own.",
        "",
        about,
        "",
        "| memories + associations | per second | memories / s | associations / s | node's processor time per item | node's memory, peak |"
        " arrays, bytes an association | arrays after the first spread | disk |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        items = one["memories"] + one["edges"]
        out.append(
            f"| {one['memories']:,} + {one['edges']:,} | {one['per_second']:,.0f} | {one['memories_per_second']:,.0f}"
            f" | {one['edges_per_second']:,.0f} | {one['node_processor_seconds'] / items * 1e6:.1f} us"
            f" | {one['node_peak_bytes'] / 1e9:.2f} GB, {one['node_peak_with_arrays_bytes'] / 1e9:.2f} GB with the arrays"
            f" | {one['arrays_bytes'] / one['edges']:.1f} | {one['arrays_after_seconds']:.1f} s | {one['disk_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binaries", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/benchmarks"))
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=5_000_000)
    args = parser.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="engram-import-"))
    try:
        result = measure(args.binaries, args.binaries / "graph_lines", args.memories, args.edges, work)
    finally:
        shutil.rmtree(work)
    about = (
        f"{datetime.date.today().isoformat()}, {os.cpu_count()} processors ({platform.machine()}) for node and client,"
        f" load {os.getloadavg()[0]:.1f} at the end."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "import.md").write_text(text(about, [result]))
    (args.out / "import.json").write_text(json.dumps({"about": about, "results": [result]}, indent=1) + "\n")
    print(args.out / "import.md")


if __name__ == "__main__":
    main()
