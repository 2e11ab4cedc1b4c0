"""CPU time per request of proxies in front of the same service, everything on one core.

Started by `run`, which builds what is needed. Two loads: `saturation`, wrk as fast as it goes, and
`paced`, a fixed number of requests a second, each on its own. The proxies take turns, round by
round; printed is the median. CPU time is the kernel's account of each process (/proc/PID/stat),
taken just before and just after the load. The sum is exact; the split into user and kernel comes
from samples at the clock's ticks, and is off when a paced load keeps time with them.

stead's router routes to a cluster of three nodes. Another proxy spreads the keys by a ring of its
own, and a node of that cluster would pass on what it does not own; so the others get three nodes
that are a cluster each and hold every session. Every node runs the same binary with the same
built-in service, and a request is answered where it arrives.
"""

import argparse
import collections
import http.client
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
    Processes, cpu, family, free_ports, get, is_open, is_ready, metric, opened, read_wrk, until,
    version,
)

HERE = Path(__file__).parent
KEY = "x-session"
Round = collections.namedtuple("Round", "rate user kernel servers opened")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stead", required=True, help="the release binary")
    parser.add_argument("--paced", required=True, help="the pacing client")
    parser.add_argument("--proxies", default="stead,haproxy", help="the first one is compared")
    parser.add_argument("--loads", default="saturation,paced")
    parser.add_argument("--duration", type=float, default=10, help="seconds of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=10_000, help="requests a second when paced")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--bytes", type=int, default=100, help="of an answer's body")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--serve", action="store_true", help="only start everything, and wait")
    return parser.parse_args()


# ---- the cluster and the proxies ---------------------------------------------------------------


class Node:
    def __init__(self, processes, stead, name, cluster, join=None):
        self.name = name
        self.gossip, self.http, self.admin = free_ports(3)
        command = [stead, "node", "--name", name, "--cluster", cluster, "--key", f"header:{KEY}"]
        command += member_flags(self) + ["--http", f"127.0.0.1:{self.http}", "--log", "warn"]
        command += ["--join", f"127.0.0.1:{join.gossip}"] if join else []
        self.pid = processes.start(name, command)


class Proxy:
    """A proxy, the nodes behind it and what its configuration was."""

    def __init__(self, name, port, pid, nodes, configuration):
        self.name, self.port, self.pid, self.nodes = name, port, pid, nodes
        self.configuration = configuration


def member_flags(member):
    return ["--gossip", f"127.0.0.1:{member.gossip}", "--admin", f"127.0.0.1:{member.admin}"]


class SteadRouter:
    def __init__(self, processes, stead, nodes):
        self.gossip, self.port, self.admin = free_ports(3)
        command = [stead, "router", "--cluster", "proxy-bench", "--key", f"header:{KEY}"]
        command += member_flags(self) + ["--listen", f"127.0.0.1:{self.port}", "--log", "warn"]
        command += ["--threads", "1", "--join", f"127.0.0.1:{nodes[0].gossip}"]
        self.command = command
        self.pid = processes.start("router", command)


def start(options, processes):
    """Everything that is compared, ready and filled."""
    names = options.proxies.split(",")
    proxies = []
    if "stead" in names:
        first = Node(processes, options.stead, "n1", "proxy-bench")
        until("n1 to be ready", lambda: is_ready(first.admin))
        nodes = [first]
        nodes += [Node(processes, options.stead, n, "proxy-bench", first) for n in ("n2", "n3")]
        router = SteadRouter(processes, options.stead, nodes)
        for member in [*nodes, router]:
            until("the cluster to be ready", lambda member=member: is_ready(member.admin))
        until("shards to spread", lambda: all(0 < shards_of(node) for node in nodes))
        shown = " ".join(str(part) for part in router.command)
        proxies.append(Proxy("stead", router.port, router.pid, nodes, shown))
    others = [name for name in names if name != "stead"]
    if others:
        alone = [Node(processes, options.stead, f"a{i}", f"alone-{i}") for i in (1, 2, 3)]
        for node in alone:
            until(f"{node.name} to be ready", lambda node=node: is_ready(node.admin))
        proxies += [OTHERS[name](processes, alone) for name in others]
        for node in alone:
            fill(node.http, options)
    for proxy in proxies:
        until(f"{proxy.name} to listen", lambda proxy=proxy: is_open(proxy.port))
        if proxy.name == "stead":
            fill(proxy.port, options)
    return sorted(proxies, key=lambda proxy: names.index(proxy.name))


