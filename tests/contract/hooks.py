"""Extensions of Schemathesis for this server: serializes reports into bodies, and records the answers."""

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
    # Compress the body as the header says. If the header has an unknown encoding, leave the body uncompressed.
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
def as_json_with_form_type(ctx, fields):
    # Schemathesis passes form fields, so use the original body.
    return body(ctx, [ctx.case.body])


@schemathesis.serializer("application/x-ndjson")
def as_lines(ctx, value):
    return body(ctx, value if isinstance(value, list) else [value])


@schemathesis.hook
def filter_case(context, case):
    # In HTTP, an empty Content-Encoding means no encoding, so the server need not refuse it.
    if (case.headers or {}).get("Content-Encoding") == "":
        return False
    # Schemathesis treats an array as a list of form fields and empties it.
    return not (case.media_type == FORM and isinstance(case.body, list))


@schemathesis.hook
def before_load_schema(context, raw_schema):
    # With WRITE_KEYS, every request needs a key.
    if "CONTRACT_KEY" in os.environ:
        raw_schema["paths"]["/api/v1/reports"]["post"]["security"].remove({})


fresh = itertools.count()


def is_valid(key):
    return isinstance(key, str) and 1 <= len(key) <= 255


@schemathesis.hook
def before_call(context, case, kwargs):
    headers, query = case.headers or {}, case.query or {}
    # The server ignores the key in the URL if the header has a key. The key in the URL may be the invalid one that this
    # case tests, so remove the header.
    if "idempotency_key" in query and is_valid(headers.get("Idempotency-Key")):
        del headers["Idempotency-Key"]
    # Give each request a new key, as openapi.yaml demands. The server would answer a repeated key like the first
    # request, regardless of the body.
    for place, name in ((headers, "Idempotency-Key"), (query, "idempotency_key")):
        if is_valid(place.get(name)):
            place[name] = f"contract-{next(fresh)}"


answers = open(os.environ["CONTRACT_ANSWERS"], "a", buffering=1)


@schemathesis.hook
def after_call(context, case, response):
    """Records the method, path and status of each answer, and the number of accepted reports."""
    request = response.request
    is_accepted = request.method == "POST" and response.status_code == 200
    accepted = json.loads(response.content)["accepted"] if is_accepted else 0
    print(request.method, urlsplit(request.url).path, response.status_code, accepted, file=answers)
