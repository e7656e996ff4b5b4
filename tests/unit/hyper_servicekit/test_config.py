"""Settings: where they come from and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyper_servicekit.config import (
    S3Settings,
    ServiceSettings,
    load_settings,
    settings_config,
    split_address,
)
from hyper_servicekit.server import dialable


class Settings(ServiceSettings):
    """Settings of the test."""

    model_config = settings_config("UNIT")
    s3: S3Settings | None = None
    lease_ttl_s: float = 10.0


S3 = {"endpoint": "http://127.0.0.1:9000", "access_key": "a", "secret_key": "very secret"}


def test_environment_beats_file_beats_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "lease_ttl_s: 20\nlog_level: DEBUG\n"
        "s3: {endpoint: 'http://h:1', access_key: x, secret_key: y}"
    )
    monkeypatch.setenv("HYPER_UNIT__LEASE_TTL_S", "30")
    monkeypatch.setenv("HYPER_UNIT__S3__ACCESS_KEY", "from environment")
    monkeypatch.setenv("HYPER_UNIT__ETCD_ENDPOINTS", '["127.0.0.1:1", "[::1]:2"]')
    settings = load_settings(Settings, ["--config", str(file)])
    assert settings.lease_ttl_s == 30
    assert settings.log_level == "DEBUG"
    assert settings.drain_grace_s == 10
    assert settings.etcd_endpoints == ("127.0.0.1:1", "[::1]:2")
    assert settings.s3 is not None
    assert (settings.s3.access_key, settings.s3.endpoint) == ("from environment", "http://h:1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lease_ttl: 3", "HYPER_UNIT__LEASE_TTL: Extra inputs"),
        ("lease_ttl_s: soon", "HYPER_UNIT__LEASE_TTL_S: Input should be a valid number"),
        ("s3: {endpoint: 'h:1', access_key: x, secret_key: y}", "HYPER_UNIT__S3__ENDPOINT"),
        ("s3: {access_key: x, secret_key: y}", "HYPER_UNIT__S3__ENDPOINT: Field required"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "settings.yaml"),
        ("listen: ':x'", "HYPER_UNIT__LISTEN"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        load_settings(Settings, ["--config", str(file)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1


def test_text_that_is_not_json_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYPER_UNIT__ETCD_ENDPOINTS", "127.0.0.1:1")
    with pytest.raises(SystemExit):
        load_settings(Settings, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: settings in the environment")
    assert "etcd_endpoints" in line


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(Settings, ["--config", "no/such/file.yaml"])
    assert "no/such/file.yaml" in capsys.readouterr().err


def test_secrets_do_not_print() -> None:
    settings = S3Settings.model_validate(S3)
    assert "very secret" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.listen = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("address", "parts"),
    [("h:1", ("h", 1)), ("[::1]:65535", ("::1", 65535)), ("127.0.0.1:0", ("127.0.0.1", 0))],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "h", "h:", ":", "h:x", "h:-1", "h:65536", "h:1.5"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_address(address)


def test_what_others_dial() -> None:
    assert dialable("127.0.0.1:5", None) == "127.0.0.1:5"
    assert dialable("127.0.0.1:5", "public:7") == "public:7"
    assert dialable("0.0.0.0:5", "public:0") == "public:5"
    assert dialable("[::1]:5", None) == "[::1]:5"
    assert not dialable("0.0.0.0:5", None).startswith("0.0.0.0")
    assert not dialable("[::]:5", None).startswith("[")
