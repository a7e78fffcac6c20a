#!/usr/bin/env bash
# Runs every code block of docs/reading.md on the files of a real server, and compares each result with plain Python.
#
#   NETWATCH_SERVER=path   the netwatch-server binary
#   KEEP=1                 keep the temporary directory with the server's files and logs
#
# Needs Python 3.11 or newer with venv and pip, curl, jq and zstd.
set -euo pipefail
export LC_ALL=C.UTF-8

here=$(cd "$(dirname "$0")" && pwd)
server=$(realpath "${NETWATCH_SERVER:?set it to the path of a netwatch-server binary}")
target=$(cd "$here/../.." && realpath -m "${CARGO_TARGET_DIR:-target}")
for tool in python3 curl jq zstd; do
  command -v "$tool" >/dev/null || { echo "FAILED: $tool is not installed" >&2; exit 1; }
done

# The venv is rebuilt only when requirements.txt changes. The copy marks a complete installation.
venv=$target/interop/venv
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv --clear "$venv"
  timeout 600 "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/netwatch-interop.XXXXXX")
child=
finish() {
  [[ -z $child ]] || { kill -TERM "$child" && wait "$child"; } 2>/dev/null || true
  # interop.py leaves this file if it fails or is killed while its server runs.
  [[ ! -s $dir/server.pid ]] || kill -KILL "$(<"$dir/server.pid")" 2>/dev/null || true
  if [[ -n ${KEEP:-} ]]; then echo "kept: $dir" >&2; else rm -rf "$dir"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background, because bash runs a trap only after a command in the foreground has ended.
timeout 900 "$venv/bin/python" "$here/interop.py" "$server" "$dir" &
child=$!
wait "$child" && status=0 || status=$?
child=
exit "$status"
