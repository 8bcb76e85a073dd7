#!/usr/bin/env python3
"""Compares docs/dependencies.md with what the workspace's crates depend on.

Fails when a direct dependency has no line there, or its line has another version or licence.
"""

import json
import pathlib
import re
import subprocess
import sys

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "dependencies.md"
ROW = re.compile(r"^\| ([\w-]+) \| (\d[\d.]*) \| ([^|]+) \| [^|]+ \|$")


def main():
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    members = set(metadata["workspace_members"])
    direct = {
        dependency["pkg"]
        for node in metadata["resolve"]["nodes"]
        if node["id"] in members
        for dependency in node["deps"]
    } - members
    rows = [match.groups() for match in map(ROW.match, PAGE.read_text().splitlines()) if match]
    listed = {name: (version, licence) for name, version, licence in rows}

    wrong = []
    for package in sorted((packages[identity] for identity in direct), key=lambda p: p["name"]):
        version = ".".join(package["version"].split(".")[:2])
        expected = (version, package["license"])
        if listed.get(package["name"]) != expected:
            wrong.append(f"| {package['name']} | {version} | {package['license']} | (why) |")
    if wrong:
        print(f"{PAGE.name}: these lines are missing or have another version or licence:")
        print("\n".join(wrong))
        sys.exit(1)
    print(f"{PAGE.name}: all {len(direct)} direct dependencies have a line")


if __name__ == "__main__":
    main()
