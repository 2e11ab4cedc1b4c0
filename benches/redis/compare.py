"""A counter in a session beside one in Redis, everything on one core.

Started by `run`, which builds what is needed. Two ways to the same answer, once for each policy of
what must know of an increment before its answer goes out:

    wrk -> stead router -> stead node [-> stead node]
    wrk -> nginx -> service without state -> Redis [-> Redis replica]

| `--ack`        | stead                        | Redis                                           |
|----------------|------------------------------|-------------------------------------------------|
| `memory`       | one node                     | no persistence                                  |
| `memory+disk`  | one node with a directory    | `appendfsync always`                            |
| `replica`      | two nodes, one copy          | one replica, `WAIT 1` before an answer          |
| `replica+disk` | two nodes with a directory each | `appendfsync always`, one replica, `WAIT 1`  |

The two take turns, round by round; printed is the median. CPU time is the kernel's account of all
processes of a way (/proc/PID/stat), taken just before and just after the load; wrk is on the same
core and not counted, nor is what the kernel does for disks on its own threads.

What is compared is as cheap as it can be: nginx keeps its connections to the service, which has one
thread and one connection to Redis, and sends what has come in one write (see app.rs); Redis does
nothing besides. stead runs as it is delivered, every request with its window of answers.
"""

import argparse
import collections
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from servers import (  # noqa: E402
    Processes, cpu, family, free_ports, get, is_open, is_ready, read_wrk, until, version,
)

HERE = Path(__file__).parent
POLICIES = ("memory", "memory+disk", "replica", "replica+disk")

Round = collections.namedtuple("Round", "rate total parts")
Member = collections.namedtuple("Member", "name pid gossip http admin")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stead", required=True, help="the release binary")
    parser.add_argument("--app", required=True, help="the service in front of Redis")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--duration", type=float, default=10, help="seconds of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--dir", help="where disks are measured; default: the temporary directory")
    parser.add_argument("--serve", action="store_true", help="only start everything, and wait")
    return parser.parse_args()


class Way:
    """Processes that answer at a port, by name; and what their configuration was."""

    def __init__(self, name, port, pids, configuration):
        self.name, self.port, self.pids, self.configuration = name, port, pids, configuration
        self.answered = self.loads = 0

    def cpu(self):
        return {name: sum(cpu(family(pid))) for name, pid in self.pids.items()}


# ---- stead -------------------------------------------------------------------------------------


def start_member(processes, stead, role, name, options):
    gossip, port, admin = free_ports(3)
    listen = "--listen" if role == "router" else "--http"
    command = [stead, role, "--name", name, "--cluster", "redis-bench", "--log", "warn"]
    command += ["--key", "path:2", "--gossip", f"127.0.0.1:{gossip}"]
    command += ["--admin", f"127.0.0.1:{admin}", listen, f"127.0.0.1:{port}", *options]
    pid = processes.start(name, command)
    member = Member(name, pid, gossip, port, admin)
    until(f"{name} to be ready", lambda: is_ready(admin))
    return member, command


def start_stead(processes, options, policy):
    n_nodes = 2 if policy.startswith("replica") else 1
    nodes, commands = [], []
    for number in range(1, n_nodes + 1):
        flags = ["--ack", policy, "--replicas", str(n_nodes - 1)]
        if policy.endswith("+disk"):
            folder = processes.folder / f"node-{number}"
            folder.mkdir()
            flags += ["--data-dir", folder]
        flags += ["--join", f"127.0.0.1:{nodes[0].gossip}"] if nodes else []
        node, command = start_member(processes, options.stead, "node", f"n{number}", flags)
        nodes.append(node)
        commands.append(command)
    until("copies of all shards", lambda: all(is_whole(node, n_nodes) for node in nodes))
    flags = ["--threads", "1", "--join", f"127.0.0.1:{nodes[0].gossip}"]
    router, command = start_member(processes, options.stead, "router", "router", flags)
    pids = {member.name: member.pid for member in [router, *nodes]}
    shown = [" ".join(map(str, command)) for command in [command, *commands]]
    return Way("stead", router.http, pids, "\n".join(shown))


def is_whole(node, n_nodes):
    report = json.loads(get(node.admin, "/v1/shards")[2])
    at_home = report["by_node"] == report["targets"] and report["moving"] == 0
    whole = report["unowned"] == 0 and report["under_replicated"] == 0
    return at_home and whole and len(report["by_node"]) == n_nodes


# ---- Redis -------------------------------------------------------------------------------------


def start_server(processes, name, flags):
    port, folder = free_ports(1)[0], processes.folder / name
    folder.mkdir()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", folder, "--save", ""]
    pid = processes.start(name, [*command, *flags])
    until(f"{name} to listen", lambda: is_open(port))
    return port, pid, " ".join(map(str, [*command[:-1], '""', *flags]))


