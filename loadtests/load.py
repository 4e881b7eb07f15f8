"""Send load to a server on this machine and print what came back; `loadtests.generator` does the work.

python -m loadtests.load --url http://127.0.0.1:8080/v1/chat/completions --stream --requests 640
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import orjson
import uvloop

from loadtests.generator import CONNECTIONS, Load, chat_body, generate


def _options() -> argparse.Namespace:
    # argparse, not typer: this starts once per measurement, and typer alone takes longer to import than all of it.
    parser = argparse.ArgumentParser(prog="python -m loadtests.load", description="Send chats, check every answer.")
    parser.add_argument("--url", required=True, help="full URL, such as http://127.0.0.1:8080/v1/chat/completions")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE", help="may be repeated")
    parser.add_argument("--stream", action="store_true", help="ask for streamed answers")
    parser.add_argument("--fields", type=orjson.loads, default={}, metavar="JSON", help="more fields of the request")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help=f"connections ({CONNECTIONS})")
    parser.add_argument("--requests", type=int, default=1000, help="requests to measure (1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="stop sending after this long (60)")
    parser.add_argument("--rate", type=float, help="requests per second to send; without it as many as are answered")
    parser.add_argument("--warm-up", type=int, default=2, help="requests on each connection before it counts (2)")
    parser.add_argument("--body-bytes", type=int, help="length that every answer must have")
    parser.add_argument("--pid", type=int, help="process whose CPU, children included, is measured")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args()


def main() -> int:
    """Run one load from the command line. Returns the exit status: 0 when every answer was right."""
    given = vars(_options())
    as_json, fields = given.pop("json"), given.pop("fields")
    pairs = tuple(header.partition(":")[::2] for header in given.pop("header"))
    headers = tuple((name.strip(), value.strip()) for name, value in pairs)
    load = Load(**given, headers=headers, body=chat_body(stream=given["stream"], fields=fields))
    try:
        result = uvloop.run(generate(load))
    except (ValueError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(orjson.dumps(asdict(result)).decode())
    else:
        for name, value in asdict(result).items():
            print(f"{name:>16}  {value}")
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
