#!/usr/bin/env python3
"""The program in a virtual machine: runs scenarios, prints a table of what was seen, ends with 1 if anything is off.

    testdata/vm/run.py [SCENARIO…]        all of them without an argument; `store`, `install`, `boot`

Environment: CFS_PROGRAM (the program; target/debug/cfs-update), CFS_VM_WORK (folder; target/vm), CFS_VM_ACCEL (tcg).
"""

import fcntl
import os
import pathlib
import sys

sys.dont_write_bytecode = True

import boot
import image
import install
import report
import store

SCENARIOS = {"store": store.run, "install": install.run, "boot": boot.run}


def main(names):
    """Runs scenarios one after the other."""
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        print(f"no scenario is called {', '.join(sorted(unknown))}; there are: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("run it as root: the files of a disk image keep the owners that the layers give them", file=sys.stderr)
        return 2
    work = pathlib.Path(os.environ.get("CFS_VM_WORK", image.REPO / "target" / "vm")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    table = report.Report()
    with open(work / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names or SCENARIOS:
            print(f"== {name}", flush=True)
            try:
                SCENARIOS[name](table, work)
            except report.Aborted as aborted:
                print(f"{name}: ended at the step: {aborted}", flush=True)
    print(f"\n{table.table()}", flush=True)
    return 1 if table.failed() or not table.rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