def start_haproxy(processes, nodes):
    port, file = free_ports(1)[0], HERE / "haproxy.cfg"
    ports = {f"NODE{i}": node.http for i, node in enumerate(nodes, 1)}
    pid = processes.start("haproxy", ["haproxy", "-db", "-f", file], LISTEN=port, **ports)
    return Proxy("haproxy", port, pid, nodes, file.read_text())


def start_nginx(processes, nodes):
    port, text = free_ports(1)[0], (HERE / "nginx.conf").read_text()
    values = {"DIR": processes.folder, "LISTEN": port}
    values.update((f"NODE{i}", node.http) for i, node in enumerate(nodes, 1))
    file = processes.folder / "nginx.conf"
    file.write_text(re.sub(r"\$\{(\w+)\}", lambda found: str(values[found[1]]), text))
    pid = processes.start("nginx", ["nginx", "-p", processes.folder, "-c", file])
    return Proxy("nginx", port, pid, nodes, text)


OTHERS = {"haproxy": start_haproxy, "nginx": start_nginx}


def shards_of(node):
    return metric(node, "stead_shards_owned")


# ---- the sessions, and the proof that all is equal ---------------------------------------------


def value(id, options):
    return (f"{id} ".encode() * options.bytes)[: options.bytes]


def fill(port, options):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for i in range(options.sessions):
        id = f"s{i}"
        headers = {KEY: id, "content-type": "application/octet-stream"}
        connection.request("PUT", f"/sessions/{id}", value(id, options), headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 201, 204), (port, id, answer.status)
    connection.close()


def prove(proxy, options):
    """Every session, each time on a new connection: the right bytes, from the same server."""
    wrong = moved = 0
    places = collections.Counter()
    for i in range(options.sessions):
        id = f"s{i}"
        seen = set()
        for _ in range(2):
            status, headers, body = get(proxy.port, f"/sessions/{id}", {KEY: id})
            wrong += (status, body) != (200, value(id, options))
            seen.add(headers.get("stead-node"))
        moved += len(seen) > 1
        places.update(seen)
    assert wrong == 0 and moved == 0, (proxy.name, wrong, moved)
    answers = f"{2 * options.sessions} answers of {options.bytes} bytes, all as stored"
    if proxy.name == "stead":
        held = {node.name: int(metric(node, "stead_sessions")) for node in proxy.nodes}
        assert sum(held.values()) == options.sessions, held
        return f"{answers}; each session is on one node only, so its key goes there: {held}"
    return f"{answers}; each key twice to the same server: {dict(sorted(places.items()))}"


# ---- the load ----------------------------------------------------------------------------------


def load(kind, proxy, options, seconds):
    """Runs a load; gives the number of requests and how long they took."""
    pinned = ["taskset", "-c", str(options.core)]
    address = f"127.0.0.1:{proxy.port}"
    if kind == "saturation":
        command = ["wrk", "-t", "1", "-c", options.connections, "-d", f"{seconds:g}s"]
        command += ["-s", HERE / "sessions.lua", f"http://{address}", "--", options.sessions]
    else:
        command = [options.paced, address, options.rate, seconds, options.connections]
        command += [options.sessions]
    done = subprocess.run([*pinned, *map(str, command)], capture_output=True, text=True, check=True)
    return (read_wrk if kind == "saturation" else read_paced)(done.stdout)


