"""Times queries against other tools on the same report files. Called by run.sh."""

import datetime
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time

SERVER, DIR = sys.argv[1:]
PYTHON = sys.executable
SIZE = int(os.environ.get("SIZE_MIB", "1024")) << 20
ROUNDS = int(os.environ.get("ROUNDS", "3"))
FILE_BYTES = 10 << 20
START = datetime.datetime(2026, 11, 22, 15, 0, 0, tzinfo=datetime.timezone.utc)

COUNTRIES = ["DE", "FR", "US", "BR", "KE", "IN", "JP", "AU"]
HOSTS = ["api", "auth", "cdn", "images", "search"]
random.seed(1)
SAMPLES = [
    ',"error":"timeout"}' if i < 3 else f',"latency":{40 * math.exp(random.gauss(0, 0.6)):.1f}}}' for i in range(256)
]


def report(client, seq, at):
    """A report of about 1.2 kB, as loadtest/ sends it."""
    hosts = []
    for name in random.sample(HOSTS, 3):
        first = random.randrange(256)
        history = ",".join(
            f'{{"t":{at - 5000 * k}{SAMPLES[(first + 37 * k) & 255]}' for k in range(7)
        )
        url = f"https://{name}.example.com/health"
        hosts.append(f'{{"name":"{name}","url":"{url}","status":"up","history":[{history}]}}')
    country = COUNTRIES[client % len(COUNTRIES)]
    time_text = datetime.datetime.fromtimestamp(at / 1000, datetime.timezone.utc).isoformat(timespec="milliseconds")
    return (
        f'{{"clientId":"{client:08x}-9c1f-4d0e-8f5a-{client * 7919:012x}","seq":{seq},"timestamp":"{time_text[:-6]}Z",'
        f'"geo":{{"country":"{country}","city":"Somewhere","timezone":"Etc/UTC","lat":52.52,"lon":13.41}},'
        f'"hosts":[{",".join(hosts)}]}}\n'
    )


def write(directory, number, first, lines):
    """A report file like those of the server: its name has the time of the first report."""
    name = first.strftime("reports-%Y%m%dT%H%M%S.") + f"{first.microsecond * 1000:09d}Z-{number:08x}.jsonl.zst"
    path = os.path.join(directory, name)
    subprocess.run(["zstd", "-q", "-1", "--check", "-o", path], input="".join(lines).encode(), check=True)
    last = (first + datetime.timedelta(seconds=60)).timestamp()
    os.utime(path, (last, last))


def generate():
    directory, many = os.path.join(DIR, "reports"), os.path.join(DIR, "many")
    os.mkdir(directory), os.mkdir(many)
    # The variety of 20,000 reports, in an order that differs between files.
    pool = [report(random.randrange(1 << 31), n, int(START.timestamp() * 1000) + 5 * n) for n in range(20000)]
    total, number = 0, 0
    while total < SIZE:
        lines, size = [], 0
        while size < FILE_BYTES:
            line = random.choice(pool)
            lines.append(line)
            size += len(line)
        write(directory, number, START + datetime.timedelta(minutes=number), lines)
        total, number = total + size, number + 1
    blob = subprocess.run(["zstd", "-q", "-1", "--check"], input="".join(pool[:20]).encode(), capture_output=True, check=True)
    for n in range(10000):
        first = START + datetime.timedelta(seconds=n)
        name = first.strftime("reports-%Y%m%dT%H%M%S.") + f"000000000Z-{n:08x}.jsonl.zst"
        with open(os.path.join(many, name), "wb") as file:
            file.write(blob.stdout)
    return directory, many, total, number


def run(command):
    """Seconds, MiB of the largest process, and the last line of the output."""
    started = time.monotonic()
    process = subprocess.Popen(["bash", "-c", f"set -o pipefail; {command}"], stdout=subprocess.PIPE)
    last = b""
    while chunk := process.stdout.read1(1 << 16):
        last = (last + chunk)[-4096:]
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        sys.exit(f"FAILED with {status}: {command}")
    return seconds, usage.ru_maxrss / 1024, last.decode().strip().split("\n")[-1]


