"""The command line: what is printed, what is refused, and with which exit code."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from joserfc import jwt

from gateway.auth import Signer
from gateway.config import GatewaySettings

BIN = Path(sys.executable).parent / "peruse"


def peruse(*words: str, data: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [BIN, *words, "--data", str(data)],
        input=stdin, capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def test_a_token_is_all_that_is_printed(tmp_path: Path) -> None:
    """Signed by the folder's own key, which only its owner can read."""
    done = peruse("token", "ana", "--ttl", "90s", data=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    key = Signer(tmp_path, GatewaySettings()).key()
    claims = jwt.decode(done.stdout.strip(), key, algorithms=["Ed25519"]).claims
    assert (claims["sub"], claims["role"], claims["exp"] - claims["iat"]) == ("ana", "user", 90)
    assert stat.S_IMODE((tmp_path / "keys" / "jwt.pem").stat().st_mode) == 0o600
    service = peruse("token", "svc", "--service", data=tmp_path).stdout.strip()
    assert jwt.decode(service, key, algorithms=["Ed25519"]).claims["role"] == "service"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["token", "ana", "--ttl", "2d"], "a token lives 1 s to 86400 s (one day), not 172800 s"),
        (["token", "ana", "--ttl", "soon"], "--ttl 'soon' is not a time like 90s, 30m, 12h or 1d"),
        (["token", "a b"], "user id 'a b' is not"),
        (["token", "ana", "--admin", "--service"], "a token is --admin or --service, not both"),
        (["primary"], "no Peruse runs on"),
        (["key", "ana"], "no Peruse runs on"),
        (["inspect", "ana"], "no Peruse runs on"),
        (["import", "/nowhere.tsv", "--user", "ana"], "/nowhere.tsv cannot be read: No such file"),
        (["import", "/nowhere.tsv", "--user", "~ana~"], "--user '~ana~' is not"),
        (["config", "set", "PERUSE_HOST_IDLE", "3"], "no setting PERUSE_HOST_IDLE; did you mean PERUSE_HOST_IDLE_S?"),
        (["config", "set", "host_idle_s", "never"], "PERUSE_HOST_IDLE_S: Input should be a valid number"),
        (["config", "set", "openai_url", "ftp://x"], "PERUSE_OPENAI_URL: String should match pattern"),
        (["config", "set", "provider_jobs", "many"], "PERUSE_PROVIDER_JOBS: String should match pattern"),
        (["config", "set", "cors_origins", "*"], "'*' is not an origin like https://app.example.org"),
    ],
)  # fmt: skip
def test_what_must_be_set_right_first_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    """mission: 66"""
    done = peruse(*words, data=tmp_path)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "settings.json").exists()


def test_a_moderation_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    """Before anything is started: no picture is to be made that nobody looks at."""
    done = peruse("serve", data=tmp_path / "data", PERUSE_MODERATION="no.such:judge")

    assert done.returncode == 2
    assert "PERUSE_MODERATION=no.such:judge: No module named 'no'" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """And how to get one."""
    done = peruse("token", "ana", data=tmp_path / "none")

    assert done.returncode == 2
    assert f"there is no data folder {tmp_path / 'none'}: start `peruse serve" in done.stderr


def test_settings_are_kept_for_the_owner_only_and_secrets_are_not_shown(tmp_path: Path) -> None:
    """mission: 209, 238"""
    assert peruse("config", "set", "PERUSE_HOST_IDLE_S", "120", data=tmp_path).returncode == 0
    assert peruse("config", "set", "wire_secret", "-", data=tmp_path, stdin="canary-7f3a\n").returncode == 0

    assert peruse("config", "set", "openai_key", "-", data=tmp_path, stdin="canary-9b1c").returncode == 0

    path = tmp_path / "settings.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "host_idle_s": "120", "wire_secret": "canary-7f3a", "openai_key": "canary-9b1c",
    }  # fmt: skip
    shown = peruse("config", "list", data=tmp_path, PERUSE_ACCESS_LOG="all", FAL_KEY="canary-2d").stdout
    assert "PERUSE_HOST_IDLE_S=120.0    # data folder:" in shown
    assert "PERUSE_WIRE_SECRET=***    # data folder:" in shown
    assert "PERUSE_ACCESS_LOG=all    # environment:" in shown
    assert "PERUSE_OPENAI_KEY=***    # data folder:" in shown
    assert "PERUSE_FAL_KEY=***    #" in shown
    assert "PERUSE_REPLICATE_KEY=    # default:" in shown
    assert "canary" not in shown


def test_a_kept_setting_that_went_wrong_is_named_with_its_file(tmp_path: Path) -> None:
    """As when somebody edits it by hand."""
    (tmp_path / "settings.json").write_text('{"read_timeout_ms": "soon"}')

    done = peruse("token", "ana", data=tmp_path)

    assert done.returncode == 2
    assert "PERUSE_READ_TIMEOUT_MS: Input should be a valid integer" in done.stderr
    assert f"(from {tmp_path}/settings.json)" in done.stderr
