"""What Schemathesis does not know of this server: how reports go into bodies, and which answers are to be noted."""

import gzip
import itertools
import json
import os
import zlib
from urllib.parse import urlsplit

import brotli
import schemathesis
import zstandard

PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
    "br": brotli.compress,
}

FORM = "application/x-www-form-urlencoded"


def body(ctx, lines):
    # The body is packed as its header says. When that names another encoding, it is not.
    pack = PACK.get((ctx.case.headers or {}).get("Content-Encoding"), bytes)
    return pack(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))


@schemathesis.serializer(
    "application/json",
    "application/reports+json",
    "text/plain",
    "application/csp-report",
    "application/octet-stream",
)
def as_json(ctx, value):
    return body(ctx, [value])


@schemathesis.serializer(FORM)
def as_json_in_name_of_a_form(ctx, fields):
    # Schemathesis has made fields of it.
    return body(ctx, [ctx.case.body])


@schemathesis.serializer("application/x-ndjson")
def as_lines(ctx, value):
    return body(ctx, value if isinstance(value, list) else [value])


@schemathesis.hook
def filter_case(context, case):
    # An encoding of nothing is none, as HTTP has it: no fault that a server would have to find.
    if (case.headers or {}).get("Content-Encoding") == "":
        return False
    # Schemathesis takes an array for a list of fields and empties it.
    return not (case.media_type == FORM and isinstance(case.body, list))


@schemathesis.hook
def before_load_schema(context, raw_schema):
    # With WRITE_KEYS set, nobody may go without one.
    if "CONTRACT_KEY" in os.environ:
        raw_schema["paths"]["/api/v1/reports"]["post"]["security"].remove({})


fresh = itertools.count()


def is_sound(key):
    return isinstance(key, str) and 1 <= len(key) <= 255


@schemathesis.hook
def before_call(context, case, kwargs):
    headers, query = case.headers or {}, case.query or {}
    # A key in the header is the one that counts: nobody would look at the other one, which may be the unsound one.
    if "idempotency_key" in query and is_sound(headers.get("Idempotency-Key")):
        del headers["Idempotency-Key"]
    # Each request gets a key of its own, as the document asks for: a repeat would be answered as the first one was,
    # whatever its body is.
    for place, name in ((headers, "Idempotency-Key"), (query, "idempotency_key")):
        if is_sound(place.get(name)):
            place[name] = f"contract-{next(fresh)}"


answers = open(os.environ["CONTRACT_ANSWERS"], "a", buffering=1)


@schemathesis.hook
def after_call(context, case, response):
    """Notes method, path and status of each answer, and how many reports it says were kept."""
    request = response.request
    is_kept = request.method == "POST" and response.status_code == 200
    kept = json.loads(response.content)["accepted"] if is_kept else 0
    print(request.method, urlsplit(request.url).path, response.status_code, kept, file=answers)
