"""The table of what was seen: one row for each step, with its time and what it showed.

Invariant: a step counts as seen only when its block ran to the end; whatever is raised in it makes the row, and the whole
run, a failure.
"""

import contextlib
import time
import traceback


class Failure(Exception):
    """Something was not as it must be."""


def expect(condition, message):
    """What must hold."""
    if not condition:
        raise Failure(message)


class Report:
    """Rows in the order in which they happened."""

    def __init__(self):
        self.rows = []
        self.started = time.monotonic()
        self.titles = []

    @contextlib.contextmanager
    def step(self, title, vital=False):
        """One row. `vital`: without it the rest makes no sense, so its failure ends the scenario."""
        notes = []
        began = time.monotonic()
        print(f"   … {title}", flush=True)
        try:
            yield notes.append
            self._row("ok", title, began, notes)
        except Exception as error:  # every kind of failure becomes a row
            if not isinstance(error, Failure):
                notes.append(traceback.format_exc(limit=-2))
            self._row("FAILED", title, began, [str(error), *notes])
            if vital:
                raise Aborted(title) from error

    def _row(self, verdict, title, began, notes):
        took = time.monotonic() - began
        self.rows.append((verdict, title, took, "; ".join(str(note) for note in notes)))
        print(f"{verdict:>6} {took:6.1f} s  {title}", flush=True)
        if verdict != "ok":
            print("\n".join(str(note) for note in notes), flush=True)

    def failed(self):
        """How many steps did not show what they had to."""
        return sum(row[0] != "ok" for row in self.rows)

    def table(self):
        """The whole table as text."""
        width = max((len(row[1]) for row in self.rows), default=0)
        lines = [f"{'':6} {'seconds':>8}  {'step':{width}}  what was seen"]
        for verdict, title, took, notes in self.rows:
            first = notes.splitlines()[0] if notes else ""
            lines.append(f"{verdict:6} {took:8.1f}  {title:{width}}  {first[:160]}")
        total = time.monotonic() - self.started
        lines.append(f"{len(self.rows)} steps, {self.failed()} failed, {total / 60:.1f} minutes")
        return "\n".join(lines)


class Aborted(Exception):
    """A vital step failed; its row says why."""
