#!/usr/bin/env python3
"""Speed and memory beside the peers; run by testdata/bench.sh, which says what is needed.

Every figure is of a whole process with the children it waited for: wall, user and system seconds, and the peak memory of
the largest of them. The commands of a group take turns (A B C A B C ...), each on an empty store with nothing left to
write back, and the median of the runs is printed, so that a comparison holds when the machine's speed drifts. System
calls are counted in one more run of each, under strace.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import bench_cache
import bench_chunked
import bench_store

OUT, PORT = sys.argv[1], sys.argv[2]
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
ONLY = re.compile(os.environ.get("BENCH_ONLY", "."))
WORK = os.path.join(OUT, "work")
PEERS = os.path.join(OUT, "peers")
OURS = os.path.abspath(os.environ.get("BENCH_PROGRAM", os.path.join(OUT, "../release/cfs-update")))
REGISTRY = f"127.0.0.1:{PORT}/os"
# Less room than this, in bytes, and what was put aside is removed.
ENOUGH = 12 << 30
LAYERS = sorted(os.listdir(os.path.join(OUT, "layers")))
report = []


def say(line=""):
    print(line, flush=True)
    report.append(line)


def fresh(name):
    """An empty folder. What was there is only put aside: ext4 does not give the inodes of removed files away again for a
    minute (fs/ext4/ialloc.c, recently_deleted), and searching past them is most of the system time of whoever makes files then."""
    path = os.path.join(WORK, name)
    if os.path.exists(path):
        aside = os.path.join(WORK, "aside")
        os.makedirs(aside, exist_ok=True)
        os.rename(path, os.path.join(aside, str(time.monotonic_ns())))
        if shutil.disk_usage(WORK).free < ENOUGH:
            shutil.rmtree(aside)
            time.sleep(61)
    os.makedirs(path)
    return path


def apart(make):
    """Does it in a process of its own: what a child began with in memory counts as its peak."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("what is to be measured could not be made")
    return make()


def inside(path):
    """The same path as the peers in their root see it."""
    return "/bench" + os.path.realpath(path)[len(os.path.realpath(OUT)):]


