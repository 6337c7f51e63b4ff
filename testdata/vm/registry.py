"""A real registry (Debian's docker-registry) on the loopback interface; guests reach it at 10.0.2.2."""

import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import os

CONFIG = """version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: "{root}"}}, cache: {{blobdescriptor: inmemory}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Registry:
    """One registry process with an empty store of its own; it ends with the block."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.process = None
        self.port = 0

    def __enter__(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for _ in range(5):
            if self._start():
                return self
        raise RuntimeError(f"docker-registry does not start: {(self.folder / 'log').read_text()[-2000:]}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def _start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = self.folder / "config.yml"
        config.write_text(CONFIG.format(root=self.folder / "storage", port=self.port))
        with open(self.folder / "log", "ab") as log:
            env = dict(os.environ, OTEL_TRACES_EXPORTER="none")
            command = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        for _ in range(100):
            if self.process.poll() is not None:
                return False
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.1)
        self.process.kill()
        self.process.wait()
        return False

    def push(self, layout, tag, name):
        """Copies an image to NAME:TAG, bytes and digests unchanged."""
        with tempfile.TemporaryDirectory() as home:
            subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", "--preserve-digests",
                            "--dest-tls-verify=false", f"oci:{layout.path}:{tag}",
                            f"docker://127.0.0.1:{self.port}/{name}"], check=True,
                           env=dict(os.environ, HOME=home), stdin=subprocess.DEVNULL)

    def name(self, name):
        """What a guest calls it."""
        return f"10.0.2.2:{self.port}/{name}"

    def log(self):
        """Everything that the registry wrote, its access log included."""
        return (self.folder / "log").read_text(errors="replace")
