"""Scenario "cuts": the machine loses its power at random moments of an upgrade; the old or the new version boots, always.

The cuts are numbered; each lane takes the next number, and goes on with a machine of its own, so that two machines share the
work. The moment of a cut follows from its number and the seed alone (as a part of how long an upgrade takes there).
"""

import os
import random
import time

import machine
from machine import Running
from qemu import Guest
from report import Aborted, expect

CUTS = 10
# The boot after this cut has a hardware clock that lost its battery.
OLD_CLOCK = 4


class Numbers:
    """The numbers that are left, for all lanes; the seed is printed and may be set (CFS_VM_SEED)."""

    def __init__(self, report):
        self.seed = int(os.environ.get("CFS_VM_SEED") or time.time())
        self.left = list(range(CUTS))
        self.lock = report.lock

    def take(self):
        """The next one; `None` at the end."""
        with self.lock:
            return self.left.pop(0) if self.left else None

    def moment(self, number):
        """When to cut: a part of the time that an upgrade takes, a little more than all of it included."""
        return random.Random(f"{self.seed}-{number}").uniform(0, 1.1)


def run(part, work, registry, numbers, name):
    """One lane's share, on a copy of the installed machine."""
    if not numbers.left:
        return
    disk = machine.copy_disk(machine.installed(part, work, registry), work / name / "disk.img")
    images = machine.Images(work, name)
    with Guest(work / name / "machine", [disk]) as guest:
        with part.step(f"a machine for power cuts boots ({name})", vital=True) as note:
            guest.start()
            note(f"{guest.wait_ready():.0f} s to the agent")
            guest.check(machine.insecure(registry))
        Chain(part, guest, registry, images, f"{name}:latest", numbers).run()
        with part.step(f"no trouble of kernel or emulation on the console ({name})"):
            expect(not guest.trouble(), "\n".join(guest.trouble()[:5]))


class Chain(Running):
    """Cut after cut on one machine."""

    def __init__(self, part, guest, registry, images, follows, numbers):
        super().__init__(part, guest, registry, images, follows)
        self.numbers, self.span, self.waiting = numbers, None, None

    def run(self):
        """Until no number is left."""
        with self.part.step("an upgrade by its length; the power is cut as soon as it has ended", vital=True) as note:
            self._measured(note)
        while (number := self.numbers.take()) is not None:
            with self.part.step(f"power cut {number + 1} of {CUTS} during an upgrade: old or new boots") as note:
                self.running()
                self._cut(number, note)

    def _measured(self, note):
        self._publish("measured")
        began = time.monotonic()
        verb = "upgrade" if self.follows == machine.FOLLOWED else f"switch {self.registry.name(self.follows)}"
        self.guest.check(f"cfs-update {verb}", timeout=300)
        self.span = time.monotonic() - began
        self._power_cut()
        note(f"{self.guest.wait_ready():.0f} s to the agent")
        digest, version = self.booted()
        expect(version == "measured", f"the update had ended, but {version} runs")
        note(f"{self.span:.1f} s; {self.fsck()}")

    def _publish(self, name):
        self.images.version(name)
        self.push(name)

    def _power_cut(self, clock=None):
        self.guest.kill()
        self.guest.start(clock)

    def _cut(self, number, note):
        old, _ = self.booted()
        name = f"cut-{number + 1}"
        self._publish(name)
        part = self.numbers.moment(number)
        self.guest.send("cfs-update upgrade")
        time.sleep(part * self.span)
        clock = "1970-01-01" if number == OLD_CLOCK else None
        self._power_cut(clock)
        took = self.guest.wait_ready()
        digest, version = self.booted()
        expect(digest == old or version in (name, self.waiting), f"neither old nor new: {version}")
        self.waiting = None
        note(f"after {part * self.span:.1f} of {self.span:.1f} s: {'old' if digest == old else 'new'} in {took:.0f} s; "
             f"{self.fsck()}; CFS_VM_SEED={self.numbers.seed}")
        if clock:
            note(f"hardware clock at {clock}, the system says {self.guest.check('date -u +%F').strip()}")
            self.waiting = "old-clock"
            self._publish(self.waiting)
            self.guest.check("cfs-update upgrade", timeout=300)
            expect(self.waiting in str(self.status()["staged"]), "the upgrade with an old clock staged nothing")


def after(part, guest, registry, images, numbers):
    """A lane that has a running machine already cuts that one."""
    try:
        Chain(part, guest, registry, images, machine.FOLLOWED, numbers).run()
    except Aborted as aborted:
        part.report.say(f"cuts: ended at the step: {aborted}")
