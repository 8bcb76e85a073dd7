#!/usr/bin/env python3
"""Spreads of three hops beside databases and graph libraries, on the same graphs and seeds.

Runs the `spread` benchmark (engine and plain CSR loop), then, on the graphs that it wrote: SQLite and
PostgreSQL (one query with a common table expression for each hop; an index on the source) and the
personalised PageRank of igraph and networkx. What is not installed is left out and said so. Every
answer of a database is compared with the engine's before it is timed.

Writes docs/benchmarks/spread.{md,json,svg}.
"""

import argparse
import array
import datetime
import importlib
import json
import math
import os
import pathlib
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

DECAY = 0.5
ANSWER = 20
# The least of a total that floats may differ in.
TOLERANCE = 1e-3

SPREAD_SQL = """
WITH h1(v, a) AS MATERIALIZED (SELECT dst, sum(w) FROM e WHERE src = {seed} GROUP BY dst),
     h2(v, a) AS MATERIALIZED (SELECT e.dst, sum(h1.a * e.w) FROM h1 JOIN e ON e.src = h1.v GROUP BY e.dst),
     h3(v, a) AS MATERIALIZED (SELECT e.dst, sum(h2.a * e.w) FROM h2 JOIN e ON e.src = h2.v GROUP BY e.dst),
     t(v, a) AS (SELECT {seed}, 1.0 UNION ALL SELECT * FROM h1 UNION ALL SELECT * FROM h2
                 UNION ALL SELECT * FROM h3)
SELECT v, sum(a) AS total FROM t GROUP BY v ORDER BY total DESC, v LIMIT {answer}
"""


def quantile(values, share):
    values = sorted(values)
    return values[round((len(values) - 1) * share)]


def timed(queries, seconds, one):
    """Microseconds of each query, repeated until the time is up; every query at least once where it can."""
    took, began = [], time.perf_counter()
    for query in queries[:3]:
        one(query)
    while not took or time.perf_counter() - began < seconds:
        for query in queries:
            at = time.perf_counter()
            one(query)
            took.append((time.perf_counter() - at) * 1e6)
            if len(took) >= 5 and time.perf_counter() - began > seconds * 2:
                break
    return {"queries": len(took), "p50_us": quantile(took, 0.5), "p99_us": quantile(took, 0.99)}


class Graph:
    def __init__(self, directory, name):
        raw = (directory / f"{name}.edges").read_bytes()
        words = array.array("I", raw)
        self.sources, self.targets = words[0::3], words[1::3]
        self.shares = array.array("f", raw)[2::3]
        about = json.loads((directory / f"{name}.json").read_text())
        self.seeds, self.answers = about["seeds"], about["answers"]
        self.vertices = 1 + max(max(self.sources), max(self.targets), max(self.seeds))

    def rows(self):
        """Parallel edges added up; the decay is in the weight, so that a query only multiplies."""
        merged = {}
        for source, target, share in zip(self.sources, self.targets, self.shares):
            key = (source, target)
            merged[key] = merged.get(key, 0.0) + share * DECAY
        return ((source, target, weight) for (source, target), weight in merged.items())

    def check(self, one):
        for seed, answer in zip(self.seeds, self.answers):
            got = [total for _, total in one(seed)]
            want = [total for _, total in answer]
            fits = len(got) == len(want) and all(
                abs(a - b) <= TOLERANCE * b + 1e-6 for a, b in zip(got, want)
            )
            if not fits:
                raise SystemExit(f"seed {seed}: {got} instead of {want}")


def sqlite(graph, seconds):
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA cache_size = -1000000")
    connection.execute(
        "CREATE TABLE e (src INTEGER, dst INTEGER, w REAL, PRIMARY KEY (src, dst)) WITHOUT ROWID"
    )
    connection.executemany("INSERT INTO e VALUES (?, ?, ?)", graph.rows())
    connection.execute("ANALYZE")
    sql = SPREAD_SQL.format(seed="?1", answer=ANSWER)
    one = lambda seed: connection.execute(sql, (seed,)).fetchall()
    graph.check(one)
    return {"name": f"SQLite {sqlite3.sqlite_version}, in process", **timed(graph.seeds, seconds, one)}


