"""The metrics of a daemon, as a scraper reads them."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

DEADLINE_S = 40.0


def samples_of(text: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and the value of its one label."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(port: int, deadline_s: float = DEADLINE_S) -> dict[tuple[str, str], float]:
    """The same, asked for at a port of this host."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=deadline_s) as answer:
        return samples_of(answer.read().decode())
