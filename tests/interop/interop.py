"""Runs every code block of docs/reading.md as printed there, on the files of a real server.

    interop.py SERVER DIR         run.sh does this
    interop.py --block TOOL MODE  runs one block from standard input, as the child process of a check

Each recipe runs twice. On the page's own example, its output must be the printed one. On many normal reports with
hostile reports between them, its result must be that of a plain Python loop over the same lines.
"""

import calendar
import http.client
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

START_LIMIT, STOP_LIMIT, BLOCK_LIMIT = 30, 60, 120  # seconds
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reading.md"
TOOLS = ("shell", "duckdb", "clickhouse", "pandas")
FILE_NAME = re.compile(r"reports-(\d{8}T\d{6})\.\d{9}Z-[0-9a-f]{8}\.jsonl\.zst")

# Each hostile report is sent twice: as it is here, and with the normal members that it lacks. The label is then its
# country and its host, so that a result shows which hostile reports a tool has read.
HOSTILE = {
    "empty object": "{}",
    "empty name": '{"":1}',
    "odd names": r"""{"a.b":{"c":1},"$":2,"\\":3,"'":4,"`":5,"json":6,"filename":7,"__proto__":8}""",
    "long name": '{"%s":1}' % ("k" * 100_000),
    "many names": "{%s}" % ",".join(f'"k{n}":1' for n in range(60_000)),
    "other case": '{"HOSTS":1,"Geo":{"country":"ZZ"},"clientID":3}',
    "nulls": '{"geo":null,"hosts":null,"clientId":null}',
    "name twice": '{"a":1,"a":2}',
    "country twice": '{"geo":{"country":"first","country":"last"}}',
    "30 digits": '{"n":123456789012345678901234567890}',
    "5000 digits": '{"n":%s}' % ("1" * 5000),
    "1e999": '{"n":1e999}',
    "tiny": '{"n":[-0,1e-999,-1E-400]}',
    "high surrogate": r'{"t":"\ud83d"}',
    "low surrogate": r'{"t":"\ude00"}',
    "surrogate country": r'{"geo":{"country":"\ud83d"}}',
    "NUL": r'{"t":"\u0000"}',
    "NUL country": r'{"geo":{"country":"\u0000"},"clientId":"x\u0000y"}',
    "control characters": r'{"geo":{"country":"\u001b[31m\r\n\t\"│"}}',
    "line separators": '{"t":"\u2028\u2029\u0085\ufeff😀"}',
    "long string": '{"t":"%s"}' % ("x" * 1_000_000),
    "long non-ASCII string": '{"t":"%s"}' % ("é" * 400_000),
    "long array": '{"n":[%s]}' % ",".join("1" * 400_000),
    "deep arrays": '{"n":%s%s}' % ("[" * 126, "]" * 126),
    "deep objects": '{"n":' * 126 + "{}" + "}" * 126,
    "geo is a string": '{"geo":"EU"}',
    "country is an array": '{"geo":{"country":["DE"]}}',
    "client is an object": '{"clientId":{}}',
    "client is an array": '{"clientId":[[]]}',
    "hosts is a string": '{"hosts":"nope"}',
    "hosts is an object": '{"hosts":{"name":"object","history":[{"latency":1}]}}',
    "null host": '{"hosts":[null]}',
    "no hosts": '{"hosts":[5,"x",[[]],{"name":"beside no hosts","history":[{"latency":1}]}]}',
    "history is a string": '{"hosts":[{"name":5,"history":"x"}]}',
    "history is an object": '{"hosts":[{"name":"history","history":{"latency":1}}]}',
    "no samples": '{"hosts":[{"name":"beside no samples","history":[5,null,"x",[],{},{"latency":1}]}]}',
    "name is a number": '{"hosts":[{"name":5,"history":[{"latency":1}]}]}',
    "name is an object": '{"hosts":[{"name":{"a":1},"history":[{"latency":1}]}]}',
    "no name": '{"hosts":[{"name":null,"history":[{"latency":1}]},{"history":[{"latency":1}]}]}',
    "surrogate host": r'{"hosts":[{"name":"half\ud83d","history":[{"latency":1}]}]}',
    "latency is no number": '{"hosts":[{"name":"slow","history":[{"latency":"slow"},{"latency":{}},{"latency":1}]}]}',
    "latency is a string": '{"hosts":[{"name":"string","history":[{"latency":"7"}]}]}',
    "latency is a bool": '{"hosts":[{"name":"bool","history":[{"latency":true}]}]}',
    "30-digit latency": '{"hosts":[{"name":"30-digit","history":[{"latency":123456789012345678901234567890}]}]}',
    "5000-digit latency": '{"hosts":[{"name":"5000-digit","history":[{"latency":%s},{"latency":1}]}]}' % ("1" * 5000),
    "1e999 latency": '{"hosts":[{"name":"huge","history":[{"latency":1e999}]}]}',
}
# Rows in which a tool differs from the plain loop. The table in docs/reading.md explains them. The value None means
# that the row is missing. The key None is the row of reports without a country, or hosts without a name.
BOTH_DATABASES = {
    "country": {
        "high surrogate": None,
        "low surrogate": None,
        "surrogate host": None,
        "\ud83d": None,
        '["DE"]': (2, 1),
        "client is an object": (1, 1),
        "client is an array": (1, 1),
        "first": (2, 1),
        "last": None,
    },
    "latency": {
        "high surrogate": None,
        "low surrogate": None,
        "surrogate country": None,
        "half\ud83d": None,
        "5": (2, 1),
        '{"a":1}': (2, 1),
        None: (4, 1),
        "string": (2, 7),
        "bool": (2, 1),
    },
}
DIFFERENCES = {
    "shell": {
        "country": {"high surrogate": None, "surrogate host": None, "\ud83d": None, None: (43, 1)},
        "latency": {
            "high surrogate": None,
            "surrogate country": None,
            "half\ud83d": None,
            "5000-digit": (4, (1 + sys.float_info.max) / 2),
            "huge": (2, sys.float_info.max),
        },
    },
    "duckdb": {
        "country": BOTH_DATABASES["country"] | {None: (48, 3)},
        "latency": BOTH_DATABASES["latency"],
    },
    "clickhouse": {
        "country": BOTH_DATABASES["country"] | {"1e999": None, "1e999 latency": None, None: (50, 3)},
        "latency": BOTH_DATABASES["latency"] | {"1e999": None, "huge": None},
    },
    "pandas": {
        "country": {"\ud83d": None, "?": (2, 1)},
        "latency": {"half\ud83d": None, "half?": (2, 1)},
    },
}


