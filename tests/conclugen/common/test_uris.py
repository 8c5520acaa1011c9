"""No secret of a URI is stored or printed: every way to write one into it is refused, and cut out of messages."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from conclugen.common import uris

MARK = "Zq7marker"
WITH_SECRETS = [
    f"http://user:{MARK}@host:5000/x",
    f"https://{MARK}@host/x",
    f"http://user:p@ss/{MARK}:x@host:1/y",  # nobody quoted it
    f"s3://KEY:{MARK}@bucket/folder",
    f"simplecache::s3://KEY:{MARK}@bucket/folder",
    f"postgresql+psycopg2://user:{MARK}@127.0.0.1/db",
    f"https://bucket.host/x?X-Amz-Signature={MARK}&a=1",
    f"https://bucket.host/x?a=1&X-Amz-Credential={MARK}",
    f"https://bucket.host/x?X-Amz-Security-Token={MARK}",
    f"https://host/x?X-Goog-Signature={MARK}",
    f"https://account.host/x?sv=2024&sig={MARK}",
    f"https://host/x?token={MARK}",
    f"https://host/x?access_token={MARK}#part",
    f"https://host/x?apikey={MARK}",
    f"https://host/x?api_key={MARK}",
    f"https://host/x?PASSWORD={MARK}",
    f"https://host/x?client_secret={MARK}",
    f"https://host/x?user=a&password={MARK}",
    f"http://[::1]:{MARK}@host/x",
    f"http://user:{MARK}@[::1]:5000/x",
    f"https:/host/x?token={MARK}",  # as `pathlib.Path` writes it
    f"simplecache::myown:/host/x?token={MARK}",
    f"filecache::zip://x::s3://KEY:{MARK}@bucket/x.zip",
    f"http://user:an odd {MARK}@host/x",
    f"http://user::{MARK}@host/x",
    f"http://user:a'{MARK}@host/x",
    f'http://user:a"(<{MARK}@host/x',
    f"https://host/x?api-key={MARK}",
    f"https://host/x?x-api-key={MARK}",
    f"https://host/x?AccountKey={MARK}",
    f"https://host/x?subscription-key={MARK}",
    f"https://host/x?key[]={MARK}",
    f"https://host/x?pass={MARK}",
    f"https://host/x?jwt={MARK}",
    f"https://host/x;jsessionid={MARK}",
    f"https://host/x?Policy={MARK}&Key-Pair-Id={MARK}",
    f"https://host/x?X-Amz%2DSignature={MARK}",
    f"https://host/x?%70assword={MARK}",
    f"https://proxy/?url=https%3A%2F%2Fuser%3A{MARK}%40host%2Fx",
    f"https://proxy/?url=https%3A%2F%2Fhost%2Fx%3Fsig%3D{MARK}",
    f"https://proxy/?url=https://host/x?sig={MARK}",
    f"AccountName=a;AccountKey={MARK}==;EndpointSuffix=core.windows.net",
]
# Addresses by themselves; within a longer text nothing tells where such a one ends.
ODD_ALONE = [
    f"http://us er:{MARK}@host/x",
    f"http:\\\\user:{MARK}@host",
    f"http:user:{MARK}@host",
    f"//user:{MARK}@host/x",
    f" http://user:\n{MARK}@host/x",
    f"https://host/x?token=a){MARK}",
    f"https://host/x?token = {MARK}",
]
WITHOUT = [
    "http://host:5000",
    "http://[::1]:5000/mlflow",
    "sqlite:////folder/with@sign/mlflow.db",
    "s3://bucket/folder/a@b/file?versionId=3",
    "/plain/folder@home",
    "file:///x?view=train",
    "https://host/x?keyboard=1&monkey=2",
    "http://[::1]:5000/a@b",
    "http://[2001:db8::7]/runs/me@home",
    "http://[fe80::1%eth0]:80/a@b",
    "abfss://files@account.dfs.core.windows.net/folder",
    "wasb://files@account.blob.core.windows.net/a@b",
    "https://host/x?author=me&partition=3",
    "zip://a.npz::https://host/a@b",
    "",
]


@pytest.mark.parametrize("uri", WITH_SECRETS)
def test_a_secret_is_refused_by_field_and_never_shown(uri: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.folder: .*environment variables") as refusal:
        uris.check("data.folder", uri)
    assert MARK not in str(refusal.value)
    message = f"HTTPError('403 for url: {uri}') while sending to <{uri}>, and again {uri}."
    cleaned = uris.scrub(message)
    assert MARK not in cleaned and cleaned.startswith("HTTPError('403 for url: ") and "while sending to <" in cleaned


@pytest.mark.parametrize("uri", ODD_ALONE)
def test_an_odd_address_is_refused_without_its_secret(uri: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.folder: ") as refusal:
        uris.check("data.folder", uri)
    assert MARK not in str(refusal.value)


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_holds_no_secret_stays_as_it_is(uri: str) -> None:
    assert uris.check("x", uri) == uri
    assert uris.scrub(f"could not open '{uri}' (timed out)") == f"could not open '{uri}' (timed out)"


def test_the_host_stays_readable() -> None:
    assert uris.public("https://me:secret@host:1/x") == "https://host:1/x"
    assert urlsplit(uris.public(WITH_SECRETS[6])).path == "/x"


def test_secrets_of_the_environment_are_cut_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", MARK)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{MARK}/2")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("AZURE_STORAGE_KEY", f"{MARK}/3")
    monkeypatch.setenv("SSH_KEY_PASSPHRASE", f"{MARK}/4")
    assert uris.scrub(f"sent {MARK}/2 and {MARK} as abc") == "sent *** and *** as abc"
    assert uris.scrub(f"{MARK}/3 {MARK}/4") == "*** ***"


def test_secrets_that_are_no_text_are_cut_out_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    value = os.fsdecode(b"p\xe4ss\\wort")
    monkeypatch.setenv("MY_PASSWORD", value)
    assert uris.scrub("a plain message") == "a plain message"
    assert uris.scrub(f"sent {value}, {value!r} and p%E4ss%5Cwort") == "sent ***, '***' and ***"


def test_variables_that_say_where_a_secret_lies_hide_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hunter22").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setenv("DB_PASSWORD_FILE", "/run/secrets/db")
    monkeypatch.setenv("DB_PASSWORD", "hunter22")  # a secret, though a file is called so
    monkeypatch.setenv("MY_TOKEN", "/slash+first")
    monkeypatch.setenv("AWS_CREDENTIALS", "id:secret")
    message = "no /nowhere/key.json, /nowhere/token, /run/secrets/db; hunter22 /slash+first id:secret"
    assert uris.scrub(message) == "no /nowhere/key.json, /nowhere/token, /run/secrets/db; *** *** ***"


@pytest.mark.parametrize("text", ["key;user=bob said", "a;key=3", "a?key=b.mp4", "/clips/a#token=1.mp4", "you&user=me"])
def test_text_that_is_no_address_is_taken(text: str) -> None:
    assert uris.check("text", text) == text


def test_sentences_about_authorization_stay_whole() -> None:
    for text in ("authorization: token was missing", "Authorization: bearer of it", "authorization: basic is off"):
        assert uris.scrub(text) == text
    for value in ("dTpwdw==", f"{MARK}", f"a.b-c_d~e:{MARK}"):
        assert uris.scrub(f"{{'Authorization': 'Basic {value}'}}") == "{'Authorization': 'Basic ***'}"
