#!/usr/bin/env bash
# Starts a server, runs a k6 script against it, and stops the server. Then checks that every report with a 200 is in the
# report files, complete and exactly once.
#
#   loadtest/run.sh steady|burst [k6 options]
#
#   SERVER=path   an existing netwatch-server binary; by default, this script builds one
#   KEEP=1        keep the temporary directory with the report files and both logs
#
# The environment also contains the settings of the k6 script and of the server: RATE=2000 BATCH_BYTES=1MiB …
#
# Exit code: 0 on success, 1 if reports are lost or duplicated or the server failed, otherwise the exit code of k6 (99:
# a threshold was exceeded).
set -euo pipefail
export LC_ALL=C

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

name=${1:-}
[[ $name == steady || $name == burst ]] || { say "usage: $0 steady|burst [k6 options]"; exit 2; }
shift
scripts=$(cd "$(dirname "$0")" && pwd)
for tool in k6 zstdcat; do
  command -v "$tool" >/dev/null || die "$tool is not installed; see $scripts/README.md"
done

if [[ -n ${SERVER:-} ]]; then
  server=$(realpath "$SERVER")
else
  (cd "$scripts/.." && cargo build --release)
  server=$(cd "$scripts/.." && realpath "${CARGO_TARGET_DIR:-target}")/release/netwatch-server
fi
[[ -x $server ]] || die "not an executable file: $server"

dir=$(mktemp -d "${TMPDIR:-/tmp}/netwatch-loadtest.XXXXXX")
data=$dir/data
touch "$dir/server.log" "$dir/k6.log" # so that both files exist
server_pid='' k6_pid=''

# Stops a child process: SIGTERM, and SIGKILL after 60 seconds. Sets `status` to its exit code.
stop() {
  kill -TERM "$1" 2>/dev/null || true
  for _ in {1..600}; do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
  status=0
  wait "$1" 2>/dev/null || status=$?
}

cleanup() {
  [[ -z $k6_pid ]] || stop "$k6_pid"
  [[ -z $server_pid ]] || stop "$server_pid"
  if [[ -n ${KEEP:-} ]]; then say "files and logs: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The server runs in an empty directory, so that it reads no .env.
(cd "$dir" && HOST=127.0.0.1 PORT=0 DATA_DIR=$data LOG_FORMAT=json CONFIG_FILE='' exec "$server") 2>"$dir/server.log" &
server_pid=$!
address=''
for _ in {1..100}; do
  address=$(sed -n '/"message":"listening"/s/.*"address":"\([^"]*\)".*/\1/p' "$dir/server.log")
  [[ -z $address ]] || break
  kill -0 "$server_pid" 2>/dev/null || break
  sleep 0.1
done
[[ -n $address ]] || { cat "$dir/server.log" >&2; die "the server did not start"; }
say "$server listens on $address"

# k6 runs in the background, so that this script handles signals immediately.
BASE_URL=http://$address LOG_ACKNOWLEDGED=1 k6 run --no-usage-report --quiet --address '' \
  --console-output "$dir/k6.log" "$@" "$scripts/$name.js" &
k6_pid=$!
k6_status=0
wait "$k6_pid" || k6_status=$?
k6_pid=''

kill -0 "$server_pid" 2>/dev/null || say "the server exited before SIGTERM"
stopped=$SECONDS
stop "$server_pid"
server_pid=''
stopped=$((SECONDS - stopped))
[[ $stopped -le 10 ]] || say "the server took $stopped s to stop"
grep -E '"level":"(WARN|ERROR)"' "$dir/server.log" | head -n 20 >&2 || true
[[ $status == 0 ]] || { tail -n 5 "$dir/server.log" >&2; die "the server exited with code $status"; }

# Both lists have one line per report: `clientId/seq bytes`.
sed -nE 's|.*acknowledged ([0-9a-f-]+/[0-9]+) ([0-9]+).*|\1 \2|p' "$dir/k6.log" | sort >"$dir/acknowledged"
shopt -s nullglob
: >"$dir/invalid"
files=("$data"/reports-*.jsonl.zst)
if [[ ${#files[@]} -gt 0 ]]; then zstdcat -- "${files[@]}"; fi | awk -v invalid="$dir/invalid" '
  {
    start = substr($0, 1, 100)
    if (match(start, /^[{]"clientId":"[0-9a-f-]+","seq":[0-9]+,/) && /]}$/) {
      split(substr(start, 1, RLENGTH), part, /[{":,]+/)
      print part[3] "/" part[5], length($0)
    } else {
      print substr($0, 1, 200) >invalid
    }
  }' | sort >"$dir/stored" || die "FAILED: a report file can't be read"
ids() { cut -d ' ' -f 1 "$dir/$1"; }
count() { wc -l <"$dir/$1" | tr -d ' '; }
comm -23 "$dir/acknowledged" "$dir/stored" >"$dir/missing"
ids stored | uniq -d >"$dir/duplicated"
comm -13 <(ids acknowledged) <(ids stored | uniq) >"$dir/unacknowledged"

printf '%8d  reports acknowledged\n' "$(count acknowledged)"
printf '%8d  reports in %d report files\n' "$(count stored)" "${#files[@]}"
printf '%8d  acknowledged, but missing in the files or incomplete\n' "$(count missing)"
printf '%8d  in the files more than once\n' "$(count duplicated)"
printf '%8d  lines in the files that are not reports\n' "$(count invalid)"
printf '%8d  in the files without a 200 (no error: an answer can be lost on its way)\n' "$(count unacknowledged)"

[[ -s $dir/acknowledged ]] || die "FAILED: no report was acknowledged"
failed=''
for list in missing duplicated invalid; do
  [[ -s $dir/$list ]] || continue
  failed=1
  say "$list (the first 3):"
  head -n 3 "$dir/$list" >&2
done
[[ -z $failed ]] || die "FAILED: the report files do not match the acknowledged reports"
say "ok: every acknowledged report is in the files exactly once"
[[ $k6_status == 0 ]] || say "k6 exited with code $k6_status"
exit "$k6_status"
