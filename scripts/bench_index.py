#!/usr/bin/env python3
"""Engram's vector index beside hnswlib, usearch, faiss and hnsw_rs: `make bench-index`.

Each index lives in a process of its own (a worker) and does only what it is told, so that all take turns
on the same data, in rounds, and none is measured while another works. Rates are queries per second of
processor time of one thread; the median of the rounds. Writes a JSON file, a table and a plot.

    bench_index.py run --engram BINARY [--hnsw-rs BINARY] --data DIR --out DIR [--only NAME,...]
    bench_index.py extra --engram BINARY --data DIR --out DIR     searches beside work; opening
    bench_index.py report --out DIR                               table and plots from what was measured

`--data` is a directory that holds wordnet/ (real, 384 dimensions). `--set synthetic` makes clusters of 768
dimensions from a seed instead and needs no data. hnswlib, usearch, faiss-cpu and numpy come from PyPI.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

M = 16
EF_CONSTRUCTION = 200
LIMIT = 10
PASSES_SECONDS = 0.4
EFFORTS = [16, 24, 32, 48, 64, 96, 128, 192, 256]
SYNTHETIC_ROWS = 40_000
SYNTHETIC_DIMENSION = 768
CLUSTERS = 400
SEED = 20_261_126

PEERS = ["hnswlib", "usearch", "faiss", "faiss-sq8", "hnsw_rs"]
SUBJECTS = ["engram", "engram-int8", *PEERS]


# --- data ---------------------------------------------------------------------------------------


def unit(rows):
    import numpy as np

    rows = rows.astype(np.float32)
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def real(data):
    import numpy as np

    directory = pathlib.Path(data)
    if (directory / "wordnet").is_dir():
        directory = directory / "wordnet"
    return unit(np.load(directory / "embeddings.f16.npy")), unit(np.load(directory / "queries.f16.npy"))


def synthetic():
    """Clusters whose sizes follow a power law, with a spectrum that decays."""
    import numpy as np

    random = np.random.default_rng(SEED)
    sizes = 1.0 / np.arange(1, CLUSTERS + 1)
    spectrum = (1.0 / np.arange(1, SYNTHETIC_DIMENSION + 1) ** 0.5).astype(np.float32)
    count = SYNTHETIC_ROWS + 1_000
    centres = random.standard_normal((CLUSTERS, SYNTHETIC_DIMENSION), dtype=np.float32) * spectrum
    cluster = random.choice(CLUSTERS, size=count, p=sizes / sizes.sum())
    noise = random.standard_normal((count, SYNTHETIC_DIMENSION), dtype=np.float32) * spectrum
    rows = unit(centres[cluster] + noise)
    return rows[:SYNTHETIC_ROWS], rows[SYNTHETIC_ROWS:]


def exact(base, queries):
    import numpy as np

    nearest = []
    for start in range(0, len(queries), 250):
        scores = queries[start : start + 250] @ base.T
        part = np.argpartition(-scores, LIMIT, axis=1)[:, :LIMIT]
        nearest.append(part)
    return np.concatenate(nearest)


def recall(ids, truth):
    found = sum(len(set(row) & set(near)) for row, near in zip(ids, truth.tolist()))
    return found / (len(truth) * LIMIT)


# --- workers of peers ---------------------------------------------------------------------------


class Hnswlib:
    def build(self, base, threads):
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=base.shape[1])
        self.index.init_index(max_elements=len(base), M=M, ef_construction=EF_CONSTRUCTION, random_seed=7)
        self.index.set_num_threads(threads)
        self.index.add_items(base, num_threads=threads)

    def search(self, queries, effort):
        self.index.set_ef(effort)
        return self.index.knn_query(queries, k=LIMIT, num_threads=1)[0]

    def save(self, path):
        self.index.save_index(path)


class Usearch:
    def build(self, base, threads):
        import numpy as np
        from usearch.index import Index

        self.index = Index(
            ndim=base.shape[1], metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )
        self.index.add(np.arange(len(base), dtype=np.uint64), base, threads=threads)

    def search(self, queries, effort):
        self.index.expansion_search = effort
        keys = self.index.search(queries, LIMIT, threads=1).keys
        return keys if keys.ndim == 2 else keys[None, :]

    def save(self, path):
        self.index.save(path)


class Faiss:
    codes = False

    def build(self, base, threads):
        import faiss

        faiss.omp_set_num_threads(threads)
        dimension = base.shape[1]
        if self.codes:
            kind = faiss.ScalarQuantizer.QT_8bit
            self.index = faiss.IndexHNSWSQ(dimension, kind, M, faiss.METRIC_INNER_PRODUCT)
        else:
            self.index = faiss.IndexHNSWFlat(dimension, M, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = EF_CONSTRUCTION
        if self.codes:
            self.index.train(base)
        self.index.add(base)
        faiss.omp_set_num_threads(1)

    def search(self, queries, effort):
        self.index.hnsw.efSearch = effort
        return self.index.search(queries, LIMIT)[1]

    def save(self, path):
        import faiss

        faiss.write_index(self.index, path)


class FaissSq8(Faiss):
    codes = True


CLASSES = {"hnswlib": Hnswlib, "usearch": Usearch, "faiss": Faiss, "faiss-sq8": FaissSq8}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(name, base, queries, dimension):
    """Answers as `engram_benches::worker` does."""
    import numpy as np

    base = np.fromfile(base, dtype=np.float32).reshape(-1, dimension)
    queries = np.fromfile(queries, dtype=np.float32).reshape(-1, dimension)
    subject = CLASSES[name]()
    for line in sys.stdin:
        request = json.loads(line)
        effort, verb = request.get("effort"), request["do"]
        if verb == "build":
            before = resident()
            wall, cpu = time.perf_counter(), time.process_time()
            subject.build(base, request["threads"])
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            answer["resident"] = max(0, resident() - before)
            with tempfile.TemporaryDirectory() as directory:
                path = os.path.join(directory, "index")
                subject.save(path)
                answer["bytes"] = os.path.getsize(path)
        elif verb == "search":
            wall, cpu, passes = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - wall < PASSES_SECONDS:
                subject.search(queries, effort)
                passes += 1
            answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            answer = {what: seconds / passes for what, seconds in answer.items()}
        elif verb == "answers":
            answer = {"ids": np.asarray(subject.search(queries, effort)).tolist()}
        elif verb == "latency":
            micros = []
            for row in range(len(queries)):
                query = queries[row : row + 1]
                began = time.perf_counter()
                subject.search(query, effort)
                micros.append((time.perf_counter() - began) * 1e6)
            answer = {"micros": micros}
        else:
            raise SystemExit(f"unknown request {request}")
        print(json.dumps(answer), flush=True)


class Worker:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, verb, **fields):
        self.process.stdin.write(json.dumps({"do": verb, **fields}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {self.process.args}")
        return json.loads(line)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


# --- the run ------------------------------------------------------------------------------------


def prepare(args, directory):
    base, queries = synthetic() if args.set == "synthetic" else real(args.data)
    if args.rows:
        base = base[: args.rows]
    paths = []
    for name, rows in (("base", base), ("queries", queries)):
        paths.append(os.path.join(directory, name))
        rows.tofile(paths[-1])
    return base, queries, paths


def command(name, args, paths, dimension):
    flags = ["--base", paths[0], "--queries", paths[1], "--dimension", str(dimension)]
    if name == "engram":
        return [args.engram, *flags]
    if name == "engram-int8":
        return [args.engram, *flags, "--quantization", "int8"]
    if name == "hnsw_rs":
        return [args.hnsw_rs, *paths, str(dimension)]
    return [sys.executable, __file__, "work", name, *paths, str(dimension)]


def say(text):
    print(text, file=sys.stderr, flush=True)


def conditions():
    model = ""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def versions():
    import importlib.metadata as metadata

    names = {"hnswlib": "hnswlib", "usearch": "usearch", "faiss": "faiss-cpu"}
    return {name: metadata.version(package) for name, package in names.items()}


def run(args):
    names = args.only.split(",") if args.only else SUBJECTS
    if not args.hnsw_rs:
        names = [name for name in names if name != "hnsw_rs"]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    efforts = [int(effort) for effort in args.efforts.split(",")] if args.efforts else EFFORTS
    with tempfile.TemporaryDirectory() as directory:
        base, queries, paths = prepare(args, directory)
        truth = exact(base, queries)
        workers = {name: Worker(command(name, args, paths, base.shape[1])) for name in names}
        result = {
            "set": args.set,
            "rows": len(base),
            "dimension": base.shape[1],
            "queries": len(queries),
            "conditions": conditions(),
            "versions": versions(),
            "indexes": {name: {"builds": {}, "points": []} for name in names},
        }
        for threads in [int(count) for count in args.threads.split(",")]:
            for turn in range(args.builds):
                for name, worker in workers.items():
                    if name in args.build_once.split(",") and turn > 0:
                        continue
                    built = worker.ask("build", threads=threads)
                    result["indexes"][name]["builds"].setdefault(str(threads), []).append(built)
                    say(f"{name}: built with {threads} threads in {built['wall']:.1f} s, cpu {built['cpu']:.1f} s")
        for effort in efforts:
            times = {name: [] for name in names}
            for _ in range(args.rounds):
                for name, worker in workers.items():
                    times[name].append(worker.ask("search", effort=effort))
            for name, worker in workers.items():
                micros = sorted(worker.ask("latency", effort=effort)["micros"])
                point = {
                    "effort": effort,
                    "recall": recall(worker.ask("answers", effort=effort)["ids"], truth),
                    "qps": len(queries) / statistics.median(spent["cpu"] for spent in times[name]),
                    "qps_wall": len(queries) / statistics.median(spent["wall"] for spent in times[name]),
                    "p50": micros[len(micros) // 2],
                    "p99": micros[len(micros) * 99 // 100],
                }
                result["indexes"][name]["points"].append(point)
                say(f"effort {effort}: {name}: recall {point['recall']:.4f}, {point['qps']:.0f} qps, "
                    f"p50 {point['p50']:.0f}, p99 {point['p99']:.0f}")
        for worker in workers.values():
            worker.stop()
    path = out / f"index-{args.name or args.set}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def extra(args):
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        base, queries, paths = prepare(args, directory)
        path = out / "index-extra.json"
        result = json.loads(path.read_text()) if path.exists() else {}
        for verb in args.what.split(","):
            worker = Worker(command("engram", args, paths, base.shape[1]))
            at = {"set": args.set, "rows": len(base), "dimension": base.shape[1], "conditions": conditions()}
            result[verb] = {**worker.ask(verb), **at}
            worker.stop()
            print(verb, json.dumps(result[verb], indent=1))
        path.write_text(json.dumps(result, indent=1) + "\n")


# --- the report ---------------------------------------------------------------------------------


def at_recall(points, wanted):
    """QPS where the curve crosses a recall, interpolated between the logarithms of two neighbours; none
    when it does not get there."""
    import math

    points = sorted(points, key=lambda point: point["effort"])
    for before, after in zip([None, *points], points):
        if after["recall"] < wanted:
            continue
        if before is None or after["recall"] == before["recall"]:
            return after["qps"]
        share = (wanted - before["recall"]) / (after["recall"] - before["recall"])
        return math.exp((1 - share) * math.log(before["qps"]) + share * math.log(after["qps"]))
    return None


def fastest(builds, threads, what):
    runs = builds.get(str(threads), [])
    return min(run[what] for run in runs) if runs else None


def both(builds, threads):
    return f"{cell(fastest(builds, threads, 'wall'))}, {cell(fastest(builds, threads, 'cpu'))}"


def cell(value, form="{:.1f}"):
    return "-" if value is None else form.format(value)


def table(result):
    lines = [
        "| index | build, 1 thread: wall, processor (s) | build, 2 threads: wall, processor (s) | QPS at recall .95 | QPS at recall .99 | at effort 64: recall, QPS, p50 / p99 (µs) | bytes a vector |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, index in result["indexes"].items():
        builds, points = index["builds"], index["points"]
        last = [runs[-1] for runs in builds.values()]
        size = next((built.get("walked") or built.get("bytes") for built in last if built.get("bytes")), None)
        if size is None:
            size = max((built["resident"] for built in last if built.get("resident")), default=None)
        middle = next((point for point in points if point["effort"] == 64), None)
        lines.append(
            f"| {name} | {both(builds, 1)} | {both(builds, 2)} "
            f"| {cell(at_recall(points, 0.95), '{:,.0f}')} | {cell(at_recall(points, 0.99), '{:,.0f}')} | "
            + (f"{middle['recall']:.4f}, {middle['qps']:,.0f}, {middle['p50']:.0f} / {middle['p99']:.0f}" if middle else "-")
            + f" | {cell(size and size / result['rows'], '{:,.0f}')} |"
        )
    return "\n".join(lines)


COLOURS = ["#0b6e4f", "#6bbf59", "#c1121f", "#f4a261", "#1d3557", "#457b9d", "#7b2cbf"]


def plot(result):
    """Recall against queries per second, as SVG: up and to the right is better."""
    import math

    width, height, left, top, right, bottom = 860, 520, 70, 40, 170, 50
    curves = {
        name: sorted((point["recall"], point["qps"]) for point in index["points"])
        for name, index in result["indexes"].items()
    }
    rates = [qps for curve in curves.values() for _, qps in curve]
    low, high = math.log10(min(rates)) - 0.05, math.log10(max(rates)) + 0.05

    def x(value):
        # Each nine takes the same room.
        nines = -math.log10(max(1 - value, 10**-3.5))
        return left + (nines - 0.6) / (3.5 - 0.6) * (width - left - right)

    def y(qps):
        return height - bottom - (math.log10(qps) - low) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" font-size="15">{result["set"]}: {result["rows"]:,} vectors of '
        f'{result["dimension"]}; recall@10 against queries per second of one thread</text>',
    ]
    for value in (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999):
        parts.append(f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{height - bottom + 18}" text-anchor="middle">{value}</text>')
    for step in range(int(low * 10), int(high * 10) + 1):
        for mark in (1, 2, 5):
            rate = mark * 10 ** (step // 10)
            if step % 10 == 0 and low <= math.log10(rate) <= high:
                parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#ddd"/>')
                parts.append(f'<text x="{left - 6}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:,}</text>')
    for place, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[place % len(COLOURS)]
        line = " ".join(f"{x(value):.1f},{y(qps):.1f}" for value, qps in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(value):.1f}" cy="{y(qps):.1f}" r="3" fill="{colour}"/>' for value, qps in curve]
        row = top + 14 + place * 20
        parts.append(f'<rect x="{width - right + 14}" y="{row - 9}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 32}" y="{row + 2}">{name}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def beside(result):
    """Searches on one core while the other works."""
    lines = ["| while the other core | searches | p50 µs | p99 µs | p99 beside idle |", "| --- | --- | --- | --- | --- |"]
    phases = {"idle": "idles", "linking": "inserts and links windows", "rebuilding": "rebuilds a generation", "after": "idles again"}
    for phase, what in phases.items():
        times = result[phase]
        share = times["p99"] / result["idle"]["p99"]
        lines.append(f"| {what} | {times['searches']:,} | {times['p50']:.0f} | {times['p99']:.0f} | {share:.2f} |")
    writes = result["writes"]
    return [
        *lines,
        "",
        f"Search effort {result['effort']}. An insert took p50 {writes['p50']:.1f}, p99 {writes['p99']:.1f}, p999 "
        f"{writes['p999']:.1f} µs while windows were linked. The command that began the generation held its writer up for "
        f"{result['generation_begins_micros'] / 1e3:.1f} ms; the generation was linked in "
        f"{result['generation_seconds']:.1f} s by one thread.",
    ]


def opening(result):
    """Opening from saved links, against linking anew."""
    loads = result["open_seconds"]
    load, anew = statistics.median(loads), result["rebuild_seconds"]
    return [
        f"{result['memories']:,} memories, a snapshot of {result['snapshot_bytes'] / 2**20:.1f} MiB saved in "
        f"{result['save_seconds']:.2f} s: opened in {load:.2f} s (median of {len(loads)}), linked anew by one thread in "
        f"{anew:.1f} s, {anew / load:.0f} times as long. Vectors come from memory in both.",
    ]


def report_extra(path, result):
    titles = {"beside": ("Searches beside other work", beside), "open": ("Opening", opening)}
    text = ["# Engram's index beside work, and opened"]
    for verb, (title, show) in titles.items():
        if verb in result:
            at = result[verb]["conditions"]
            text += ["", f"## {title}", ""]
            text += [f"{result[verb]['set']} ({result[verb]['dimension']} dimensions), {at['date']}, {at['cpu']}, {at['cores']} cores, "
                     f"load {at['load']:.1f} before the run.", ""]
            text += show(result[verb])
    path.with_suffix(".md").write_text("\n".join(text) + "\n")
    print(path.with_suffix(".md"))


def report(args):
    out = pathlib.Path(args.out)
    for path in sorted(out.glob("index-*.json")):
        result = json.loads(path.read_text())
        if "indexes" not in result:
            report_extra(path, result)
            continue
        conditions_, versions_ = result["conditions"], result["versions"]
        text = [
            f"# {result['set']}: {result['rows']:,} vectors of {result['dimension']}",
            "",
            f"{conditions_['date']}, {conditions_['cpu']}, {conditions_['cores']} cores, load {conditions_['load']:.1f} "
            f"before the run; {', '.join(f'{name} {version}' for name, version in versions_.items())}. "
            f"M {M}, ef_construction {EF_CONSTRUCTION}, inner product of unit vectors, {result['queries']:,} queries.",
            "",
            table(result),
            "",
            f"![recall against rate]({path.stem}.svg)",
            "",
            "| index | effort | recall@10 | QPS (processor time) | QPS (wall) | p50 µs | p99 µs |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, index in result["indexes"].items():
            text += [
                f"| {name} | {p['effort']} | {p['recall']:.4f} | {p['qps']:,.0f} | {p['qps_wall']:,.0f} "
                f"| {p['p50']:.0f} | {p['p99']:.0f} |"
                for p in index["points"]
            ]
        path.with_suffix(".md").write_text("\n".join(text) + "\n")
        path.with_suffix(".svg").write_text(plot(result))
        print(f"{path.with_suffix('.md')}, {path.with_suffix('.svg')}")


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "work":
        work(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "extra", "report"])
    parser.add_argument("--engram", help="the binary `index` of engram-benches")
    parser.add_argument("--hnsw-rs", help="the binary bench-hnsw-rs; without it hnsw_rs is left out")
    parser.add_argument("--data", default=os.environ.get("ENGRAM_DATA"), help="directory that holds wordnet/")
    parser.add_argument("--set", choices=["real", "synthetic"], default="real")
    parser.add_argument("--name", help="of the result, when it is not that of the set")
    parser.add_argument("--rows", type=int, default=0, help="only so many rows")
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", help="indexes, separated by commas")
    parser.add_argument("--efforts")
    parser.add_argument("--threads", default="2,1", help="numbers of threads to build with; the last one is searched")
    parser.add_argument("--builds", type=int, default=1, help="builds with each")
    parser.add_argument("--build-once", default="usearch,hnsw_rs", help="indexes that are built once with each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--what", default="beside,open")
    args = parser.parse_args()
    if args.verb == "report":
        report(args)
    elif args.verb == "extra":
        extra(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
