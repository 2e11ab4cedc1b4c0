#!/usr/bin/env python3
"""How long a node takes that starts with many sessions on disk. Linux.

    just restart                               builds and measures
    benches/restart.py --stead target/release/stead --sessions 100000

One node with a data directory gets `--sessions` sessions of `--value-bytes` bytes by
`PUT /sessions/{id}`, each on disk before it is answered. Then it is killed (SIGKILL), and the system is asked to
forget what it keeps of the files. The same node is started again: measured is the time from its start
until `/readyz` says 200, and until all sessions are served, of which some are read.
"""

import argparse
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from memory import Node, put_all, settle
from servers import cpu, family

DEADLINE = 300
SAMPLE = 1000
# As many as wait for the disk together.
WRITERS = 64


def until(what, is_so):
    end = time.monotonic() + DEADLINE
    while not is_so():
        if end < time.monotonic():
            sys.exit(f"waited {DEADLINE} s for {what}")
        time.sleep(0.02)


def is_ready(node):
    if node.process.poll() is not None:
        sys.exit("the node has ended: see its log")
    try:
        return bool(node.ask("/readyz"))
    except (OSError, urllib.error.URLError):
        return False


def forget_files(folder):
    """Has the system read the files from the disk again. Gives their bytes."""
    total = 0
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                total += path.stat().st_size
    return total


def start(options, folder):
    flags = ["--data-dir", f"{folder}/data", "--replicas", "0", "--memory-max", "8GiB"]
    # Whoever does not wait for the disk is refused where it is slower.
    return Node(options.stead, folder, "n1", options.shards, flags=[*flags, "--ack", "memory+disk"])


def values(length):
    """Values that are not to be compressed, from one lot of random bytes."""
    lot = os.urandom(4 << 20)
    places = len(lot) - length

    def value(n):
        begin = n * 4099 % places
        return lot[begin : begin + length]

    return value


def read_some(node, options, value):
    step = max(options.sessions // SAMPLE, 1)
    for n in range(0, options.sessions, step):
        url = f"http://{node.http}/sessions/{str(n).zfill(options.key_bytes)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.read() == value(n), url


def measure(options, folder):
    os.mkdir(f"{folder}/data")
    node = start(options, folder)
    settle([node])
    value = values(options.value_bytes)
    began = time.monotonic()
    options.sessions = put_all(node, options.sessions, options.key_bytes, value, WRITERS)
    print(f"{options.sessions} sessions of {options.value_bytes} bytes on disk"
          f" after {time.monotonic() - began:.1f} s")
    node.stop()
    print(f"killed; {forget_files(f'{folder}/data') / 1e6:.0f} MB of files")
    began = time.monotonic()
    node = start(options, folder)
    until("the node to be ready", lambda: is_ready(node))
    ready, used = time.monotonic() - began, sum(cpu(family(node.process.pid)))
    name = "stead_sessions"
    until("all sessions", lambda: node.metrics(name)[name] == options.sessions)
    served = time.monotonic() - began
    read_some(node, options, value)
    print(f"ready {ready:.1f} s after its start, {used:.1f} s of CPU time;"
          f" all sessions are served {served - ready:.1f} s later")
    node.stop()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--stead", default="target/release/stead")
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--key-bytes", type=int, default=16)
    options.add_argument("--value-bytes", type=int, default=1024)
    options.add_argument("--shards", type=int, default=16384)
    options.add_argument("--dir", help="where the files are; default: the temporary directory")
    options = options.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        try:
            measure(options, folder)
        except BaseException:
            print(Path(f"{folder}/n1.log").read_text()[-2000:], file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
