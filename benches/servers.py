"""Servers that are measured: processes on one core, their CPU time, and what they answer."""

import collections
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 30
TICKS = os.sysconf("SC_CLK_TCK")

Cpu = collections.namedtuple("Cpu", "user kernel")


class Processes:
    """Children on one core, with their logs in one folder."""

    def __init__(self, core, folder):
        self.core, self.folder, self.running = core, Path(folder), []

    def start(self, name, command, **environment):
        log = open(self.folder / f"{name}.log", "wb")
        pinned = ["taskset", "-c", str(self.core), *map(str, command)]
        env = {**os.environ, "DIR": str(self.folder)}
        env.update((key, str(value)) for key, value in environment.items())
        process = subprocess.Popen(pinned, env=env, stdout=log, stderr=log)
        self.running.append(process)
        return process.pid

    def stop(self):
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tell(self):
        for log in sorted(self.folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}", file=sys.stderr)


def free_ports(n):
    """Ports that nobody uses now; all are held until all are known."""
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def family(pid):
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(descendant for child in children for descendant in family(int(child)))]


def cpu(pids):
    """Seconds of CPU time so far, with that of their children that have ended."""
    user = kernel = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11]) + int(fields[13])
        kernel += int(fields[12]) + int(fields[14])
    return Cpu(user / TICKS, kernel / TICKS)


def until(what, is_so):
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        if deadline < time.monotonic():
            raise SystemExit(f"waited {START_SECONDS} s for {what}")
        time.sleep(0.05)


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(port, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def is_ready(admin):
    try:
        return get(admin, "/readyz")[0] == 200
    except OSError:
        return False


def metric(member, name):
    text = get(member.admin, "/metrics")[2].decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


def opened():
    """Connections that the whole machine has opened so far."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    names, counts = (line for line in lines if line[0] == "Tcp:")
    return int(counts[names.index("ActiveOpens")])


def read_wrk(text):
    bad = re.search(r"Non-2xx.*|Socket errors.*", text)
    assert not bad, bad[0]
    requests, seconds = re.search(r"(\d+) requests in ([\d.]+)s", text).groups()
    return int(requests), float(seconds), ""


def version(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return next(line for line in (done.stdout + done.stderr).splitlines() if line.strip())