class Block(NamedTuple):
    tool: str
    task: str
    code: str
    output: str
    line: int

    def __str__(self):
        return f"{self.tool}, {self.task} (docs/reading.md line {self.line})"


def blocks(page):
    """Returns the page's code blocks. A block without a marker or an output is an error: it would go untested."""
    found, marker = [], None
    fence = re.compile(r"^(?:<!-- run: (\w+), (\w+) -->|```(\w*)\n(.*?)^```)$", re.M | re.S)
    for match in fence.finditer(page):
        tool, task, language, body = match.groups()
        line = page.count("\n", 0, match.start()) + 1
        if tool:
            marker = tool, task
        elif language == "text":
            found[-1] = found[-1]._replace(output=body)
        elif marker is None:
            sys.exit(f"FAILED: the code block at docs/reading.md line {line} has no `run` marker")
        else:
            found.append(Block(*marker, body, "", line))
            marker = None
    for block in found:
        if not block.output and block.task != "setup":
            sys.exit(f"FAILED: {block}: the page shows no output")
    for tool in TOOLS:
        missing = {"count", "country", "latency", "time"} - {block.task for block in found if block.tool == tool}
        if missing:
            sys.exit(f"FAILED: docs/reading.md has no recipe for {tool}, {', '.join(missing)}")
    return found


def run(block, setup, cwd, as_rows):
    """Runs a block in a child process, because a reader may crash or hang. Returns what the block printed."""
    if block.tool == "shell":
        command, code = ["bash", "-euo", "pipefail", "-c", block.code], None
    else:
        command = [sys.executable, __file__, "--block", block.tool, "rows" if as_rows else "text"]
        code = setup + block.code if block.tool == "pandas" else block.code
    env = os.environ | {"CURL_HOME": str(cwd), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, input=code, cwd=cwd, env=env, capture_output=True, text=True, timeout=BLOCK_LIMIT)
    if done.returncode != 0 or done.stderr:
        raise RuntimeError("\n  ".join([f"exit code {done.returncode}", *done.stderr.strip().splitlines()[-4:]]))
    if not as_rows:
        return done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [list(row.values()) if isinstance(row, dict) else row if isinstance(row, list) else [row] for row in rows]


def run_block(tool, as_rows):
    """The child process. With `as_rows`, prints each row as a JSON array instead of the reader's own table."""
    code = sys.stdin.read()

    def show(value):
        rows = value.reset_index().values.tolist() if hasattr(value, "reset_index") else [[value]]
        for row in rows:
            print(json.dumps(row))

    if tool == "pandas":
        exec(code, {"print": show} if as_rows else {})
    elif tool == "duckdb":
        import duckdb

        answer = duckdb.sql(code)
        if as_rows:
            for row in answer.fetchall():
                print(json.dumps(row))
        else:
            answer.show()
    elif tool == "clickhouse":
        import chdb

        if as_rows:
            for row in chdb.query(code, "DataFrame").values.tolist():
                print(json.dumps(row))
        else:
            print(chdb.query(code, "PrettyCompact"))


