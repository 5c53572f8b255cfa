"""The figures of an attack, the table of them all, and its place in docs/trust.md."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.torture.attack import Attack, Case, Outcome, Verdict

BEGIN = "<!-- written by `make torture WRITE=docs/trust.md`: do not edit -->"
END = "<!-- end of what is written -->"

MOST_FAILURES = 10  # of an attack that are told once more in the end

COLUMNS = ("attack", "tried", *(verdict.value for verdict in Verdict), "minutes")


@dataclasses.dataclass
class Tally:
    """What is known of one attack so far.

    Args:
        seconds: the time that it took, with its preparation.
        verdicts: how many cases ended in each way.
        failures: the cases that did not end as they should, with what was seen.
    """

    seconds: float = 0.0
    verdicts: Counter[Verdict] = dataclasses.field(default_factory=Counter)
    failures: list[tuple[Case, Outcome]] = dataclasses.field(default_factory=list)

    def add(self, case: Case, outcome: Outcome) -> None:
        """Counts a case."""
        self.verdicts[outcome.verdict] += 1
        if outcome.verdict is not Verdict.RIGHT:
            self.failures.append((case, outcome))

    @property
    def tried(self) -> int:
        """How many cases were tried."""
        return self.verdicts.total()


Tallies = Mapping[str, Tally]


def rows(tallies: Tallies) -> list[tuple[str, ...]]:
    """Returns the cells of the table below `COLUMNS`, the last row for all attacks."""
    total = Tally()
    lines = []
    for tally in tallies.values():
        total.seconds += tally.seconds
        total.verdicts += tally.verdicts
    for name, tally in [*tallies.items(), ("all", total)]:
        counts = [tally.tried, *(tally.verdicts[verdict] for verdict in Verdict)]
        minutes = f"{tally.seconds / 60:.1f}"
        lines.append((name, *(f"{count:,}" for count in counts), minutes))
    return lines


def text_table(tallies: Tallies) -> str:
    """Formats the table for a terminal."""
    lines = [COLUMNS, *rows(tallies)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def failure_line(case: Case, outcome: Outcome) -> str:
    """Says which case failed, how, and what repeats it."""
    return (
        f"{outcome.verdict.value}: {case.name} ({case.kind}): {outcome.reason}; "
        f"--repeat {case.name} --seed {case.seed}"
    )


def failure_lines(tallies: Tallies) -> list[str]:
    """Tells the first cases of each attack that did not end as they should."""
    lines = []
    for name, tally in tallies.items():
        first = sorted(tally.failures, key=lambda one: one[1].verdict is Verdict.WRONG)
        lines += [failure_line(*failure) for failure in first[:MOST_FAILURES]]
        if len(first) > MOST_FAILURES:
            lines.append(f"and {len(first) - MOST_FAILURES:,} more of {name}")
    return lines


def markdown(attacks: Sequence[Attack], tallies: Tallies, heading: str) -> str:
    """Formats the table, and every case that failed, for a document."""
    lines = [
        heading,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| --- |{' ---: |' * (len(COLUMNS) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows(tallies)),
        "",
    ]
    if failures := failure_lines(tallies):
        lines += ["Cases that did not end as they should:", ""]
        lines += [f"- {line}" for line in failures]
    else:
        lines += ["Every case ended as it should."]
    lines += ["", "| attack | what is done | what counts as ended as it should |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| {one.name} | {one.does} | {one.right} |" for one in attacks]
    return "\n".join(lines)


def write_block(path: Path, block: str) -> None:
    """Puts a text between the marks `BEGIN` and `END` of a document.

    Raises:
        ValueError: the document has no such marks; the message names it.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(
            f"expected the lines {BEGIN!r} and {END!r} in {path}, between which the "
            "table goes; put them there"
        )
    path.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}")
