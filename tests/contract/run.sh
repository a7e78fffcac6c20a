#!/usr/bin/env bash
# Schemathesis sends a built server what openapi.yaml says it takes, and much that it does not, and holds each answer
# against that document. Then the server is stopped, and as many reports have to be in its files as were accepted.
#
#   tests/contract/run.sh [options of schemathesis run]
#
#   NETWATCH_SERVER=path   a built netwatch-server
#   CONTRACT_SEED=1        the seed of what is sent; the same one sends the same
#   CONTRACT_EXAMPLES=100  how many requests are made up for each operation, beside those at the edges of its schema
#   KEEP=1                 leave the temporary directory, with the servers' logs, files and answers
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
server=$(realpath "${NETWATCH_SERVER:?a built netwatch-server}")
target=$(cd "$here/../.." && realpath -m "${CARGO_TARGET_DIR:-target}")
seed=${CONTRACT_SEED:-1}
examples=${CONTRACT_EXAMPLES:-100}
key=0123456789abcdef

# Made anew when the list of packages has changed.
venv=$target/contract-venv
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/netwatch-contract.XXXXXX")
pid=
finish() {
  # By force, and before its directory goes: a server that can't write what it holds tries for ever.
  [[ -z $pid ]] || { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true
  if [[ -n ${KEEP:-} ]]; then echo "kept: $dir" >&2; else rm -rf "$dir"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() {
  echo "FAILED: $*" >&2
  [[ ! -f $dir/log ]] || tail -n 5 "$dir/log" >&2
  exit 1
}

# contract NAME "STATUS …" "SETTING=value …" [options]: one server with these settings, which has to give each of these
# statuses at least once, or the run has shown nothing.
contract() {
  local name=$1 wanted=$2 settings=$3 address='' accepted stored status statuses
  shift 3
  printf '\n%s: %s\n' "$name" "${settings:-defaults}"
  rm -f "$dir/log" "$dir/answers"
  # In an empty directory, so that no .env is read. Without DEDUP_WINDOW, no idempotency key would be looked at.
  # shellcheck disable=SC2086 # settings are words
  (cd "$dir" && exec env HOST=127.0.0.1 PORT=0 DATA_DIR="$dir/$name" LOG_FORMAT=json CONFIG_FILE='' DEDUP_WINDOW=1h \
    $settings "$server") 2>"$dir/log" &
  pid=$!
  for _ in {1..300}; do
    [[ ! -f $dir/log ]] || address=$(sed -n '/"message":"listening"/s/.*"address":"\([^"]*\)".*/\1/p' "$dir/log")
    [[ -z $address ]] && kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  [[ -n $address ]] || die "the server did not start"

  # From a file: of one that it was told the address of, Schemathesis does not try that address.
  curl -sf "http://$address/openapi.yaml" -o "$dir/openapi.yaml" || die "/openapi.yaml is not served"
  (cd "$dir" && CONTRACT_ANSWERS=$dir/answers SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 \
    "$venv/bin/st" --config-file "$here/schemathesis.toml" run openapi.yaml --url "http://$address" --seed "$seed" \
    --max-examples "$examples" "$@") || die "$name: the answers are not those of openapi.yaml"

  kill -TERM "$pid"
  status=0
  wait "$pid" || status=$?
  pid=
  [[ $status == 0 ]] || die "the server ended with $status"
  ! grep -q panicked "$dir/log" || die "a task of the server panicked"
  for status in $wanted; do
    grep -q " $status [0-9]*\$" "$dir/answers" || die "$name: no answer had status $status"
  done
  "$server" verify "$dir/$name" >"$dir/verdicts" || die "not all files are sound"
  accepted=$(awk '{ sum += $4 } END { print sum + 0 }' "$dir/answers")
  stored=$(sed -n 's/.*: sound, \([0-9]*\) reports$/\1/p' "$dir/verdicts" | awk '{ sum += $1 } END { print sum + 0 }')
  [[ $accepted == "$stored" ]] || die "$name: $accepted reports were accepted, and $stored are in the files"
  statuses=$(cut -d ' ' -f 3 "$dir/answers" | sort | uniq -c | awk '{ printf "%s%s × %s", sep, $1, $2; sep = ", " }')
  printf '%s: %d answers (%s), %d reports accepted, and all of them are in the files\n' \
    "$name" "$(wc -l <"$dir/answers")" "$statuses" "$accepted"
}

contract open '200 204 400 405 415' '' "$@"

# With the key. That nothing is taken without it, or with another one, is what the check ignored_auth tries.
CONTRACT_KEY=$key contract keys '200 204 400 405 415' WRITE_KEYS=$key -H "X-Write-Key: $key" "$@"

# What the settings refuse. The edges of each schema are enough for that.
few=(--phases 'examples,coverage' --warnings off)
contract locked '204 401' WRITE_KEYS=$key "${few[@]}" "$@"
! grep -q '^POST /api/v1/reports 200 ' "$dir/answers" || die "reports were taken without a key"
contract narrow '403' CORS_ALLOW_ORIGINS=https://other.example.com "${few[@]}" "$@"
contract limited '429' RATE_LIMIT=1/h "${few[@]}" "$@"
# These two statuses are what is wanted here.
contract short '413' MAX_BODY_BYTES=2 "${few[@]}" --exclude-checks positive_data_acceptance,negative_data_rejection "$@"
contract full '503' MIN_FREE_BYTES=1EiB "${few[@]}" --exclude-checks not_a_server_error "$@"