def read_paced(text):
    fields = dict(re.findall(r"(\w+): ([\d.]+)", text))
    assert fields["errors"] == "0", text
    note = f"late {fields['late']}, at most {int(fields['behind_us']) / 1000:.1f} ms behind"
    return int(fields["requests"]), float(fields["seconds"]), note


def measure(kind, proxy, options):
    servers = [pid for node in proxy.nodes for pid in family(node.pid)]
    proxies = family(proxy.pid)
    load(kind, proxy, options, min(2, options.duration))
    opens, before, servers_before = opened(), cpu(proxies), cpu(servers)
    requests, seconds, note = load(kind, proxy, options, options.duration)
    after, servers_after = cpu(proxies), cpu(servers)
    each = 1e6 / requests
    one = Round(
        rate=requests / seconds,
        user=(after.user - before.user) * each,
        kernel=(after.kernel - before.kernel) * each,
        servers=(sum(servers_after) - sum(servers_before)) * each,
        opened=opened() - opens,
    )
    print(
        f"  {proxy.name:8} {one.rate:8.0f}/s  proxy {one.user + one.kernel:6.2f} µs"
        f" ({one.user:.2f} user, {one.kernel:.2f} kernel)  servers {one.servers:6.2f} µs"
        f"  connections opened {one.opened}  {note}",
        flush=True,
    )
    return one


def table(kind, rounds):
    print(f"\n{kind}: µs of CPU time per request, median of {len(next(iter(rounds.values())))}")
    print("| proxy | requests/s | proxy | user | kernel | proxy + servers |")
    print("|---|---|---|---|---|---|")
    totals = {}
    for name, ones in rounds.items():
        alone = statistics.median(one.user + one.kernel for one in ones)
        both = statistics.median(one.user + one.kernel + one.servers for one in ones)
        user, kernel, rate = (
            statistics.median(getattr(one, field) for one in ones)
            for field in ("user", "kernel", "rate")
        )
        totals[name] = alone, both
        print(f"| {name} | {rate:.0f} | {alone:.2f} | {user:.2f} | {kernel:.2f} | {both:.2f} |")
    first, *others = totals
    for other in others:
        alone, both = (mine / theirs for mine, theirs in zip(totals[first], totals[other]))
        print(f"{first} / {other}: {alone:.2f} alone, {both:.2f} with the servers")
    print(flush=True)


# ---- all of it ---------------------------------------------------------------------------------


def describe(options, proxies):
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"kernel {os.uname().release}, {model[1] if model else os.uname().machine}")
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    versions = {"stead": [options.stead, "--version"], "haproxy": ["haproxy", "-v"]}
    versions.update({"nginx": ["nginx", "-v"], "wrk": ["wrk", "-v"]})
    for name in [*options.proxies.split(","), "wrk"]:
        print(f"{name}: {version(versions[name])}")
    for proxy in proxies:
        print(f"\n--- configuration of {proxy.name}\n{proxy.configuration.strip()}")
    print("\n--- equality")
    for proxy in proxies:
        print(f"{proxy.name}: {prove(proxy, options)}", flush=True)
    print(f"\ncore {options.core}, {options.connections} connections, key in {KEY}\n", flush=True)


def main():
    options = arguments()
    os.environ["PATH"] += ":/usr/sbin"
    with tempfile.TemporaryDirectory(prefix="proxy-bench-") as folder:
        processes = Processes(options.core, folder)
        try:
            proxies = start(options, processes)
            if options.serve:
                for proxy in proxies:
                    print(proxy.name, "port", proxy.port, "pid", proxy.pid, flush=True)
                signal.pause()
            describe(options, proxies)
            for kind in options.loads.split(","):
                print(f"{kind}:", flush=True)
                rounds = {proxy.name: [] for proxy in proxies}
                for _ in range(options.rounds):
                    for proxy in proxies:
                        rounds[proxy.name].append(measure(kind, proxy, options))
                table(kind, rounds)
        except BaseException:
            processes.tell()
            raise
        finally:
            processes.stop()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
