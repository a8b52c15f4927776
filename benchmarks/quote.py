"""`python -m benchmarks.quote [NAME ...]`: docs/performance.md from results.

The newest result of each benchmark named is copied to `results/quoted`; then the tables between `<!-- table NAME -->` and
`<!-- end -->` and the charts are made anew from all that are quoted.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import charts

__all__ = ["CHARTS", "PAGE", "quoted", "written"]

RESULTS = Path(__file__).parent / "results"
QUOTED = RESULTS / "quoted"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
CHARTS = PAGE.parent / "charts"
_TARGETS = (
    ("drain", "drain_events_per_s", "≥ 62,000"),
    ("drain", "drain_profiles_events_per_s", "≥ 130,000"),
    ("latency", "project_latency_p50_ms", "< 5, at 500/s"),
    ("latency", "project_latency_p99_ms", "< 15, at 500/s"),
    ("latency", "end_to_end_latency_p50_ms", "< 25, at 1,000/s"),
    ("latency", "end_to_end_latency_p99_ms", "< 100, at 1,000/s"),
    ("edge", "edge_deliveries_per_s", "≥ 5,000"),
    ("rebuild", "rebuild_events_per_s", "≥ 200,000, of 5 million"),
    ("rebuild", "rebuild_peak_memory_mb", "< 1,000"),
    ("rebuild", "rebuild_beside_latency_p99_ms", "< 250, at 200/s"),
    ("one_customer", "rebuild_one_customer_ms", "< 50"),
    ("search", "profile_read_p95_ms", "< 5"),
    ("search", "search_p95_ms", "< 50"),
    ("segments", "drain_ratio_1000_to_10_segments", "≥ 0.5"),
    ("segments", "timed_exit_lateness_p99_ms", "< 1,000"),
    ("growth", "growth_by_backlog_1_workers_worker_mb", "< 400"),
)
_STAGES = ("translate", "identity", "project", "publish")
Results = Mapping[str, Mapping[str, Any]]


def quoted() -> dict[str, dict[str, Any]]:
    """The results that are quoted, by benchmark."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(QUOTED.glob("*.json"))}