def redis(port, *words):
    command = ["redis-cli", "-p", str(port), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def start_redis(processes, options, policy):
    always = ["--appendonly", "yes", "--appendfsync", "always"]
    flags = always if policy.endswith("+disk") else ["--appendonly", "no"]
    port, pid, shown = start_server(processes, "redis", flags)
    pids, configuration, wait = {"redis": pid}, [shown], []
    if policy.startswith("replica"):
        flags = ["--appendonly", "no", "--replicaof", "127.0.0.1", port]
        _, pids["replica"], shown = start_server(processes, "replica", flags)
        until("the replica to follow", lambda: "state=online" in redis(port, "info", "replication"))
        configuration.append(shown)
        wait = ["1"]
    app = free_ports(1)[0]
    command = [options.app, f"127.0.0.1:{app}", f"127.0.0.1:{port}", *wait]
    pids["app"] = processes.start("app", command)
    until("the service to listen", lambda: is_open(app))
    configuration.append(" ".join(map(str, command)))
    listen, text = free_ports(1)[0], (HERE / "nginx.conf").read_text()
    values = {"DIR": processes.folder, "LISTEN": listen, "APP": app}
    file = processes.folder / "nginx.conf"
    file.write_text(re.sub(r"\$\{(\w+)\}", lambda found: str(values[found[1]]), text))
    pids["nginx"] = processes.start("nginx", ["nginx", "-p", processes.folder, "-c", file])
    until("nginx to listen", lambda: is_open(listen))
    configuration.append(text.strip())
    pids = {name: pids[name] for name in ("nginx", "app", "redis", "replica") if name in pids}
    return Way("redis", listen, pids, "\n".join(configuration))


# ---- the proof that both do the same -----------------------------------------------------------


def ask(connection, method, i):
    connection.request(method, f"/sessions/s{i}/counters/n")
    answer = connection.getresponse()
    return answer.status, answer.headers.get("content-type"), answer.read()


def prove(way, options):
    """Every counter is incremented twice and read, and each answer has the same bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", way.port, timeout=10)
    for i in range(options.sessions):
        for method, value in (("POST", 1), ("POST", 2), ("GET", 2)):
            seen = ask(connection, method, i)
            assert seen == (200, "application/json", b'{"value":%d}' % value), (way.name, i, seen)
    connection.close()
    way.answered += 2 * options.sessions
    return f"{3 * options.sessions} answers, all as they should be"


def count(way, options):
    """Every increment that was answered counts, and none counts twice."""
    connection = http.client.HTTPConnection("127.0.0.1", way.port, timeout=10)
    answers = (ask(connection, "GET", i) for i in range(options.sessions))
    counted = sum(int(re.search(rb"\d+", body)[0]) for _, _, body in answers)
    connection.close()
    # What was on its way when a load ended was not answered to wrk.
    most = way.answered + way.loads * options.connections
    assert way.answered <= counted <= most, (way.name, way.answered, counted, most)
    return f"{way.answered} increments were answered, the counters say {counted}"


# ---- the load ----------------------------------------------------------------------------------


def load(way, options, seconds):
    """Runs a load; gives the number of requests and how long they took."""
    command = ["taskset", "-c", options.core, "wrk", "-t", "1", "-c", options.connections]
    command += ["-d", f"{seconds:g}s", "-s", HERE / "counters.lua"]
    command += [f"http://127.0.0.1:{way.port}", "--", options.sessions]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    requests, seconds, _ = read_wrk(done.stdout)
    way.answered += requests
    way.loads += 1
    return requests, seconds


def measure(way, options):
    load(way, options, min(2, options.duration))
    before = way.cpu()
    requests, seconds = load(way, options, options.duration)
    after = way.cpu()
    parts = {name: (after[name] - before[name]) * 1e6 / requests for name in after}
    one = Round(requests / seconds, sum(parts.values()), parts)
    shown = ", ".join(f"{name} {part:.2f}" for name, part in parts.items())
    print(f"  {way.name:6} {one.rate:8.0f}/s  {one.total:6.2f} µs ({shown})", flush=True)
    return one


def table(policy, rounds):
    print(f"\n{policy}: µs of CPU time per request, median of {len(next(iter(rounds.values())))}")
    print("| way | requests/s | CPU | of it |\n|---|---|---|---|")
    medians = {}
    for name, ones in rounds.items():
        rate, total = (statistics.median(getattr(one, it) for one in ones) for it in ("rate", "total"))
        parts = {
            part: statistics.median(one.parts[part] for one in ones) for part in ones[0].parts
        }
        medians[name] = rate, total
        shown = ", ".join(f"{part} {time:.2f}" for part, time in parts.items())
        print(f"| {name} | {rate:.0f} | {total:.2f} | {shown} |")
    (rate, total), (their_rate, their_total) = medians["stead"], medians["redis"]
    print(f"stead / redis: {total / their_total:.2f} of the CPU, {rate / their_rate:.2f} of the rate\n",
          flush=True)


# ---- all of it ---------------------------------------------------------------------------------


def compare(policy, options):
    with tempfile.TemporaryDirectory(prefix="redis-bench-", dir=options.dir) as folder:
        processes = Processes(options.core, folder)
        try:
            ways = [start(processes, options, policy) for start in (start_stead, start_redis)]
            if options.serve:
                for way in ways:
                    print(way.name, "port", way.port, "pids", way.pids, flush=True)
                signal.pause()
            for way in ways:
                print(f"--- {policy}, {way.name}\n{way.configuration}\n", flush=True)
            for way in ways:
                print(f"{way.name}: {prove(way, options)}", flush=True)
            rounds = {way.name: [] for way in ways}
            for _ in range(options.rounds):
                for way in ways:
                    rounds[way.name].append(measure(way, options))
            for way in ways:
                print(f"{way.name}: {count(way, options)}", flush=True)
            table(policy, rounds)
        except BaseException:
            processes.tell()
            raise
        finally:
            processes.stop()


def main():
    options = arguments()
    os.environ["PATH"] += ":/usr/sbin"
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"kernel {os.uname().release}, {model[1] if model else os.uname().machine}")
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    tools = {"stead": [options.stead, "--version"], "redis": ["redis-server", "--version"]}
    tools.update({"nginx": ["nginx", "-v"], "wrk": ["wrk", "-v"]})
    for name, command in tools.items():
        print(f"{name}: {version(command)}")
    print(f"core {options.core}, {options.connections} connections\n", flush=True)
    for policy in options.policies.split(","):
        compare(policy, options)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
