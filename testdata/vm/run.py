#!/usr/bin/env python3
"""The program in a virtual machine: runs scenarios, prints a table of what was seen, ends with 1 if anything is off.

    testdata/vm/run.py [SCENARIO…]        all of them without an argument; `store`, `containers`, `install`, `boot`, `cuts`

Environment: CFS_PROGRAM (the program; target/debug/cfs-update), CFS_VM_WORK (folder; target/vm), CFS_VM_ACCEL (tcg),
CFS_VM_LANES (2: machines side by side), CFS_VM_PROCESSORS (1: of each machine), CFS_VM_SEED (of the random moments).
"""

import fcntl
import os
import pathlib
import sys
import threading
import traceback

sys.dont_write_bytecode = True

import boot
import containers
import cuts
import direct
import image
import install
import report
import store
from registry import Registry

SCENARIOS = ["store", "containers", "install", "boot", "cuts"]


class Run:
    """What the lanes share: the table, the registry, the scenarios that are left."""

    def __init__(self, work, names, registry):
        self.work, self.registry = work, registry
        self.report = report.Report()
        self.parts = {name: self.report.part(name) for name in ["images", *SCENARIOS] if name in names or name == "images"}
        self.numbers = cuts.Numbers(self.report)

    def scenario(self, name, lane):
        """Runs one; what goes wrong in it does not stop the others."""
        part = self.parts.get(name)
        if part is None:
            return
        try:
            if name == "boot":
                boot.run(part, self.work, self.registry, self.parts.get("cuts"), self.numbers)
            elif name == "cuts":
                cuts.run(part, self.work, self.registry, self.numbers, f"cuts{lane}")
            else:
                {"store": store.run, "containers": containers.run, "install": install.run}[name](part, self.work, self.registry)
        except report.Aborted as aborted:
            self.report.say(f"{name}: ended at the step: {aborted}")
        except Exception:  # a lane that dies would look as if it had nothing to say
            part.rows.append(("FAILED", "the scenario itself", 0.0, traceback.format_exc(limit=-3)))
            self.report.say(traceback.format_exc())

    def lane(self, lane, names):
        """One lane: its scenarios, one after the other."""
        for name in names:
            self.scenario(name, lane)


def main(names):
    """Runs scenarios in lanes."""
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        print(f"no scenario is called {', '.join(sorted(unknown))}; there are: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("run it as root: the files of a disk image keep the owners that the layers give them", file=sys.stderr)
        return 2
    work = pathlib.Path(os.environ.get("CFS_VM_WORK", image.REPO / "target" / "vm")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    with open(work / ".lock", "w") as lock, Registry(work / "registry") as registry:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = Run(work, names or SCENARIOS, registry)
        try:
            with run.parts["images"].step("Debian 13 by examples/debian-13, made where anything changed", vital=True):
                direct.Machine(work, "images")
            _lanes(run)
        except report.Aborted:
            pass
    print(f"\n{run.report.table()}", flush=True)
    return 1 if run.report.failed() or len(run.report.rows()) < 2 else 0


def _lanes(run):
    plan = [["boot", "cuts"], ["store", "containers", "install", "cuts"]]
    if os.environ.get("CFS_VM_LANES", "2") == "1":
        plan = [["store", "containers", "install", "boot", "cuts"]]
    threads = [threading.Thread(target=run.lane, args=(number, names)) for number, names in enumerate(plan, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
