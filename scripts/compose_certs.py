"""Make the certificates of docker-compose.tls.yml and switch it on in `.env`: `make compose-tls`.

`certs/` is its owner's alone. The folders in it are mounted into containers, whose users have to be
able to read them: `service` for the services, etcd and Prometheus, `worker` for workers and their
tasks, `client` for people. `certs/authority` signs; nobody is shown it. Run it again to renew what
it has made, and restart the services.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from hyper import certificates
from hyper.cluster.home import write_private
from scripts import compose_env

FOLDER = compose_env.ROOT / "certs"
FILES = "docker-compose.yml:docker-compose.tls.yml"
DAYS = 365
HOSTS = ("etcd",)  # the name that its clients, none of ours, check


def make(folder: Path) -> None:
    """Make or renew all certificates; the authority stays."""
    authority = folder / "authority"
    folder.mkdir(mode=0o700, exist_ok=True)
    certificates.make_authority(authority)
    certificates.make_service(authority, HOSTS, DAYS)
    for name in ("worker", "client"):
        certificates.make_client(authority, name, DAYS)
    for name in ("service", "worker", "client"):
        shown = folder / name
        shown.mkdir(exist_ok=True)
        shown.chmod(0o755)
        shutil.copyfile(authority / "ca.pem", shown / "ca.pem")
        for end in ("pem", "key"):
            shutil.move(authority / f"{name}.{end}", shown / f"{name}.{end}")
        for file in shown.iterdir():
            file.chmod(0o644)  # behind `folder`, which lets nobody in


def switch_on(env: Path) -> bool:
    """Name both files in `.env`; False if it names some already."""
    if "COMPOSE_FILE" in compose_env.read(env):
        return False
    text = env.read_text()
    write_private(env, f"{text}{'' if text.endswith(chr(10)) else chr(10)}COMPOSE_FILE={FILES}\n")
    return True


def main() -> int:
    """Do both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--file", type=Path, default=compose_env.ROOT / ".env")
    given = parser.parse_args()
    if not given.file.exists():
        print(f"error: there is no {given.file}: run `make compose-env`", file=sys.stderr)
        return 2
    make(FOLDER)
    switch_on(given.file)
    known = compose_env.read(given.file)
    print(f"{FOLDER}: made; {given.file}: COMPOSE_FILE={known['COMPOSE_FILE']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
