"""An update in which 5 % of the files differ, in one big layer: zstd:chunked, beside podman with partial pulls and skopeo.

Version 2 has every twentieth file that is not empty with its bytes in reverse: all of it differs, and it compresses about as
well. BENCH_DRAW, 0 to 19, is which twentieth: they hold between 3 and 13 % of the bytes of the image that was measured. skopeo
of the peers' Debian 13 compresses both versions. Bytes are those that the registry's access log says it sent.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile

EVERY = 20
DRAW = int(os.environ.get("BENCH_DRAW", "14")) % EVERY
# Bytes a second of the last group: a network of 100 Mbit/s.
RATE = "12500000"
KIND = "application/vnd.oci.image"
PREFIX = "io.github.containers.zstd-chunked."


def merge(layers, path, draw=None):
    """All layers in one tar; with a draw, every twentieth file is changed. The names of these."""
    count, changed, seen = 0, set(), set()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for layer in layers:
            with tarfile.open(layer) as archive:
                for member in archive:
                    if member.isdir() and member.name in seen:
                        continue
                    seen.add(member.name)
                    if not member.isreg() or member.size == 0:
                        out.addfile(member)
                        continue
                    count += 1
                    content = archive.extractfile(member).read()
                    if draw is not None and count % EVERY == draw:
                        content = content[::-1]
                        changed.add(member.name)
                    out.addfile(member, io.BytesIO(content))
    return changed


def layout(folder, tars):
    """An OCI layout with an image of each tar."""
    blobs = os.path.join(folder, "blobs/sha256")
    os.makedirs(blobs)

    def put(content):
        digest = hashlib.sha256(content).hexdigest()
        with open(os.path.join(blobs, digest), "wb") as file:
            file.write(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    entries = []
    for name, path in tars:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        layer = {"digest": f"sha256:{digest}", "size": os.path.getsize(path)}
        os.rename(path, os.path.join(blobs, digest))
        config = {"architecture": "amd64", "os": "linux", "config": {},
                  "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
        manifest = {"schemaVersion": 2, "mediaType": f"{KIND}.manifest.v1+json",
                    "config": {"mediaType": f"{KIND}.config.v1+json", **put(json.dumps(config).encode())},
                    "layers": [{"mediaType": f"{KIND}.layer.v1.tar", **layer}]}
        entries.append({"mediaType": f"{KIND}.manifest.v1+json", **put(json.dumps(manifest).encode()),
                        "annotations": {"org.opencontainers.image.ref.name": name}})
    for name, content in (("oci-layout", {"imageLayoutVersion": "1.0.0"}),
                          ("index.json", {"schemaVersion": 2, "manifests": entries})):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(content, file)


class Bench:
    """`tools`: what bench.py has (OUT, PORT, WORK, OURS, RUNS, LAYERS, say, fresh, inside, peer, run, group, Contender)."""

    def __init__(self, tools):
        self.t = tools
        self.image = f"127.0.0.1:{tools['PORT']}/chunked-{DRAW}"
        self.log = os.path.join(tools["OUT"], "registry.log")
        self.done = os.path.join(tools["OUT"], f"chunked-{DRAW}.json")

    def make(self):
        """Pushes both versions, once; bytes of the changed files as they are compressed."""
        t = self.t
        if not os.path.exists(self.done):
            folder = t["fresh"]("chunked")
            layers = [os.path.join(t["OUT"], "layers", layer) for layer in t["LAYERS"]]
            tars = [(name, os.path.join(folder, f"{name}.tar")) for name in ("v1", "v2")]
            changed = [merge(layers, path, DRAW if name == "v2" else None) for name, path in tars][1]
            oci = os.path.join(folder, "oci")
            layout(oci, tars)
            for name, _ in tars:
                out = f"{t['inside'](folder)}/made:{name}"
                subprocess.run(t["peer"]("skopeo", "copy", "--quiet", "--dest-compress-format", "zstd:chunked",
                                         f"oci:{t['inside'](oci)}:{name}", f"oci:{out}"), check=True)
                subprocess.run(t["peer"]("skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", f"oci:{out}",
                                         f"docker://{self.image}:{name}"), check=True)
            facts = self.facts(os.path.join(folder, "made"), changed)
            shutil.rmtree(folder)
            with open(self.done, "w") as file:
                json.dump(facts, file)
        with open(self.done) as file:
            return json.load(file)

    def facts(self, made, changed):
        blob = lambda digest: os.path.join(made, "blobs/sha256", digest.split(":")[1])
        index = json.load(open(os.path.join(made, "index.json")))["manifests"]
        entry = next(m for m in index if m["annotations"]["org.opencontainers.image.ref.name"] == "v2")
        layer = json.load(open(blob(entry["digest"])))["layers"][0]
        start, length = map(int, layer["annotations"][PREFIX + "manifest-position"].split(":")[:2])
        split = int(layer["annotations"][PREFIX + "tarsplit-position"].split(":")[1])
        with open(blob(layer["digest"]), "rb") as file:
            file.seek(start)
            packed = file.read(length)
        table = json.loads(subprocess.run(["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout)
        files = [e for e in table["entries"] if e["type"] == "reg" and e.get("size")]
        compressed = sum(e["endOffset"] - e["offset"] for e in files if e["name"] in changed)
        return {"layer": layer["size"], "table": length + split, "files": len(files), "changed": len(changed),
                "compressed": compressed}

    # Each prepares what is there before and returns the command that is measured.

    def ours(self, before=True, limit=()):
        def prepare():
            pull = [self.t["OURS"], "--quiet", "--sysroot", self.t["fresh"]("ours"), "image", "pull"]
            if before:
                self.t["run"]([*pull, f"{self.image}:v1"])
            return [*pull, *limit, f"{self.image}:v2"]
        return prepare

    def skopeo(self):
        to = self.t["inside"](self.t["fresh"]("skopeo"))
        copy = lambda name: self.t["peer"]("skopeo", "copy", "--quiet", f"docker://{self.image}:{name}", f"oci:{to}:{name}")
        self.t["run"](copy("v1"))
        return copy("v2")

    def podman(self):
        root = os.path.join(self.t["WORK"], "podman")
        place = self.t["inside"](self.t["fresh"]("podman"))
        with open(os.path.join(root, "storage.conf"), "w") as file:
            file.write(f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/root"\nrunroot = "{place}/run"\n'
                       '[storage.options.pull_options]\nenable_partial_images = "true"\n')
        pull = lambda name: self.t["peer"]("env", f"CONTAINERS_STORAGE_CONF={place}/storage.conf", "podman", "pull", "--quiet",
                                           f"{self.image}:{name}")
        self.t["run"](pull("v1"))
        return pull("v2")

    def sent(self, command):
        """Bytes of blobs that the registry sent for a command, and the requests for them."""
        before = os.path.getsize(self.log)
        self.t["run"](command)
        with open(self.log, errors="replace") as file:
            file.seek(before)
            answers = [re.search(r'"GET [^"]*/blobs/[^"]*" 20[06] (\d+)', line) for line in file]
        answers = [int(answer.group(1)) for answer in answers if answer]
        return sum(answers), len(answers)

    def measure(self):
        t = self.t
        facts = t["apart"](self.make)
        say = t["say"]
        contenders = [("cfs-update image pull, version 1 is here", self.ours()), ("skopeo copy, version 1 is there", self.skopeo)]
        try:
            t["run"](self.podman())
            contenders.append(("podman pull with partial pulls, version 1 is there", self.podman))
        except SystemExit:
            say("podman pull with partial pulls does not work in this place: left out")
        contenders.append(("cfs-update image pull, cold", self.ours(before=False)))
        t["group"]("Chunked update: every twentieth file differs",
                   [t["Contender"](name, prepare) for name, prepare in contenders])
        slow = ("--limit-rate", RATE)
        t["group"]("Chunked update over 100 Mbit/s", [
            t["Contender"]("cfs-update image pull, version 1 is here", self.ours(limit=slow)),
            t["Contender"]("cfs-update image pull, cold", self.ours(before=False, limit=slow)),
        ], runs=min(2, t["RUNS"]))
        say(f"\n{facts['files']} files in one layer of {facts['layer'] / 1e6:.1f} MB, {facts['changed']} of them differ: "
            f"{facts['compressed'] / 1e6:.1f} MB compressed; table and tar-split {facts['table'] / 1e6:.1f} MB\n")
        say("| command | MB fetched | requests | of the layer | of the changed files |")
        say("|---|---|---|---|---|")
        for name, prepare in contenders:
            fetched, requests = self.sent(prepare())
            say(f"| {name} | {fetched / 1e6:.1f} | {requests} | {fetched / facts['layer']:.3f} | {fetched / facts['compressed']:.2f} |")
