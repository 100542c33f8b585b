"""The tests of `tests.kills` for as long as one likes.

python -m tests.soak --kills 500 --seed 7
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.kills import SCHEMES, Tally, every_step, random_kills


@click.command()
@click.option("--kills", default=500, envvar="SOAK_KILLS", help="At random, of each store.")
@click.option("--seed", default=1, envvar="SOAK_SEED", help="Decides corpora and moments.")
@click.option("--documents", default=600, envvar="SOAK_DOCUMENTS", help="In each version.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON at the end.")
def main(*, kills: int, seed: int, documents: int, as_json: bool) -> None:
    """Kill ingests right before every step, then at random, and tell what was checked."""
    counts = []
    for scheme in SCHEMES:
        with TemporaryDirectory() as name:
            rounds = every_step(scheme, Path(name), seed=seed)
            counts.append(_told(rounds, scheme, "every step"))
        with TemporaryDirectory() as name:
            rounds = random_kills(scheme, Path(name), seed=seed, kills=kills, documents=documents)
            counts.append(_told(rounds, scheme, "random"))
    if as_json:
        click.echo(json.dumps(counts))


def _told(rounds: Iterator[Tally], scheme: str, moments: str) -> dict[str, object]:
    started = time.perf_counter()
    tally = Tally()
    for tally in rounds:
        click.echo(f"{scheme}, {moments}: {tally}", err=True)
    seconds = round(time.perf_counter() - started, 1)
    return {"store": scheme, "moments": moments, "seconds": seconds} | vars(tally)


if __name__ == "__main__":
    main()
