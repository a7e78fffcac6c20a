#!/usr/bin/env bash
# Runs a k6 script against a server of its own, stops the server, and checks that every report that k6 saw
# acknowledged is in the report files, whole and exactly once.
#
#   loadtest/run.sh steady|burst [k6 options]
#
#   SERVER=path   a built netwatch-server; without it, one is built
#   KEEP=1        leave the temporary directory, with the report files and both logs
#
# The settings of the scripts and of the server come from the environment as well: RATE=2000 BATCH_BYTES=1MiB …
#
# Exit code: 0 if all is well, 1 if reports are lost or doubled or the server failed, else k6's own (99: a threshold).
set -euo pipefail
export LC_ALL=C

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

name=${1:-}
[[ $name == steady || $name == burst ]] || { say "usage: $0 steady|burst [k6 options]"; exit 2; }
shift
scripts=$(cd "$(dirname "$0")" && pwd)
for tool in k6 zstdcat; do
  command -v "$tool" >/dev/null || die "$tool is needed: see $scripts/README.md"
done

if [[ -n ${SERVER:-} ]]; then
  server=$(realpath "$SERVER")
else
  (cd "$scripts/.." && cargo build --release)
  server=$(cd "$scripts/.." && realpath "${CARGO_TARGET_DIR:-target}")/release/netwatch-server
fi
[[ -x $server ]] || die "no program: $server"

dir=$(mktemp -d "${TMPDIR:-/tmp}/netwatch-loadtest.XXXXXX")
data=$dir/data
touch "$dir/server.log" "$dir/k6.log" # read even if nobody has written to them
server_pid='' k6_pid=''

# Ends one of our own processes: 60 seconds for an orderly end, then by force. Its exit code is left in `status`.
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
  if [[ -n ${KEEP:-} ]]; then say "kept: $dir"; else rm -rf "$dir"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In an empty directory, so that no .env is read.
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

# In the background, so that a signal to this script is heeded at once.
BASE_URL=http://$address LOG_ACKNOWLEDGED=1 k6 run --no-usage-report --quiet --address '' \
  --console-output "$dir/k6.log" "$@" "$scripts/$name.js" &
k6_pid=$!
k6_status=0
wait "$k6_pid" || k6_status=$?
k6_pid=''

kill -0 "$server_pid" 2>/dev/null || say "the server ended before it was told to"
stopped=$SECONDS
stop "$server_pid"
server_pid=''
stopped=$((SECONDS - stopped))
[[ $stopped -le 10 ]] || say "the server took $stopped s to stop"
grep -E '"level":"(WARN|ERROR)"' "$dir/server.log" | head -n 20 >&2 || true
[[ $status == 0 ]] || { tail -n 5 "$dir/server.log" >&2; die "the server ended with $status"; }

# Both lists hold a line `clientId/seq bytes` for each report.
sed -nE 's|.*acknowledged ([0-9a-f-]+/[0-9]+) ([0-9]+).*|\1 \2|p' "$dir/k6.log" | sort >"$dir/acknowledged"
shopt -s nullglob
: >"$dir/foreign"
files=("$data"/reports-*.jsonl.zst)
if [[ ${#files[@]} -gt 0 ]]; then zstdcat -- "${files[@]}"; fi | awk -v foreign="$dir/foreign" '
  {
    start = substr($0, 1, 100)
    if (match(start, /^[{]"clientId":"[0-9a-f-]+","seq":[0-9]+,/) && /]}$/) {
      split(substr(start, 1, RLENGTH), part, /[{":,]+/)
      print part[3] "/" part[5], length($0)
    } else {
      print substr($0, 1, 200) >foreign
    }
  }' | sort >"$dir/kept" || die "FAILED: a report file can't be read"
ids() { cut -d ' ' -f 1 "$dir/$1"; }
count() { wc -l <"$dir/$1" | tr -d ' '; }
comm -23 "$dir/acknowledged" "$dir/kept" >"$dir/missing"
ids kept | uniq -d >"$dir/doubled"
comm -13 <(ids acknowledged) <(ids kept | uniq) >"$dir/unanswered"

printf '%8d  reports acknowledged\n' "$(count acknowledged)"
printf '%8d  reports in %d report files\n' "$(count kept)" "${#files[@]}"
printf '%8d  acknowledged, but not in the files, or not whole\n' "$(count missing)"
printf '%8d  in the files more than once\n' "$(count doubled)"
printf '%8d  lines in the files that are no report\n' "$(count foreign)"
printf '%8d  in the files, but k6 saw no 200 (no error: an answer can be lost on its way)\n' "$(count unanswered)"

[[ -s $dir/acknowledged ]] || die "FAILED: nothing was acknowledged"
failed=''
for list in missing doubled foreign; do
  [[ -s $dir/$list ]] || continue
  failed=1
  say "$list, the first of them:"
  head -n 3 "$dir/$list" >&2
done
[[ -z $failed ]] || die "FAILED: the report files do not hold what was acknowledged"
say "ok: every acknowledged report is in the files, exactly once"
[[ $k6_status == 0 ]] || say "k6 ended with $k6_status"
exit "$k6_status"
