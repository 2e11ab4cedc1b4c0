#!/usr/bin/env python3
"""What sessions and an empty cluster cost in memory, of real processes. Linux.

    just memory                                builds and measures both
    benches/memory.py --stead target/release/stead --sessions 100000

1. One node without a router. Its resident memory is read, then `--sessions` sessions are created
   by `PUT /sessions/{id}` with `--value-bytes` bytes each, then it is read again. The difference,
   divided by their number, is what an idle session costs with everything: value, key, index,
   timers, the allocator's own, and the window with the answer to its request. That is over after a
   minute: it is read once more then, and there is room now where the windows were. So a second node
   joins, to which half of the sessions move: there they never had one. The same with a fiftieth of
   the sessions and full windows.
2. An empty cluster of `--shards` shards: the resident memory of one node alone, and of each of
   three nodes once they share the shards.

Memory is read when it has not changed for a second. `anon` is what the process allocated, the rest
are pages of its binary.
"""

import argparse
import concurrent.futures
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

DEADLINE = 120
# Answers that a session keeps, and how long: a few seconds more, for whoever looks for them.
WINDOW_MAX = 128
# A session was created, or changed.
PUT = (b"HTTP/1.1 201", b"HTTP/1.1 204")
WINDOWS_FOR = 75
# A session is in one place.
FLAGS = ["--memory-max", "8GiB", "--replicas", "0"]


def free_port():
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        return tcp.getsockname()[1]


class Node:
    def __init__(self, stead, folder, name, shards, join=None, flags=()):
        self.name = name
        self.gossip, self.http, self.admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
        command = [stead, "node", "--name", name, "--shards", str(shards), "--exit-with-parent"]
        command += ["--gossip", self.gossip, "--http", self.http, "--admin", self.admin]
        command += [*(["--join", join] if join else []), *flags]
        log = open(f"{folder}/{name}.log", "w")
        # Its standard input is a pipe of ours: it ends with us.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log
        )

    def ask(self, path):
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as answer:
            return answer.read()

    def metrics(self, prefix):
        lines = self.ask("/metrics").decode().splitlines()
        named = (line.split() for line in lines if line.startswith(prefix))
        return {name: float(value) for name, value in named}

    def is_settled(self, n_nodes):
        try:
            self.ask("/readyz")
            report = json.loads(self.ask("/v1/shards"))
        except (OSError, urllib.error.URLError):
            return False
        at_home = report["by_node"] == report["targets"] and report["moving"] == 0
        return at_home and report["unowned"] == 0 and len(report["by_node"]) == n_nodes

    def memory(self):
        """Resident bytes, and those that are not of a file, once they stand still."""
        last, since = None, time.monotonic()
        end = since + DEADLINE
        while time.monotonic() < end:
            now = self.memory_now()
            if last is None or abs(now[0] - last[0]) > 64 * 1024:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > 1:
                return now
            time.sleep(0.1)
        sys.exit(f"the memory of {self.name} does not stand still")

    def memory_now(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))

    def stop(self):
        self.process.kill()
        self.process.wait()


def settle(nodes):
    end = time.monotonic() + DEADLINE
    while not all(node.is_settled(len(nodes)) for node in nodes):
        if time.monotonic() > end or any(node.process.poll() is not None for node in nodes):
            sys.exit("the cluster did not come to rest")
        time.sleep(0.1)


def put_all(node, sessions, key_bytes, value, n_threads=4):
    """Creates sessions over a few connections, one of each at a time; gives their number."""
    share = sessions // n_threads
    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        writers = [
            pool.submit(put, node, i * share, share, key_bytes, value) for i in range(n_threads)
        ]
        for writer in writers:
            writer.result()
    return share * n_threads


def put(node, first, count, key_bytes, value):
    """Creates sessions over one connection, a hundred requests at a time; `value` of each number."""
    host, port = node.http.split(":")
    with socket.create_connection((host, int(port))) as connection:
        rest = b""
        for start in range(first, first + count, 100):
            numbers = range(start, min(start + 100, first + count))
            head = "PUT /sessions/{} HTTP/1.1\r\nhost: s\r\ncontent-length: {}\r\n\r\n"
            values = [value(n) for n in numbers]
            heads = (
                head.format(str(n).zfill(key_bytes), len(its)).encode()
                for n, its in zip(numbers, values)
            )
            connection.sendall(b"".join(head + its for head, its in zip(heads, values)))
            answered = 0
            while answered < len(numbers):
                data = connection.recv(65536)
                if not data:
                    sys.exit("the node closed the connection")
                rest += data
                answers = rest.split(b"\r\n\r\n")
                rest = answers.pop()
                bad = [answer for answer in answers if answer[:12] not in PUT]
                if bad:
                    sys.exit(f"not created: {bad[0]}")
                answered += len(answers)


def per_session(options, folder, sessions, requests):
    node = Node(options.stead, folder, "alone", options.shards, flags=FLAGS)
    settle([node])
    before = node.memory()
    value = b"v" * options.value_bytes
    print(f"one node, {options.shards} shards, empty: {mib(before)}")
    for _ in range(requests):
        n = put_all(node, sessions, options.key_bytes, lambda _: value)
    size = f"keys of {options.key_bytes} and values of {len(value)} bytes"
    print(f"with {n} sessions, {size}, {requests} requests each: {mib(node.memory())}")
    tell(node, before, n, "with their windows of answers")
    # Nobody can ask for them any more, and the memory is looked at when it stands still.
    time.sleep(WINDOWS_FOR)
    tell(node, before, n, "when these are over")
    other = Node(options.stead, folder, "other", options.shards, node.gossip, FLAGS)
    settle([node, other])
    moved = int(other.metrics("stead_sessions")["stead_sessions"])
    tell(other, before, moved, f"of {moved} where they have moved to")
    other.stop()
    node.stop()


def tell(node, before, n, when):
    counted = node.metrics("stead_session")
    if counted["stead_sessions"] != n:
        sys.exit(f"{n} sessions were created and {counted['stead_sessions']} are there")
    now = node.memory()
    print(f"  per session, {when}: {(now[0] - before[0]) / n:.0f} bytes"
          f" (counted by the node: {counted['stead_session_bytes'] / n:.0f})", flush=True)


def empty(options, folder):
    nodes = [Node(options.stead, folder, "n1", options.shards)]
    settle(nodes)
    print(f"an empty cluster of {options.shards} shards")
    print(f"  one node alone: {mib(nodes[0].memory())}")
    for name in ("n2", "n3"):
        nodes.append(Node(options.stead, folder, name, options.shards, nodes[0].gossip))
    settle(nodes)
    for node in nodes:
        print(f"  {node.name} of three: {mib(node.memory())}")
    for node in nodes:
        node.stop()


def mib(memory):
    rss, anon = (part / 1024 / 1024 for part in memory)
    return f"{rss:.1f} MiB (anon {anon:.1f})"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--stead", default="target/release/stead")
    options.add_argument("--sessions", type=int, default=1_000_000)
    options.add_argument("--key-bytes", type=int, default=16)
    options.add_argument("--value-bytes", type=int, default=100)
    options.add_argument("--shards", type=int, default=16384)
    options.add_argument("--only", choices=["sessions", "empty"])
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "empty":
            per_session(options, folder, options.sessions, 1)
            per_session(options, folder, options.sessions // 50, WINDOW_MAX)
        if options.only != "sessions":
            empty(options, folder)


if __name__ == "__main__":
    main()
