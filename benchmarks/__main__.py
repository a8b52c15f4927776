"""`python -m benchmarks NAME --json`: measure Caudal on this machine, on its own embedded servers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import (
    crowded,
    drain,
    edge,
    growth,
    hops,
    identity,
    latency,
    load,
    one_customer,
    project,
    publish,
    race,
    rates,
    rebuild,
    reports,
    search,
    segments,
    translate,
)
from benchmarks._machine import calibration, machine
from caudal.telemetry import configure_logging

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "crowded": crowded.measure,
    "drain": drain.measure,
    "edge": edge.measure,
    "growth": growth.measure,
    "hops": hops.measure,
    "identity": identity.measure,
    "latency": latency.measure,
    "load": load.measure,
    "one_customer": one_customer.measure,
    "project": project.measure,
    "publish": publish.measure,
    "race": race.measure,
    "rates": rates.measure,
    "rebuild": rebuild.measure,
    "reports": reports.measure,
    "search": search.measure,
    "segments": segments.measure,
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
    before = calibration()
    figures = NAMES[arguments.name](runs=arguments.runs, scale=arguments.scale)
    asked = {"benchmark": arguments.name, "runs": arguments.runs, "scale": arguments.scale}
    found = {**asked, "machine": machine() | {"calibration_before_s": before}, "figures": figures}
    _keep(found)
    if arguments.json:
        print(json.dumps(found))
    else:
        for figure in figures:
            name = " ".join([figure["name"], *(f"{key}={figure[key]}" for key in ("rate", "x") if key in figure)])
            print(
                f"{name:46} {figure['min']:>12,.2f} {figure['median']:>12,.2f} {figure['max']:>12,.2f}  {figure['unit']}"
            )
    return 0


def _keep(found: dict[str, Any]) -> None:
    """Each result is a file of its own; the charts of the docs are made from those copied to `quoted`."""
    RESULTS.mkdir(exist_ok=True)
    at = found["machine"]["at"].replace(":", "").replace("-", "").partition("+")[0]
    (RESULTS / f"{found['benchmark']}-{at}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