class Server:
    """A server in `cwd`. Leaving the context stops it in an orderly way, so that all reports are in files."""

    def __init__(self, binary, cwd, **settings):
        self.log = cwd / "log"
        # run.sh kills this process if it is still alive at the end.
        self.pid_file = cwd.parent / "server.pid"
        env = {"HOST": "127.0.0.1", "PORT": "0", "LOG_FORMAT": "json", "CONFIG_FILE": ""} | settings
        with self.log.open("w") as log:
            self.process = subprocess.Popen([binary], cwd=cwd, env=env, stderr=log)
        self.pid_file.write_text(str(self.process.pid))

    def __enter__(self):
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text().splitlines(keepends=True):
                if '"message":"listening"' in line and line.endswith("\n"):
                    return json.loads(line)["fields"]["address"]
            time.sleep(0.05)
        sys.exit(f"FAILED: the server did not start:\n{self.log.read_text()}")

    def __exit__(self, *exception):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_LIMIT)
        self.pid_file.unlink()
        if status != 0:
            sys.exit(f"FAILED: the server exited with status {status}:\n{self.log.read_text()}")


def name_files(reports, first_hour):
    """Checks the names, times and frames of the files, and gives them fixed names and times an hour apart."""
    files = sorted(reports.glob("*.jsonl.zst"))
    for n, file in enumerate(files, 1):
        stamp = FILE_NAME.fullmatch(file.name)
        assert stamp, f"{file.name}: not the documented name"
        first = calendar.timegm(time.strptime(stamp[1], "%Y%m%dT%H%M%S"))
        assert first <= file.stat().st_mtime <= time.time(), f"{file.name}: it is not from the time in its name"
        frame = subprocess.run(["zstd", "-lv", file], capture_output=True, text=True, timeout=BLOCK_LIMIT).stdout
        for fact in ("# Zstandard Frames: 1\n", "Decompressed Size: ", "Check: XXH64"):
            assert fact in frame, f"{file.name}: not one frame with content size and checksum:\n{frame}"
        hour = first_hour + n - 1
        renamed = file.rename(reports / f"reports-20261122T{hour}0512.123456789Z-5f3a9c{n:02}.jsonl.zst")
        last = calendar.timegm((2026, 11, 22, hour, 5, 42))
        os.utime(renamed, (last, last))
    return files


def make_example(server, cwd, sends):
    """Sends the page's example as the page says. Returns each block with what it printed."""
    cwd.mkdir()
    with Server(server, cwd) as address:
        # The page's commands send to localhost:8080.
        (cwd / ".curlrc").write_text(f'connect-to = "localhost:8080:{address}"\nnoproxy = "*"\nsilent\nshow-error\n')
        answers = [run(block, "", cwd, as_rows=False) for block in sends]
    name_files(cwd / "data" / "reports", first_hour=15)
    return answers


def normal(n):
    samples = [{"latency": (n * 7919 + k * 104_729) % 4001 / 8} for k in range(3)]
    hosts = [{"name": ("api", "auth", "cdn")[(n + k) % 3], "history": samples[k:]} for k in range(2)]
    report = {"clientId": f"c{n % 997}", "geo": {"country": ("BR", "DE", "FR", "JP")[n % 4]}, "hosts": hosts}
    return json.dumps(report | {"padding": "x" * 900}, separators=(",", ":"))


def with_normal_members(label, report):
    members = {
        '"clientId"': '"clientId":"hostile"',
        '"geo"': '"geo":{"country":"%s"}' % label,
        '"hosts"': '"hosts":[{"name":"%s","history":[{"latency":1}]}]' % label,
    }
    added = [member for name, member in members.items() if name not in report]
    return "{" + ",".join(added + [report[1:-1]] * (report != "{}")) + "}"


def make_hostile(server, cwd):
    """Sends hostile reports between normal ones, so that they are in three files. Returns how many it has sent."""
    cwd.mkdir()
    sent = 0

    def send(client, lines):
        nonlocal sent
        client.request("POST", "/api/v1/reports", "\n".join(lines).encode(), {"Content-Type": "application/json"})
        answer = client.getresponse()
        body = answer.read()
        assert answer.status == 200 and json.loads(body)["accepted"] == len(lines), f"{body} for {lines[0][:100]}"
        sent += len(lines)

    # The first file is larger than DuckDB's buffer of 32 MiB.
    with Server(server, cwd, BATCH_BYTES="36MiB", BUFFER_BYTES="128MiB", FLUSH_INTERVAL="10m") as address:
        client = http.client.HTTPConnection(address, timeout=START_LIMIT)
        for label, report in HOSTILE.items():
            for hostile in (report, with_normal_members(label, report)):
                send(client, [normal(n) for n in range(sent, sent + 400)])
                send(client, [hostile])
    with Server(server, cwd) as address:
        send(http.client.HTTPConnection(address, timeout=START_LIMIT), [normal(0)])
    files = name_files(cwd / "data" / "reports", first_hour=14)
    assert len(files) == 3, f"the reports must fill three files: {files}"
    return sent