def peer(*command):
    return ["chroot", PEERS, "env", "HOME=/root", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PODMAN_IGNORE_CGROUPSV1_WARNING=1", *command]


class Figure:
    def __init__(self, wall, user, system, peak):
        self.wall, self.user, self.system, self.peak = wall, user, system, peak


def run(command, codes=(0,), prefix=()):
    os.sync()
    with open(os.path.join(OUT, "last.log"), "wb") as log:
        started = time.monotonic()
        child = subprocess.Popen([*prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in codes:
        sys.stderr.write(open(os.path.join(OUT, "last.log"), errors="replace").read()[-4000:])
        raise SystemExit(f"exit code {child.returncode} of {' '.join(command)}")
    return Figure(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 1024)


def calls(command, codes=(0,)):
    """System calls by name, of one run with all its threads and children."""
    path = os.path.join(OUT, "strace.txt")
    run(command, codes, ("strace", "-f", "-c", "-U", "name,calls", "-o", path))
    counts = {}
    for line in open(path):
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            counts[words[0]] = int(words[1])
    counts.pop("total", None)
    return counts


class Contender:
    """One command of a group: `prepare` empties what it writes to and returns the command."""

    def __init__(self, name, prepare, codes=(0,), count=False):
        self.name, self.prepare, self.codes, self.count = name, prepare, codes, count
        self.figures, self.counts = [], None

    def median(self, field):
        return statistics.median(getattr(f, field) for f in self.figures)


def group(title, contenders, runs=RUNS):
    if not ONLY.search(title):
        return None
    for _ in range(runs):
        for c in contenders:
            c.figures.append(run(c.prepare(), c.codes))
    for c in contenders:
        if c.count:
            c.counts = calls(c.prepare(), c.codes)
    first = contenders[0]
    say(f"\n### {title}\n")
    say(f"Median of {runs} interleaved runs; ratios are {first.name} / the other.\n")
    say("| command | wall s | min–max | user s | system s | user+sys s | peak MB | system calls | wall ratio | user ratio | CPU ratio |")
    say("|---|---|---|---|---|---|---|---|---|---|---|")
    for c in contenders:
        wall, user, system = c.median("wall"), c.median("user"), c.median("system")
        walls = [f.wall for f in c.figures]
        ratio = lambda mine, other: "–" if c is first else f"{mine / max(other, 1e-4):.2f}"
        say(f"| {c.name} | {wall:.2f} | {min(walls):.2f}–{max(walls):.2f} | {user:.2f} | {system:.2f} | {user + system:.2f} "
            f"| {c.median('peak'):.0f} | {sum(c.counts.values()) if c.counts else '–'} "
            f"| {ratio(first.median('wall'), wall)} | {ratio(first.median('user'), user)} "
            f"| {ratio(first.median('user') + first.median('system'), user + system)} |")
    for c in contenders:
        if c.counts:
            top = sorted(c.counts.items(), key=lambda kv: -kv[1])[:8]
            sync = {k: v for k, v in c.counts.items() if k in ("fsync", "fdatasync", "syncfs", "sync")}
            say(f"\n{c.name}: {', '.join(f'{k} {v}' for k, v in top)}; {sync}; "
                f"{sum(c.counts.values()) / FILES:.1f} calls a file")
    return contenders


def count_files():
    files = regular = 0
    for layer in LAYERS:
        listing = subprocess.run(["tar", "tvf", os.path.join(OUT, "layers", layer)], capture_output=True, check=True).stdout
        for line in listing.split(b"\n"):
            files += bool(line)
            regular += line.startswith(b"-")
    return files, regular


# --- What is compared ------------------------------------------------------------------------------------------------

def cold_ours(source):
    def prepare():
        return [OURS, "--quiet", "--sysroot", fresh("ours"), "switch", source]
    return prepare


def cold_cfsctl(source):
    def prepare():
        repo = inside(fresh("cfsctl"))
        subprocess.run(peer("cfsctl", "--repo", repo, "init", "--insecure", "--algorithm", "fsverity-sha256-12"), check=True,
                       stdout=subprocess.DEVNULL)
        return peer("cfsctl", "--repo", repo, "oci", "pull", "--bootable", source, "os")
    return prepare


def cold_skopeo(how):
    def prepare():
        return peer("skopeo", "copy", "--quiet", f"docker://{REGISTRY}:{how}", f"oci:{inside(fresh('skopeo'))}:{how}")
    return prepare


def podman(*arguments):
    root = inside(os.path.join(WORK, "podman"))
    return peer("podman", "--root", root + "/root", "--runroot", root + "/run", "--storage-driver", "overlay", *arguments)


def cold_podman(how):
    def prepare():
        fresh("podman")
        return podman("pull", "--quiet", f"{REGISTRY}:{how}")
    return prepare


def lower_bound(how):
    """Decompress and write the same files: what no import can do without."""
    manifest = json.load(open(os.path.join(OUT, "oci", "index.json")))["manifests"]
    digest = next(m["digest"] for m in manifest if m["annotations"]["org.opencontainers.image.ref.name"] == how)
    blob = lambda d: os.path.join(OUT, "oci/blobs/sha256", d.split(":")[1])
    blobs = [blob(layer["digest"]) for layer in json.load(open(blob(digest)))["layers"]]

    def prepare():
        target = fresh("lower")
        lines = [f"mkdir {target}/{i} && {how} -dc {b} | tar -x -C {target}/{i}" for i, b in enumerate(blobs)]
        return ["sh", "-ec", "\n".join(lines)]
    return prepare


FILES, REGULAR = count_files()
size = sum(os.path.getsize(os.path.join(OUT, "layers", l)) for l in LAYERS)
say(f"{FILES} entries ({REGULAR} regular files) in {len(LAYERS)} layers, {size / 1e6:.0f} MB of tar; "
    f"{os.cpu_count()} processors, kernel {os.uname().release}")
for tool in (["skopeo", "--version"], ["podman", "--version"]):
    say(subprocess.run(peer(*tool), capture_output=True, text=True).stdout.strip())

have_podman = subprocess.run(cold_podman("zstd")(), capture_output=True).returncode == 0
if not have_podman:
    say("podman pull does not work in this place: left out")
for how in ("gzip", "zstd"):
    group(f"Cold switch from the registry, {how}", [
        Contender("cfs-update switch", cold_ours(f"{REGISTRY}:{how}"), count=True),
        Contender("cfsctl oci pull --bootable", cold_cfsctl(f"docker://{REGISTRY}:{how}"), count=how == "zstd"),
        Contender("skopeo copy to an OCI folder", cold_skopeo(how)),
        *([Contender("podman pull", cold_podman(how))] if have_podman else []),
        Contender(f"{how} -dc, tar -x (lower bound)", lower_bound(how), count=how == "zstd"),
    ])
group("Cold switch from an OCI layout, zstd", [
    Contender("cfs-update switch", cold_ours(f"oci:{OUT}/oci:zstd")),
    Contender("cfsctl oci pull --bootable", cold_cfsctl("oci:/bench/oci:zstd")),
])

if ONLY.search("Unchanged check"):
    run(cold_ours(f"{REGISTRY}:zstd")())
    run(cold_cfsctl(f"docker://{REGISTRY}:zstd")())
    if have_podman:
        run(cold_podman("zstd")())
    again = [
        Contender("cfs-update upgrade", lambda: [OURS, "--quiet", "--sysroot", os.path.join(WORK, "ours"), "upgrade"],
                  codes=(77,), count=True),
        Contender("cfsctl oci pull", lambda: peer("cfsctl", "--repo", inside(os.path.join(WORK, "cfsctl")), "oci", "pull",
                                                  "--bootable", f"docker://{REGISTRY}:zstd", "os")),
    ]
    if have_podman:
        again.append(Contender("podman pull", lambda: podman("pull", "--quiet", f"{REGISTRY}:zstd")))
    group("Unchanged check", again, max(RUNS, 5))

if ONLY.search("Image generation"):
    run(cold_ours(f"{REGISTRY}:zstd")())
    dump = os.path.join(WORK, "image.dump")
    with open(dump, "wb") as f:
        subprocess.run([OURS, "--sysroot", os.path.join(WORK, "ours"), "image", "dump", f"{REGISTRY}:zstd"], stdout=f, check=True)
    say(f"\ndump file: {sum(1 for _ in open(dump, 'rb'))} entries, {os.path.getsize(dump) / 1e6:.1f} MB")
    ours_out, peer_out = os.path.join(WORK, "ours.erofs"), os.path.join(WORK, "peer.erofs")
    group("Image generation from a dump file", [
        Contender("cfs-update image build", lambda: [OURS, "--quiet", "image", "build", dump, "-o", ours_out]),
        Contender("composefs 0.9.4 mkcomposefs --from-file", lambda: peer(
            "mkcomposefs", "--from-file", "--min-version=1", "--max-version=1", inside(dump), inside(peer_out))),
    ], max(RUNS, 7))
    same = open(ours_out, "rb").read() == open(peer_out, "rb").read()
    say(f"\nboth images are {'the same, byte for byte' if same else 'NOT the same'}: {os.path.getsize(ours_out)} bytes")
    tree = fresh("tree")
    for layer in LAYERS:
        subprocess.run(["tar", "-x", "--xattrs", "--xattrs-include=*", "-f", os.path.join(OUT, "layers", layer), "-C", tree], check=True)
    group("Image generation from a tree", [
        Contender("cfs-update image build", lambda: [OURS, "--quiet", "image", "build", tree, "-o", ours_out]),
        Contender("composefs 0.9.4 mkcomposefs", lambda: peer(
            "mkcomposefs", "--min-version=1", "--max-version=1", inside(tree), inside(peer_out))),
    ])
    same = open(ours_out, "rb").read() == open(peer_out, "rb").read()
    say(f"\nboth images are {'the same, byte for byte' if same else 'NOT the same'}: {os.path.getsize(ours_out)} bytes")

if ONLY.search("Chunked update"):
    bench_chunked.Bench(globals()).measure()
if ONLY.search("Store size") or ONLY.search("Page cache"):
    bench_store.Bench(globals()).measure()
    bench_cache.Bench(globals()).measure()

shutil.rmtree(WORK, ignore_errors=True)
with open(os.path.join(OUT, "result.md"), "w") as f:
    f.write("\n".join(report) + "\n")
