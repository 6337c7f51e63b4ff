"""The table of what was seen: one row for each step, with its time and what it showed.

Invariant: a step counts as seen only when its block ran to the end; whatever is raised in it makes the row, and the whole
run, a failure. Scenarios that run side by side each have a `Part` of their own; the table holds the parts one after the other.
"""

import contextlib
import os
import resource
import threading
import time
import traceback


class Failure(Exception):
    """Something was not as it must be."""


def expect(condition, message):
    """What must hold."""
    if not condition:
        raise Failure(message)


class Report:
    """The parts, in the order in which they were asked for."""

    def __init__(self):
        self.started = time.monotonic()
        self.parts = []
        self.lock = threading.Lock()

    def part(self, name):
        """Rows of one scenario."""
        part = Part(self, name)
        self.parts.append(part)
        return part

    def say(self, text):
        """Prints a line or more at once, whoever else prints."""
        with self.lock:
            print(text, flush=True)

    def rows(self):
        """Every row, with the part's name in front."""
        return [(part.name, *row) for part in self.parts for row in part.rows]

    def failed(self):
        """How many steps did not show what they had to."""
        return sum(row[1] != "ok" for row in self.rows())

    def table(self):
        """The whole table as text."""
        rows = self.rows()
        width = max((len(row[2]) for row in rows), default=0)
        name = max((len(row[0]) for row in rows), default=0)
        lines = [f"{'':6} {'':{name}} {'seconds':>8}  {'step':{width}}  what was seen"]
        for part, verdict, title, took, notes in rows:
            first = notes.splitlines()[0] if notes else ""
            lines.append(f"{verdict:6} {part:{name}} {took:8.1f}  {title:{width}}  {first[:200]}")
        total = time.monotonic() - self.started
        used = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
                   for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        lines.append(f"{len(rows)} steps, {self.failed()} failed, {total / 60:.1f} minutes, "
                     f"{used / 60:.1f} minutes of processor time, {os.cpu_count()} processors, load {os.getloadavg()[2]:.1f}")
        return "\n".join(lines)


class Part:
    """Rows in the order in which they happened."""

    def __init__(self, report, name):
        self.report, self.name, self.rows = report, name, []

    @contextlib.contextmanager
    def step(self, title, vital=False):
        """One row. `vital`: without it the rest makes no sense, so its failure ends the scenario."""
        notes = []
        began = time.monotonic()
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
        since = time.monotonic() - self.report.started
        lines = [f"{since:6.0f} s  {verdict:>6} {took:6.1f} s  {self.name}: {title}"]
        lines += [str(note) for note in notes] if verdict != "ok" else []
        self.report.say("\n".join(lines))


class Aborted(Exception):
    """A vital step failed; its row says why."""
