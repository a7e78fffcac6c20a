#!/usr/bin/env bash
# Compares queries with zstdcat, jq, DuckDB and chdb on the same files, and prints a table.
#
#   NETWATCH_SERVER=path   the netwatch-server binary
#   SIZE_MIB=1024          size of the reports, uncompressed
#   ROUNDS=3               rounds; each figure is the median
#
# Needs Python 3.11 or newer with venv and pip, jq and zstd, and a quarter of SIZE_MIB in TMPDIR.
set -euo pipefail
export LC_ALL=C.UTF-8

here=$(cd "$(dirname "$0")" && pwd)
server=$(realpath "${NETWATCH_SERVER:?set it to the path of a netwatch-server binary}")
target=$(cd "$here/../.." && realpath -m "${CARGO_TARGET_DIR:-target}")
for tool in python3 jq zstd zstdcat; do
  command -v "$tool" >/dev/null || { echo "FAILED: $tool is not installed" >&2; exit 1; }
done

# The venv is rebuilt only when requirements.txt changes. The copy marks a complete installation.
venv=$target/bench-query/venv
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv --clear "$venv"
  timeout 600 "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/netwatch-bench-query.XXXXXX")
trap 'rm -rf "$dir"' EXIT
"$venv/bin/python" "$here/bench.py" "$server" "$dir"