def peak(command):
    """MiB of the process. Not from its resource usage, which counts the memory of this script before the exec, too."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status") as status:
            lines = [line.split() for line in status if line.startswith("VmHWM")]
        most = max([most, *(int(words[1]) / 1024 for words in lines)])
        time.sleep(0.002)
    if process.returncode:
        sys.exit(f"FAILED with {process.returncode}: {command}")
    return most


def duckdb(sql):
    code = f"import duckdb; duckdb.sql('set threads=2'); print(duckdb.sql('''{sql}''').fetchall()[-1])"
    return f'{PYTHON} -c "{code}"'


def chdb(sql):
    return f"{PYTHON} -c \"import chdb; print(chdb.query('''{sql}''', 'CSV'))\""


def compare(title, commands, check=None):
    """Runs the commands in turns. Prints the medians, and the ratio of each to the first."""
    times = {name: [] for name in commands}
    results = {}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            seconds, _, last = run(command)
            times[name].append(seconds)
            results[name] = last
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ours = next(iter(medians.values()))
    print(f"\n{title}")
    for name, seconds in medians.items():
        spread = f"{min(times[name]):.2f}-{max(times[name]):.2f}"
        print(f"  {name:34} {seconds:7.2f} s  ({spread})  {seconds / ours:5.1f} x  {results[name][:60] if check else ''}")


def main():
    directory, many, total, files = generate()
    glob = f"{directory}/*.zst"
    print(f"{total / 2**20:.0f} MiB in {files} files, {ROUNDS} rounds; x: time compared with netwatch-server")
    query = f"{SERVER} query --dir {directory}"
    compare("all reports, to /dev/null", {
        "netwatch-server query": f"{query} > /dev/null",
        "zstdcat": f"zstdcat {glob} > /dev/null",
    })
    compare("a filter: reports from Germany, counted", {
        "netwatch-server query": f"{query} '.geo.country == \"DE\"' | wc -l",
        "zstdcat | jq": f"zstdcat {glob} | jq -c 'select(.geo.country == \"DE\")' | wc -l",
        "duckdb": duckdb(
            f"select count(*) from read_ndjson_objects(\\\"{glob}\\\") where json->>\\\"$.geo.country\\\" = \\\"DE\\\""
            .replace('\\"', "\\'")
        ),
    }, check=True)
    unnest = (
        f"with h as (select unnest(hosts) as h from read_json(\\'{glob}\\', format=\\'newline_delimited\\', columns="
        "{hosts: \\'STRUCT(name VARCHAR, history STRUCT(t BIGINT, latency DOUBLE)[])[]\\'})), "
        "s as (select h.name as name, unnest(h.history) as s from h) "
        "select name, date_trunc(\\'minute\\', to_timestamp(s.t / 1000)) as m, count(s.latency), "
        "quantile_cont(s.latency, [0.5, 0.95, 0.99]) from s group by all order by all"
    )
    click = (
        "SELECT h.1 AS name, toStartOfMinute(fromUnixTimestamp64Milli(s.1)) AS m, count(s.2), "
        "quantilesDD(0.01, 0.5, 0.95, 0.99)(assumeNotNull(s.2)) FROM (SELECT h, arrayJoin(h.2) AS s FROM "
        f"(SELECT arrayJoin(hosts) AS h FROM file(\\'{glob}\\', \\'JSONEachRow\\', "
        "\\'hosts Array(Tuple(name String, history Array(Tuple(t Int64, latency Nullable(Float64)))))\\'))) "
        "WHERE isNotNull(s.2) GROUP BY name, m ORDER BY name, m SETTINGS max_threads=2"
    )
    stats = f"{SERVER} stats --dir {directory} .hosts[].history[].latency --by .hosts[].name --step 1m --format csv"
    compare("latency by host and minute, with quantiles", {
        "netwatch-server stats": f"{stats}",
        "duckdb": duckdb(unnest),
        "chdb": chdb(click),
    }, check=True)
    print("\npeak memory")
    arguments = {
        "query": ["query", "--dir", directory],
        "query FILTER": ["query", "--dir", directory, '.geo.country == "DE"'],
        "query --order desc": ["query", "--dir", directory, "--order", "desc"],
        "query jq program": ["query", "--dir", directory, "--limit", "100000", "[.hosts[].history[].latency] | add"],
        "stats": stats.split()[1:],
        "ls": ["ls", "--dir", many],
        "tail": ["tail", "--dir", directory],
    }
    for name, words in arguments.items():
        print(f"  {name:34} {peak([SERVER, *words]):7.1f} MiB")
    first = []
    for _ in range(max(ROUNDS, 5)):
        started = time.monotonic()
        process = subprocess.Popen(
            [SERVER, "query", "--dir", many, "--limit", "10", "--order", "desc"], stdout=subprocess.PIPE
        )
        json.loads(process.stdout.readline())
        first.append((time.monotonic() - started) * 1000)
        process.stdout.close()
        process.wait()
    print(f"\nfirst line of --limit 10 --order desc, 10,000 files: {statistics.median(first):.0f} ms")


main()