def written(page: str, results: Results) -> str:
    """The page with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        made, needed = _TABLES[found[1]]
        missing = [name for name in needed if name not in results]
        lines = f"Not quoted yet: {', '.join(missing)}." if missing else "\n".join(made(results))
        return f"<!-- table {found[1]} -->\n{lines}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def _targets(results: Results) -> Iterator[str]:
    yield "| figure | target | min | median | max | |"
    yield "|---|---|---|---|---|---|"
    for benchmark, name, target in _TARGETS:
        figures = [f for f in results.get(benchmark, {"figures": []})["figures"] if f["name"] == name]
        if not figures:
            yield f"| `{name}` | {target} | | | | `{benchmark}` isn't quoted yet |"
        for figure in figures:
            yield f"| `{name}` | {target} | {_values(figure)} | {_beside(figure)} |"


def _runs(results: Results) -> Iterator[str]:
    yield "| command | commit | when | calibration before, after | load average |"
    yield "|---|---|---|---|---|"
    for benchmark, result in results.items():
        machine = result["machine"]
        yield (
            f"| `{benchmark} --runs {result['runs']} --scale {result['scale']:g}` | {machine['commit']} | {machine['at'][:16]} |"
            f" {machine['calibration_before_s']}, {machine['calibration_s']} | {machine['load_1min']} |"
        )
    yield ""
    for machine in dict.fromkeys(_machine(result["machine"]) for result in results.values()):
        yield f"{machine}."


def _machine(machine: Mapping[str, Any]) -> str:
    servers = machine["servers"]
    return (
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Kafka {servers['kafka']}, PostgreSQL {servers['postgres']},"
        f" Python {machine['python']}, confluent-kafka {machine['confluent_kafka']}, PyArrow {machine['pyarrow']}"
    )


def _stages(results: Results) -> Iterator[str]:
    return _all(results, *_STAGES)


def _of(benchmark: str) -> tuple[Callable[[Results], Iterator[str]], tuple[str, ...]]:
    return lambda results: _all(results, benchmark), (benchmark,)


def _all(results: Results, *benchmarks: str) -> Iterator[str]:
    yield "| figure | min | median | max | |"
    yield "|---|---|---|---|---|"
    for benchmark in benchmarks:
        for figure in results[benchmark]["figures"]:
            yield f"| `{figure['name']}` | {_values(figure)} | {figure['unit']} |"


def _latencies(results: Results) -> Iterator[str]:
    yield "| figure | a second | min | median | max |"
    yield "|---|---|---|---|---|"
    for figure in results["rates"]["figures"]:
        if "rate" in figure:
            yield f"| `{figure['name']}` | {figure['rate']:,} | {_values(figure)} |"


def _hops(results: Results) -> Iterator[str]:
    figures = results["hops"]["figures"]
    rates = sorted({figure["rate"] for figure in figures})
    yield "| hop | " + " | ".join(f"at {rate}/s: p50, p99, ms" for rate in rates) + " |"
    yield "|---|" + "---|" * len(rates)
    medians = {(figure["name"], figure["rate"]): _number(figure["median"]) for figure in figures}
    for hop in dict.fromkeys(figure["name"].split("_")[1] for figure in figures):
        cells = [", ".join(medians[f"hop_{hop}_{p}_ms", rate] for p in ("p50", "p99")) for rate in rates]
        yield f"| {hop} | {' | '.join(cells)} |"


def _growth(results: Results) -> Iterator[str]:
    yield "| curve | at | figure | min | median | max | |"
    yield "|---|---|---|---|---|---|---|"
    for figure in results["growth"]["figures"]:
        name = figure["name"].removeprefix(f"growth_by_{figure['curve']}_")
        yield f"| {figure['curve'].replace('_', ' ')} | {figure['x']:,g} | `{name}` | {_values(figure)} | {figure['unit']} |"


def _race(results: Results) -> Iterator[str]:
    figures = {figure["name"]: figure for figure in results["race"]["figures"]}
    names = [n[5:-13] for n in figures if n.endswith("_events_per_s") and "published" not in n]
    yield "| contender | events/s: min | median | max | `caudal` to it | its processor time, µs | PostgreSQL's, µs | memory, MB |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in sorted(names, key=lambda n: -figures[f"race_{n}_events_per_s"]["median"]):
        ratio = figures.get(f"race_caudal_to_{name}_ratio")
        times = f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else ""
        own, database, memory = (
            _number(figures[f"race_{name}_{of}"]["median"]) for of in ("processor_us", "postgres_us", "mb")
        )
        yield f"| `{name}` | {_values(figures[f'race_{name}_events_per_s'])} | {times} | {own} | {database} | {memory} |"
    yield ""
    [versions] = (figure["versions"] for figure in figures.values() if "versions" in figure)
    yield ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _limits(results: Results) -> Iterator[str]:
    yield "| limit | min | median | max | |"
    yield "|---|---|---|---|---|"
    for figure in results["race"]["figures"]:
        if figure["name"].startswith("race_limit_"):
            yield f"| `{figure['name']}` | {_values(figure)} | {figure['unit']} |"


def _values(figure: Mapping[str, Any]) -> str:
    return " | ".join(_number(figure[key]) for key in ("min", "median", "max"))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def _beside(figure: Mapping[str, Any]) -> str:
    if "rate" in figure:
        return f"at {figure['rate']:,}/s"
    return f"a backlog of {figure['x']:,}" if "x" in figure else ""


_TABLES: dict[str, tuple[Callable[[Results], Iterator[str]], tuple[str, ...]]] = {
    "targets": (_targets, ()),
    "runs": (_runs, ()),
    "stages": (_stages, _STAGES),
    "latencies": (_latencies, ("rates",)),
    "hops": (_hops, ("hops",)),
    "growth": (_growth, ("growth",)),
    "segments": _of("segments"),
    "search": _of("search"),
    "load": _of("load"),
    "rebuild": _of("rebuild"),
    "race": (_race, ("race",)),
    "limits": (_limits, ("race",)),
}
"""How each table is made, and of which benchmarks."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.quote", description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks whose newest result is quoted from now on")
    QUOTED.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names:
        newest = max(RESULTS.glob(f"{name}-*.json"), default=None)
        if newest is None:
            parser.error(f"no result of {name} in {RESULTS}")
        (QUOTED / f"{name}.json").write_bytes(newest.read_bytes())
    results = quoted()
    PAGE.write_text(written(PAGE.read_text(), results))
    CHARTS.mkdir(exist_ok=True)
    for name, chart in charts.draw(results).items():
        (CHARTS / name).write_text(chart)


if __name__ == "__main__":
    main()
