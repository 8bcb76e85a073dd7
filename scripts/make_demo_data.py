#!/usr/bin/env python3
"""Draws the sample of WordNet that ships with `engram demo`.

    scripts/make_demo_data.py --wordnet DIR --out engram-node/assets/wordnet [--count 4000]

DIR holds memories.jsonl, embeddings.f16.npy, edges.jsonl and README.md (whose last quoted block is
WordNet's licence; it may also lie one directory up). The same input gives the same bytes: nothing
here depends on a clock, a random number or the order of a hash.

How the sample is chosen. Half of it is breadth-first from a few well-known words, taking turns
among them, so that their surroundings are there whole. The other half is whatever has most
relations to what was chosen already, so that the sample is dense and activation can travel far.
What is not connected to the largest part is left out. Of the relations, those with both ends
inside are kept.
"""

import argparse
import ast
import collections
import heapq
import json
import pathlib
import struct
import sys

# Word senses that the sample grows from: words that anyone can judge the answers for.
ROOTS = [
    "music.n.07020895",
    "river.n.09411430",
    "ocean.n.09376198",
    "house.n.03544360",
    "city.n.08226335",
    "think.v.00629756",
    "write.v.01698289",
    "eat.v.01168486",
    "run.v.01926329",
    "breathe.v.00001740",
]
# Relations followed per memory in the breadth-first half: a hub must not fill it alone.
FAN = 24
MAGIC = b"\x93NUMPY"


def fail(message):
    sys.exit(f"make_demo_data: {message}")


def read_lines(path):
    if not path.is_file():
        fail(f"{path} is missing; --wordnet names the directory that holds it")
    # Not splitlines(): it also splits at separators that a JSON string may hold.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def read_rows(path, count):
    """The rows of a little-endian float16 .npy of `count` rows, as bytes, and their length."""
    raw = path.read_bytes()
    if raw[:6] != MAGIC or raw[6] != 1:
        fail(f"{path} is not an .npy file of version 1")
    (length,) = struct.unpack("<H", raw[8:10])
    header = ast.literal_eval(raw[10 : 10 + length].decode("latin1"))
    rows, dimension = header["shape"]
    if header["descr"] != "<f2" or header["fortran_order"] or rows != count:
        fail(f"{path} is not float16 [{count}, n] in C order: {header}")
    body = memoryview(raw)[10 + length :]
    if len(body) != rows * dimension * 2:
        fail(f"{path} is cut short")
    width = dimension * 2
    return [body[i * width : (i + 1) * width] for i in range(rows)], dimension


def write_rows(path, rows, dimension):
    header = repr({"descr": "<f2", "fortran_order": False, "shape": (len(rows), dimension)})
    # The format wants the data to start at a multiple of 64 and the header to end with a newline.
    padding = -(10 + len(header) + 1) % 64
    header = header + " " * padding + "\n"
    with path.open("wb") as out:
        out.write(MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header.encode("latin1"))
        for row in rows:
            out.write(row)


def breadth_first(neighbours, roots, limit):
    """Indices in order of discovery, the roots taking turns."""
    seen = set(roots)
    queues = [collections.deque([root]) for root in roots]
    chosen = []
    while any(queues) and len(chosen) < limit:
        for queue in queues:
            if not queue or len(chosen) == limit:
                continue
            node = queue.popleft()
            chosen.append(node)
            fresh = [n for n in neighbours[node] if n not in seen][:FAN]
            seen.update(fresh)
            queue.extend(fresh)
    return chosen


def densest(neighbours, chosen, limit):
    """Adds, one at a time, the one with most relations into what is chosen; ties: lowest index."""
    inside = set(chosen)
    links = collections.Counter()
    heap = []

    def offer(node):
        for neighbour in neighbours[node]:
            if neighbour not in inside:
                links[neighbour] += 1
                heapq.heappush(heap, (-links[neighbour], neighbour))

    for node in chosen:
        offer(node)
    while heap and len(inside) < limit:
        count, node = heapq.heappop(heap)
        if node in inside or -count != links[node]:
            continue
        inside.add(node)
        offer(node)
    return inside


def largest_component(neighbours, inside):
    left, best = set(inside), set()
    for start in sorted(inside):
        if start not in left:
            continue
        part, stack = {start}, [start]
        while stack:
            for neighbour in neighbours[stack.pop()]:
                if neighbour in inside and neighbour not in part:
                    part.add(neighbour)
                    stack.append(neighbour)
        left -= part
        if len(part) > len(best):
            best = part
    return best


def licence(directory):
    """The quoted notice in the data's README, whole."""
    for readme in (directory / "README.md", directory.parent / "README.md"):
        if readme.is_file():
            lines = readme.read_text(encoding="utf-8").splitlines()
            notice = [line[1:].strip() for line in lines if line.startswith(">")]
            if any("Princeton University" in line for line in notice):
                return "\n".join(notice) + "\n"
    fail(f"no README.md with WordNet's licence in {directory} or above it")


def main():
    parser = argparse.ArgumentParser(description="Draws the sample of WordNet for engram demo.")
    parser.add_argument("--wordnet", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=4000, help="memories (default 4000)")
    options = parser.parse_args()

    memory_lines = read_lines(options.wordnet / "memories.jsonl")
    ids = [json.loads(line)["id"] for line in memory_lines]
    place = {identity: index for index, identity in enumerate(ids)}
    rows, dimension = read_rows(options.wordnet / "embeddings.f16.npy", len(ids))
    edge_lines = read_lines(options.wordnet / "edges.jsonl")
    ends = []
    neighbours = [{} for _ in ids]
    for line in edge_lines:
        edge = json.loads(line)
        source, target = place[edge["from"]], place[edge["to"]]
        ends.append((source, target))
        for one, other in ((source, target), (target, source)):
            neighbours[one][other] = max(edge["weight"], neighbours[one].get(other, 0.0))
    # Strongest first, then in the order of the file.
    ordered = [sorted(n, key=lambda other, n=n: (-n[other], other)) for n in neighbours]

    missing = [root for root in ROOTS if root not in place]
    if missing:
        fail(f"not in this WordNet: {', '.join(missing)}")
    start = breadth_first(ordered, [place[root] for root in ROOTS], options.count // 2)
    inside = largest_component(ordered, densest(ordered, start, options.count))
    kept = sorted(inside)
    edges = [line for line, (a, b) in zip(edge_lines, ends) if a in inside and b in inside]

    notice = licence(options.wordnet)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {
        "LICENSE": notice,
        "memories.jsonl": "".join(memory_lines[i] + "\n" for i in kept),
        "edges.jsonl": "".join(line + "\n" for line in edges),
    }
    for name, text in files.items():
        (options.out / name).write_text(text, encoding="utf-8")
    write_rows(options.out / "embeddings.f16.npy", [rows[i] for i in kept], dimension)
    size = sum(f.stat().st_size for f in options.out.iterdir())
    print(f"{len(kept)} memories, {len(edges)} relations, {size / 1e6:.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