def postgres(graph, seconds):
    psycopg = importlib.import_module("psycopg2")
    tools = next(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    directory = pathlib.Path(tempfile.mkdtemp(prefix="engram-pg-"))
    # The server refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(directory, "postgres", "postgres")
    run = lambda *command: subprocess.run(
        [*as_user, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/"
    )
    run(tools / "initdb", "-D", directory / "data", "-A", "trust", "-U", "bench")
    options = f"-c listen_addresses= -c unix_socket_directories={directory} -c shared_buffers=2GB -c work_mem=256MB -c jit=off"
    run(tools / "pg_ctl", "-D", directory / "data", "-w", "-l", directory / "log", "-o", options, "start")
    try:
        connection = psycopg.connect(host=str(directory), user="bench", dbname="postgres")
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SHOW server_version")
        version = cursor.fetchone()[0].split()[0]
        cursor.execute("CREATE UNLOGGED TABLE e (src integer, dst integer, w double precision)")
        with tempfile.TemporaryFile("w+") as rows:
            for row in graph.rows():
                rows.write("%d\t%d\t%.9g\n" % row)
            rows.seek(0)
            cursor.copy_from(rows, "e")
        cursor.execute("CREATE INDEX e_src ON e (src) INCLUDE (dst, w)")
        cursor.execute("VACUUM ANALYZE e")
        cursor.execute(f"PREPARE spread(integer) AS {SPREAD_SQL.format(seed='$1', answer=ANSWER)}")
        cursor.execute("SET plan_cache_mode = force_generic_plan")

        def one(seed):
            cursor.execute(f"EXECUTE spread({seed})")
            return cursor.fetchall()

        graph.check(one)
        return {"name": f"PostgreSQL {version}, unix socket", **timed(graph.seeds, seconds, one)}
    finally:
        run(tools / "pg_ctl", "-D", directory / "data", "-m", "immediate", "stop")
        shutil.rmtree(directory, ignore_errors=True)


def igraph(graph, seconds):
    module = importlib.import_module("igraph")
    edges = list(zip(graph.sources, graph.targets))
    whole = module.Graph(n=graph.vertices, edges=edges, directed=True)
    weights = list(graph.shares)

    def one(seed):
        return whole.personalized_pagerank(damping=DECAY, reset_vertices=[seed], weights=weights)

    return {"name": f"igraph {module.__version__}, personalised PageRank", **timed(graph.seeds, seconds, one)}


def networkx(graph, seconds):
    module = importlib.import_module("networkx")
    whole = module.DiGraph()
    whole.add_nodes_from(range(graph.vertices))
    whole.add_weighted_edges_from((s, t, w) for s, t, w in graph.rows())

    def one(seed):
        return module.pagerank(whole, alpha=DECAY, personalization={seed: 1.0}, weight="weight")

    return {"name": f"networkx {module.__version__}, personalised PageRank", **timed(graph.seeds, seconds, one)}


PEERS = {"sqlite": sqlite, "postgres": postgres, "igraph": igraph, "networkx": networkx}


def human(micros):
    if micros >= 1e6:
        return f"{micros / 1e6:.2f} s"
    if micros >= 1e3:
        return f"{micros / 1e3:.1f} ms"
    return f"{micros:.1f} us"


def drawing(results):
    """p50 of each, on a logarithmic scale."""
    bars = []
    for result in results:
        for row in result["rows"]:
            bars.append((f"{result['graph']}: {row['name']}", row["p50_us"]))
    low = 10 ** math.floor(math.log10(min(value for _, value in bars)))
    high = 10 ** math.ceil(math.log10(max(value for _, value in bars)))
    span = math.log10(high / low)
    left, width, step = 330, 520, 24
    height = 50 + step * len(bars)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="18" font-size="14">A 3-hop spread, median (logarithmic)</text>',
    ]
    tick = low
    while tick <= high:
        x = left + width * math.log10(tick / low) / span
        out.append(f'<line x1="{x:.1f}" y1="28" x2="{x:.1f}" y2="{height - 12}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 1}" fill="#666" text-anchor="middle">{human(tick)}</text>')
        tick *= 10
    for index, (name, value) in enumerate(bars):
        y = 34 + step * index
        x = width * math.log10(value / low) / span
        colour = "#2a6f97" if "Engram" in name else "#adb5bd"
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{max(x, 1):.1f}" height="{step - 6}" fill="{colour}"/>')
        out.append(f'<text x="{left + x + 6:.1f}" y="{y + 13}">{human(value)}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"


def table(result, about):
    engine = result["rows"][0]["p50_us"]
    lines = [
        f"## {result['graph']}: {result['vertices']:,} vertices, {result['edges']:,} edges",
        "",
        f"Edges per second over processor time: engine {result['engine']['edges_per_second'] / 1e6:.1f} M,"
        f" plain loop {result['plain_csr_loop']['edges_per_second'] / 1e6:.1f} M:"
        f" **{result['ratio']:.2f}x**. {result['bytes_per_edge']:.1f} bytes an edge, reverse adjacency included,"
        f" and {result['bytes_per_vertex']:.0f} a vertex. From the vertex with most out-edges"
        f" ({result['hub_out_degree']:,}): {human(result['engine_at_hub']['p50_us'])},"
        f" plain loop {human(result['plain_csr_loop_at_hub']['p50_us'])}.",
        "",
        "| what | queries | p50 | p99 | p50, engine = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['name']} | {row['queries']:,} | {human(row['p50_us'])} | {human(row['p99_us'])}"
            f" | {row['p50_us'] / engine:,.1f} |"
        )
    return lines + [""]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=pathlib.Path, help="the spread benchmark")
    parser.add_argument("--wordnet", default=os.environ.get("ENGRAM_WORDNET"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/benchmarks"))
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each peer and graph")
    parser.add_argument(
        "--peer-edges-max", type=int, default=1_000_000, help="larger graphs are not loaded into peers"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; empty: none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as dump:
        command = [args.binary, "--dump", dump, "--seconds", args.seconds]
        command += ["--scale", args.scale, "--edges", args.edges, "--threads", args.threads]
        if args.wordnet:
            command += ["--wordnet", args.wordnet]
        ended = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE)
        results, absent = json.loads(ended.stdout), set()
        for result in results:
            engine, plain = result["engine"], result["plain_csr_loop"]
            rows = [
                {"name": "Engram's engine, exact, all rules", **engine},
                {"name": "plain CSR loop, floats, no rules", **plain},
            ]
            graph = None
            for peer in filter(None, args.peers.split(",")):
                if result["edges"] > args.peer_edges_max:
                    absent.add(f"peers on {result['graph']} (--peer-edges-max)")
                    continue
                graph = graph or Graph(pathlib.Path(dump), result["graph"])
                try:
                    rows.append(PEERS[peer](graph, args.seconds))
                except (ImportError, StopIteration, FileNotFoundError, subprocess.CalledProcessError) as error:
                    absent.add(f"{peer} ({error})")
                    continue
                print(f"{result['graph']}: {rows[-1]['name']}: {human(rows[-1]['p50_us'])}", file=sys.stderr)
            result["rows"] = rows
    when = datetime.date.today().isoformat()
    load = os.getloadavg()[0]
    about = f"{when}, {os.cpu_count()} processors ({platform.machine()}), load {load:.1f} at the end, {args.threads} thread(s) for a query"
    lines = [
        "# A spread of three hops",
        "",
        "Made by `make bench-spread`; do not edit. What is compared, and how: [benchmarks](../benchmarks.md).",
        "",
        about + ".",
        "",
        "![medians](spread.svg)",
        "",
    ]
    for result in results:
        lines += table(result, about)
    if absent:
        lines += ["Not measured: " + "; ".join(sorted(absent)) + ".", ""]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "spread.md").write_text("\n".join(lines))
    (args.out / "spread.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    (args.out / "spread.svg").write_text(drawing(results))
    print(args.out / "spread.md")


if __name__ == "__main__":
    main()
