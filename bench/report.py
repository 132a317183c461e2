"""Makes the tables and pictures from the results: README.md's part between its marks, and results/<name>.md with all of it.

`python -m bench.report`: takes results/full.json, or quick.json while there is no full one.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.claims import PYTHONS, all_claims
from bench.lab import BENCH, LabError
from bench.questions import added_latency, new_connections, profile
from bench.results import Results
from bench.run import QUESTIONS
from bench.session import CaseValue
from bench.stats import Summary
from bench.svg import Bars, draw_bars, draw_curves, number_words

RESULTS = BENCH / "results"
BEGIN, END = "<!-- made by bench/report.py: do not edit -->", "<!-- end -->"
QUANTILES = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999]
OURS = "bentpipe"
MEANING = "Medians of the repetitions (lowest to highest). After each peer's value: ours, in multiples of it."
MIDDLE: dict[str, CaseValue] = {"bytes": 128, "connections": 64, "load": "50 %"}
"""The case that pictures show."""


def main() -> None:
    """Write everything. Raises LabError without results."""
    paths = [path for path in (RESULTS / "full.json", RESULTS / "quick.json") if path.exists()]
    if not paths:
        raise LabError("no results yet: make bench, or make bench-quick")
    results = Results(paths[0])
    pictures = _draw(results)
    (RESULTS / f"{results.name}.md").write_text(_whole(results))
    readme = BENCH / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{_summary(results, pictures)}{END}{after}")
    print(f"README.md and results/{results.name}.md, {len(pictures)} pictures", file=sys.stderr)


# -- words ---------------------------------------------------------------------------------------------------------------


def _summary(results: Results, pictures: list[Path]) -> str:
    lines = [
        f"From `results/{results.name}.json`; every table is in [results/{results.name}.md](results/{results.name}.md)."
    ]
    if results.name == "quick":
        lines.append(
            "\n**A quick run** on a machine that others were using: it shows that everything runs, and which way the "
            "figures lean. It settles nothing."
        )
    lines += ["", *_environment(results), "", "### What must be true", "", *_claims(results), ""]
    lines += ["### Where requests and gigabytes go", "", *profile.tables(results)]
    for path in pictures:
        lines.append(f"![{path.stem.replace('-', ' ')}](results/{path.name})\n")
    return "\n".join(lines) + "\n"


def _environment(results: Results) -> list[str]:
    known = results.environment
    names = ("machine", "cpu", "cores", "memory_mib", "kernel", "ktls", "openssl", "python", "commit", "time")
    lines = [", ".join(f"{name} {known[name]}" for name in names) + ".", ""]
    versions = known["versions"]
    if isinstance(versions, Mapping):
        lines += ["Versions: " + ", ".join(f"{name}: {version}" for name, version in versions.items()) + ".", ""]
    if results.absent:
        lines += ["Not measured:", *(f"- {name}: {reason}" for name, reason in results.absent.items()), ""]
    noise = _noise(results)
    if noise:
        lines.append(f"Noise: the same thing measured twice (`direct again` to `direct`), case by case: {noise}.")
    return lines


def _noise(results: Results) -> str:
    words = []
    for value in ("p50_us", "p99_us", "p99.9_us"):
        ratios = []
        for key in results.cases("added_latency"):
            once, again = (results.median("added_latency", p, value, dict(key)) for p in ("direct", "direct again"))
            if once and again:
                ratios.append(again / once)
        if ratios:
            words.append(f"{value.removesuffix('_us')} {min(ratios):.2f} to {max(ratios):.2f}")
    return ", ".join(words)


def _claims(results: Results) -> list[str]:
    lines = ["| | claim | limit | measured (range over cases) | |", "| --- | --- | --- | --- | --- |"]
    for claim in all_claims(results):
        verdict = "holds" if claim.holds else "**does not hold**"
        lines.append(
            f"| {claim.number} | {claim.text} | {claim.side} {claim.limit:.3g} "
            f"| {claim.figure:.2f} ({claim.low:.2f} to {claim.high:.2f}) | {verdict} |"
        )
    return lines


def _whole(results: Results) -> str:
    lines = [f"# All figures of results/{results.name}.json", "", MEANING, ""]
    lines += _tables(results, added_latency.KNEE, "Knees: closed loop, 64 connections", ("requests_per_s",))
    for name in QUESTIONS:
        module = importlib.import_module(f"bench.questions.{name}")
        lines += _tables(results, module.QUESTION, module.TITLE, module.SHOWN)
    lines += _tables(results, new_connections.MICRO, "Parts of a new connection in Python, by pyperf", ("us",))
    return "\n".join(lines)


def _tables(results: Results, question: str, title: str, shown: Sequence[str]) -> list[str]:
    cases, peers = results.cases(question), results.peers(question)
    lines = [f"## {title}", ""] if cases else []
    for value in shown if cases else ():
        lines += [f"**{value}**", "", f"| case | {' | '.join(peers)} |", "| --- |" + " ---: |" * len(peers)]
        for key in cases:
            cells = [_cell(results, question, peer, value, dict(key)) for peer in peers]
            if any(cells):
                words = ", ".join(f"{part} {what}" for part, what in key)
                lines.append(f"| {words} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def _cell(results: Results, question: str, peer: str, value: str, case: Mapping[str, CaseValue]) -> str:
    found = results.summary(question, peer, value, case)
    if found is None:
        return ""
    words = f"{number_words(found.median)} ({number_words(found.low)} to {number_words(found.high)})"
    ours = results.median(question, OURS, value, case)
    return words if peer == OURS or ours is None or not found.median else f"{words} {ours / found.median:.2f}×"


# -- pictures ------------------------------------------------------------------------------------------------------------


def _draw(results: Results) -> list[Path]:
    drawn: list[Path] = []

    def keep(name: str, text: str) -> None:
        path = RESULTS / f"{name}.svg"
        path.write_text(text)
        drawn.append(path)

    def bars(
        name: str, title: str, unit: str, question: str, parts: Mapping[str, tuple[str, Mapping[str, CaseValue]]]
    ) -> None:
        rows = [
            Bars(peer, tuple(results.summary(question, peer, value, case) for value, case in parts.values()))
            for peer in results.peers(question)
        ]
        rows = [row for row in rows if any(value and value.high for value in row.values)]
        if rows:
            keep(name, draw_bars(title, unit, list(parts), rows))

    bars(
        "latency",
        "Median of a small call on a warm connection, half of the knee, 64 connections",
        "µs",
        "added_latency",
        {wire: ("p50_us", {"wire": wire, **MIDDLE}) for wire in ("plain", "tls")},
    )
    _spectrum(results, keep)
    downs: dict[str, CaseValue] = {"direction": "download", "connections": 1}
    bars(
        "cost-of-bytes",
        "CPU seconds for a gigabyte down one connection",
        "s",
        "cost_of_bytes",
        {wire: ("cpu_s_per_gb", {"wire": wire, **downs}) for wire in ("plain", "tls")},
    )
    bars(
        "new-connections",
        "New TLS connections for a second of the proxy's CPU",
        "",
        "new_connections",
        {f"resumption {how}": ("per_core_second", {"wire": "tls", "resumption": how}) for how in ("no", "offered")},
    )
    bars(
        "idle-memory",
        "Memory of the process for an idle connection",
        "KiB",
        "idle_connections",
        {wire: ("process_kib", {"wire": wire}) for wire in ("plain", "tls")},
    )
    bars(
        "overload",
        "p99 of a small call at half of the knee, before and after a time at twice the knee",
        "µs",
        "overload",
        {"before": ("before_p99_us", {}), "after": ("after_p99_us", {})},
    )
    _python(results, keep)
    return drawn


def _python(results: Results, keep: Callable[[str, str], None]) -> None:
    """The reason for the engine: what Python's proxies cost, in multiples of what ours does."""
    series: dict[str, dict[str, CaseValue]] = {
        f"{work}, {wire}": {"wire": wire, "work": work} for work in ("request", "GB down") for wire in ("plain", "tls")
    }
    rows = []
    for peer in PYTHONS:
        values: list[Summary | None] = []
        for case in series.values():
            ours = results.median(profile.QUESTION, OURS, "cpu", case)
            found = results.summary(profile.QUESTION, peer, "cpu", case)
            values.append(
                Summary(found.median / ours, found.low / ours, found.high / ours, found.count)
                if ours and found is not None
                else None
            )
        rows.append(Bars(peer, tuple(values)))
    if any(value for row in rows for value in row.values):
        keep("python", draw_bars("CPU of a Python proxy, in multiples of bentpipe's", "×", list(series), rows))


def _spectrum(results: Results, keep: Callable[[str, str], None]) -> None:
    curves = []
    for peer in results.peers("added_latency"):
        histogram = results.histogram("added_latency", peer, "latency_ns", {"wire": "plain", **MIDDLE})
        if histogram is not None and peer != "direct again":
            curve = [(q, float(histogram.get_value_at_percentile(q * 100)) / 1e3) for q in QUANTILES]
            curves.append((peer, curve))
    if curves:
        keep("latency-spectrum", draw_curves("Latency by percentile, plain, half of the knee, 64 connections", curves))


if __name__ == "__main__":
    main()
