"""Make `.env` for docker-compose.yml, with keys and passwords of its own: `make compose-env`.

A `.env` that is there is kept; what it lacks is added, and tokens are made anew that end within a
month, or that its HYPER_AUTH_KEY has not signed (any more). `--client` prints what clients of the
running cluster set, for a shell's `eval`.
"""

from __future__ import annotations

import argparse
import base64
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from hyper.cluster.home import write_private
from hyper.errors import UnauthenticatedError
from hyper_servicekit.signing import new_key, public_key
from hyper_servicekit.tokens import ANY_TENANT, Role, Signer, Verifier

ROOT = Path(__file__).resolve().parents[1]
KEY_ID = "k1"
TOKEN_DAYS = 365
RENEW_DAYS = 30  # before its end
HEADER = "# Made by `make compose-env`. Secret: whoever reads it rules the cluster.\n"


def read(path: Path) -> dict[str, str]:
    """NAME=value lines of a file; none if it is not there."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines() if "=" in line and line[0] != "#"]
    return {name.strip(): value.strip() for name, _, value in (li.partition("=") for li in lines)}


def complete(known: dict[str, str], now_s: float) -> dict[str, str]:
    """What is to be added, or replaced, so that nothing is missing."""
    made: dict[str, str] = {}

    def want(name: str, value: str) -> None:
        if name not in known:
            made[name] = value

    want("HYPER_S3_ACCESS_KEY", secrets.token_hex(10))
    want("HYPER_S3_SECRET_KEY", secrets.token_urlsafe(30))
    want("HYPER_GRAFANA_PASSWORD", secrets.token_urlsafe(18))
    want("HYPER_SECRETS_KEY", base64.b64encode(secrets.token_bytes(32)).decode())
    want("HYPER_CREDENTIALS_KEY", secrets.token_urlsafe(32))
    want("HYPER_AUTH_KEY", new_key())
    key = {**known, **made}["HYPER_AUTH_KEY"]
    if known.get("HYPER_AUTH_PUBLIC_KEY") != public_key(key):
        made["HYPER_AUTH_PUBLIC_KEY"] = public_key(key)
    signer, verifier = Signer(KEY_ID, key), Verifier({KEY_ID: key})
    expires_s = now_s + TOKEN_DAYS * 86_400
    for name, subject, role in (
        ("HYPER_SERVICE_TOKEN", "service", Role.SERVICE),
        ("HYPER_WORKER_TOKEN", "worker", Role.WORKER),
        ("HYPER_TOKEN", "compose", Role.ADMIN),
    ):
        try:
            verifier.read(known.get(name, ""), now_s + RENEW_DAYS * 86_400)
        except UnauthenticatedError:
            made[name] = signer.sign(ANY_TENANT, subject=subject, expires_s=expires_s, role=role)
    return made


def write(path: Path) -> list[str]:
    """Complete the file, readable by its owner alone; returns the names that have new values."""
    made = complete(read(path), time.time())
    if not made:
        return []
    text = path.read_text() if path.exists() else HEADER
    lines = [line for line in text.splitlines() if line.partition("=")[0].strip() not in made]
    text = "\n".join([*lines, *(f"{name}={value}" for name, value in made.items())]) + "\n"
    write_private(path, text)
    return list(made)


def compose_command() -> list[str]:
    """`docker compose`, or `docker-compose` where there is only that."""
    probe = (
        subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if shutil.which("docker")
        else None
    )
    return ["docker", "compose"] if probe and probe.returncode == 0 else ["docker-compose"]


def client(path: Path) -> int:
    """Print the exports of a client; the exit status is Compose's."""
    known = read(path)
    if "HYPER_TOKEN" not in known:
        print(f"error: {path} has no HYPER_TOKEN: run `make compose-env`", file=sys.stderr)
        return 2
    command = [*compose_command(), "port", "scheduler", "50051"]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        return found.returncode
    print(f"export HYPER_ENDPOINT={shlex.quote(found.stdout.strip())}")
    print(f"export HYPER_TOKEN={shlex.quote(known['HYPER_TOKEN'])}")
    if "docker-compose.tls.yml" in known.get("COMPOSE_FILE", ""):
        certs = ROOT / known.get("HYPER_CERTS", "certs") / "client"
        for name, file in (("CA", "ca.pem"), ("CERT", "client.pem"), ("KEY", "client.key")):
            print(f"export HYPER_TLS_{name}={shlex.quote(str(certs / file))}")
    return 0


def kubernetes(known: dict[str, str]) -> str:
    """The Secret that deploy/kubernetes wants, as YAML."""
    names = {
        "s3-access-key": "HYPER_S3_ACCESS_KEY",
        "s3-secret-key": "HYPER_S3_SECRET_KEY",
        "secrets-key": "HYPER_SECRETS_KEY",
        "credentials-key": "HYPER_CREDENTIALS_KEY",
        "auth-key": "HYPER_AUTH_KEY",
        "auth-public-key": "HYPER_AUTH_PUBLIC_KEY",
        "service-token": "HYPER_SERVICE_TOKEN",
        "worker-token": "HYPER_WORKER_TOKEN",
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hyper", "namespace": "hyper"},
        "stringData": {key: known[name] for key, name in names.items()},
    }
    return yaml.safe_dump(secret, sort_keys=False)


def main() -> int:
    """Make the file, or print what clients set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=ROOT / ".env")
    parser.add_argument("--client", action="store_true", help="print what clients set")
    parser.add_argument("--kubernetes", action="store_true", help="print it as a Secret")
    given = parser.parse_args()
    if given.client:
        return client(given.file)
    made = write(given.file)
    if given.kubernetes:
        print(kubernetes(read(given.file)), end="")
        return 0
    print(f"{given.file}: {'made ' + ', '.join(made) if made else 'complete'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
