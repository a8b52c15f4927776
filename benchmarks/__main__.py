"""`python -m benchmarks NAME --json`: measure Caudal on this machine, on its own embedded servers."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks import drain, edge, identity, latency, one_customer, project, publish, rebuild, search, translate
from benchmarks._machine import machine
from caudal.telemetry import configure_logging

NAMES = {
    "drain": drain.measure,
    "edge": edge.measure,
    "identity": identity.measure,
    "latency": latency.measure,
    "one_customer": one_customer.measure,
    "project": project.measure,
    "publish": publish.measure,
    "rebuild": rebuild.measure,
    "search": search.measure,
    "translate": translate.measure,
}


def main() -> int:
    """Run one benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("name", choices=sorted(NAMES))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of each measurement (at least 3 for figures to quote)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="more or less work than usual; 0.1 for a quick look")
    arguments = parser.parse_args()
    configure_logging("warning")  # to standard error: standard output is the result
    figures = NAMES[arguments.name](runs=arguments.runs, scale=arguments.scale)
    if arguments.json:
        print(json.dumps({"machine": machine(), "figures": figures}))
    else:
        for figure in figures:
            print(
                f"{figure['name']:34} {figure['min']:>12,.2f} {figure['median']:>12,.2f} {figure['max']:>12,.2f}  {figure['unit']}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