def results(files):
    """What the recipes must return, by a plain loop over the lines of the files."""
    lines = {}
    for file in files:
        bytes_ = subprocess.run(["zstd", "-dcq", file], capture_output=True, check=True, timeout=BLOCK_LIMIT).stdout
        lines[file.name] = bytes_.decode().removesuffix("\n").split("\n")
    reports, clients, latencies = defaultdict(int), defaultdict(set), defaultdict(list)
    for line in (line for file in lines.values() for line in file):
        report = json.loads(line, parse_int=float)
        geo, client, hosts = report.get("geo"), report.get("clientId"), report.get("hosts")
        country = geo.get("country") if isinstance(geo, dict) else None
        country = country if isinstance(country, str) else None
        reports[country] += 1
        if isinstance(client, str):
            clients[country].add(client)
        for host in hosts if isinstance(hosts, list) else []:
            if not isinstance(host, dict) or not isinstance(host.get("name"), str):
                continue
            history = host.get("history")
            for sample in history if isinstance(history, list) else []:
                if isinstance(sample, dict) and isinstance(sample.get("latency"), float):
                    latencies[host["name"]].append(sample["latency"])

    def median(values):
        values = sorted(values)
        return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2

    return {
        "count": {"reports": (sum(reports.values()),)},
        "country": {country: (count, len(clients[country])) for country, count in reports.items()},
        "latency": {name: (len(values), median(values)) for name, values in latencies.items()},
        "time": {"reports": (len(next(lines[name] for name in lines if "T15" in name)),)},
    }


def compare(block, rows, expected):
    """Returns the differences between a recipe's rows and the plain loop, one line each."""
    found = {row[0] if isinstance(row[0], str) else None: tuple(row[1:]) for row in rows}
    if block.task in ("count", "time"):
        found = {"reports": tuple(rows[0])}
    wanted = expected[block.task] | DIFFERENCES[block.tool].get(block.task, {})
    wanted = {key: row for key, row in wanted.items() if row is not None}
    differences = []
    for key in sorted(found.keys() | wanted.keys(), key=str):
        row, want = found.get(key), wanted.get(key)
        if row is None or want is None or len(row) != len(want) or not all(map(math.isclose, row, want)):
            differences.append(f"{key!r}: {want} expected, {row} found")
    return differences


def main(server, directory):
    page = blocks(PAGE.read_text())
    sends = [block for block in page if block.task == "send"]
    recipes = [block for block in page if block.task not in ("send", "setup")]
    setup = "".join(block.code for block in page if block.task == "setup")
    example, hostile = directory / "example", directory / "hostile"
    passed, failed = 0, 0

    def check(what, block, differences):
        nonlocal passed, failed
        passed, failed = passed + (not differences), failed + bool(differences)
        if differences:
            print(f"FAILED: {block}, {what}:", *differences, sep="\n  ", flush=True)

    def attempt(block, cwd, as_rows, judge):
        try:
            return judge(run(block, setup, cwd, as_rows))
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            return [str(error)]

    def same_text(block, printed):
        tidy = [[line.rstrip() for line in text.strip("\n").split("\n")] for text in (block.output, printed)]
        return [] if tidy[0] == tidy[1] else ["the page shows:", *tidy[0], "the recipe printed:", *tidy[1]]

    for block, printed in zip(sends, make_example(server, example, sends)):
        check("example", block, same_text(block, printed))
    for block in recipes:
        check("example", block, attempt(block, example, False, lambda printed: same_text(block, printed)))

    sent = make_hostile(server, hostile)
    expected = results(sorted((hostile / "data" / "reports").glob("*.jsonl.zst")))
    assert expected["count"]["reports"] == (sent,), f"{sent} reports were sent, the files have {expected['count']}"
    for block in recipes:
        if block.task in expected:
            check("hostile reports", block, attempt(block, hostile, True, lambda rows: compare(block, rows, expected)))

    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    if sys.argv[1] == "--block":
        run_block(sys.argv[2], as_rows=sys.argv[3] == "rows")
    else:
        sys.exit(main(sys.argv[1], Path(sys.argv[2])))
