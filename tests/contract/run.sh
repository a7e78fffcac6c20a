#!/usr/bin/env bash
# Checks a server against openapi.yaml with Schemathesis, which sends valid and invalid requests and checks each answer.
# Then stops the server and checks that the number of reports in its files equals the number of accepted reports.
#
#   tests/contract/run.sh [options of schemathesis run]
#
#   NETWATCH_SERVER=path   the netwatch-server binary
#   CONTRACT_SEED=1        the random seed; the same seed sends the same requests
#   CONTRACT_EXAMPLES=100  number of random requests per operation, in addition to the boundary values of its schema
#   KEEP=1                 keep the temporary directory with the logs, files and answers of the servers
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
server=$(realpath "${NETWATCH_SERVER:?set it to the path of netwatch-server}")
target=$(cd "$here/../.." && realpath -m "${CARGO_TARGET_DIR:-target}")
seed=${CONTRACT_SEED:-1}
examples=${CONTRACT_EXAMPLES:-100}
key=0123456789abcdef

# Recreate the virtual environment when the list of packages has changed.
venv=$target/contract-venv
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/netwatch-contract.XXXXXX")
pid=
finish() {
  # SIGKILL, and before the removal of the directory: a server that can't write its reports retries forever.
  [[ -z $pid ]] || { kill -KILL "$pid" && wait "$pid"; } 2>/dev/null || true
  if [[ -n ${KEEP:-} ]]; then echo "logs, files and answers: $dir" >&2; else rm -rf "$dir"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() {
  echo "FAILED: $*" >&2
  [[ ! -f $dir/log ]] || tail -n 5 "$dir/log" >&2
  exit 1
}

# contract NAME "STATUS …" "SETTING=value …" [options]: tests one server with these settings. Fails unless each of these
# statuses occurs at least once, because the test would otherwise prove nothing.
contract() {
  local name=$1 wanted=$2 settings=$3 address='' accepted stored status statuses
  shift 3
  printf '\n%s: %s\n' "$name" "${settings:-defaults}"
  rm -f "$dir/log" "$dir/answers"
  # The server runs in an empty directory, so that it reads no .env. DEDUP_WINDOW makes it check idempotency keys.
  # shellcheck disable=SC2086 # splits the settings into words
  (cd "$dir" && exec env HOST=127.0.0.1 PORT=0 DATA_DIR="$dir/$name" LOG_FORMAT=json CONFIG_FILE='' DEDUP_WINDOW=1h \
    $settings "$server") 2>"$dir/log" &
  pid=$!
  for _ in {1..300}; do
    [[ ! -f $dir/log ]] || address=$(sed -n '/"message":"listening"/s/.*"address":"\([^"]*\)".*/\1/p' "$dir/log")
    [[ -z $address ]] && kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  [[ -n $address ]] || die "the server did not start"

  # Pass the document as a file. With a URL, Schemathesis would not test the path of that URL.
  curl -sf "http://$address/openapi.yaml" -o "$dir/openapi.yaml" || die "can't download /openapi.yaml"
  (cd "$dir" && CONTRACT_ANSWERS=$dir/answers SCHEMATHESIS_HOOKS=hooks PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 \
    "$venv/bin/st" --config-file "$here/schemathesis.toml" run openapi.yaml --url "http://$address" --seed "$seed" \
    --max-examples "$examples" "$@") || die "$name: the answers do not match openapi.yaml"

  kill -TERM "$pid"
  status=0
  wait "$pid" || status=$?
  pid=
  [[ $status == 0 ]] || die "the server exited with code $status"
  ! grep -q panicked "$dir/log" || die "a task of the server panicked"
  for status in $wanted; do
    grep -q " $status [0-9]*\$" "$dir/answers" || die "$name: no answer had status $status"
  done
  "$server" verify "$dir/$name" >"$dir/verified" || die "$name: verify failed or found corrupt files"
  accepted=$(awk '{ sum += $4 } END { print sum + 0 }' "$dir/answers")
  stored=$(sed -n 's/.*: valid, \([0-9]*\) reports\{0,1\}$/\1/p' "$dir/verified" |
    awk '{ sum += $1 } END { print sum + 0 }')
  [[ $accepted == "$stored" ]] || die "$name: $accepted reports were accepted, but $stored are in the files"
  statuses=$(cut -d ' ' -f 3 "$dir/answers" | sort | uniq -c | awk '{ printf "%s%s × %s", sep, $1, $2; sep = ", " }')
  printf '%s: %d answers (%s), %d reports accepted and stored\n' \
    "$name" "$(wc -l <"$dir/answers")" "$statuses" "$accepted"
}

contract open '200 204 400 405 415' '' "$@"

# With a write key. The check ignored_auth verifies that requests without the key or with another key are refused.
CONTRACT_KEY=$key contract keys '200 204 400 405 415' WRITE_KEYS=$key -H "X-Write-Key: $key" "$@"

# Everything that is read, with the admin token, except for answers without an end. The check ignored_auth verifies that
# requests without the token, or with another one, are refused. Most texts are no valid filters, times and paths, so 400 is
# the expected answer to valid data. HEAD runs no query, and accepts them.
readers=(--exclude-path-regex '(tail|live|login|logout|livez|readyz|metrics|openapi.yaml|healthcheck.*|page)$|^/$'
  --exclude-method POST --exclude-method OPTIONS
  --exclude-checks positive_data_acceptance,negative_data_rejection)
contract readers '200 400 404' "ADMIN_TOKEN=$key QUERY_MAX_CONCURRENT=16" --warnings off \
  -H "Authorization: Bearer $key" "${readers[@]}" "$@"

# Requests that the settings refuse. The examples and boundary values are sufficient.
few=(--phases 'examples,coverage' --warnings off)
contract locked '204 401' WRITE_KEYS=$key "${few[@]}" "$@"
! grep -q '^POST /api/v1/reports 200 ' "$dir/answers" || die "the server accepted reports without a key"
contract narrow '403' CORS_ALLOW_ORIGINS=https://other.example.com "${few[@]}" "$@"
contract limited '429' RATE_LIMIT=1/h "${few[@]}" "$@"
# Here, 413 and 503 are the expected answers, so the checks that reject them are off.
contract short '413' MAX_BODY_BYTES=2 "${few[@]}" --exclude-checks positive_data_acceptance,negative_data_rejection "$@"
contract full '503' MIN_FREE_BYTES=1EiB "${few[@]}" --exclude-checks not_a_server_error "$@"
