"""URIs that users give: secrets in them are refused before they are stored, and removed from whatever is printed.

A configuration is written into the run's folder, the journal and the tracking server, where everybody reads it. So a
URI with a user name, a password or a signature has no place in one: credentials come from the environment
(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID, a profile, ...).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote

_PACKAGE = Path(__file__).parents[1]
# scheme://user:password@host, also inside a longer text and behind `simplecache::`. A user name ends before the first
# slash; a password may hold slashes and more @ where somebody forgot to quote it, unless it is a port. A numeric host
# in brackets, with its port, has no user, and neither has a container of Azure. `pathlib.Path` takes a slash from an
# address.
_KNOWN = (
    r"\b(?:https?|ftp|sftp|ssh|s3[an]?|gc?s|abfss?|wasbs?|az|adl|hdfs|r2|oss|memcached|redis"
    r"|(?:postgresql|postgres|mysql|mssql|mariadb|oracle)(?:\+\w+)?)"
)
_HOST = r"(?!\[[\da-fA-F:.]+(?:%[\w.%~-]+)?\](?::\d*)?(?:[/?#\s'\"<>(){}]|$))"
_CONTAINER = r"(?<=abfs://|wasb://)[\w$-]+@[\w-]+\.(?:dfs|blob)\.|(?<=abfss://|wasbs://)[\w$-]+@[\w-]+\.(?:dfs|blob)\."
_SCHEME = rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://|{_KNOWN}:/)"
_BEGIN = rf"{_SCHEME}{_HOST}(?!{_CONTAINER})"
_NAME = r"[^\s'\"<>(){}?#/:@]*"
_COLON = r":(?!:[A-Za-z][\w+.-]*:/)"  # `zip://x::https://` is a chain
_USER = re.compile(rf"{_BEGIN}(?:{_NAME}{_COLON}" r"(?!\d+(?:[/?#\s'\"<>(){}]|$))[^\s'\"<>(){}]*@|[^\s'\"<>(){}?#/]*@)")
# The same with quotes, brackets and spaces in the password, as far as the next @ of the line.
_ODD_USER = re.compile(rf"{_BEGIN}{_NAME}{_COLON}" r"(?!\d+(?:[/?#\s'\"<>(){}:,;]|$))(?=\S)[^\n@]{1,80}@")
# One address and nothing else: all before the last @ of its host or its password.
_WHOLE = re.compile(
    rf"\A\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:[/\\]{{2}}|{_KNOWN}:[/\\]*|[/\\]{{2}}(?=[^/\\]*:)){_HOST}(?!{_CONTAINER})"
    r"(?:[^?#/\\:@]*:(?!\d*(?:[/?#\s]|$)).*@|[^?#/\\]*@)",
    re.DOTALL,
)
_CHAIN = re.compile(r"::(?=[A-Za-z][\w+.-]*:/)")
# name=value of a query, a fragment, matrix parameters or a connection string; and the names of those that hold secrets:
# signatures of Amazon (X-Amz-Signature ...), Google, Azure (sig, AccountKey) and CloudFront (Policy), tokens and keys.
_PARAMETER = re.compile(
    r"(?P<name>(?:[?&;#]|(?<![\w.-])(?=(?:Account|SharedAccess)(?:Key|Signature)=))"
    r"(?P<word>[\w.%\[\]-]{1,100})=)(?P<value>[^&;#\s'\"<>)]+)"
)
_WHOLE_PARAMETER = re.compile(r"(?P<name>[?&;#](?P<word>[\w.%\[\]-]{1,100})\s*=)(?P<value>[^&#]+)")
_SECRET_NAME = re.compile(
    r"signature|credential|token|secret|passw(?:or)?d|passphrase|pwd|auth(?!or)|jwt|bearer|session_?id"
    r"|(?:^|[_.-])(?:key|pass|sas|sig|otp)(?:[_.-]?(?:pair[_.-]?)?id)?(?:\[\])?$"
    r"|(?:api|access|account|private|secret|shared|ssl|signing|subscription|function|master|encryption)_?key"
    r"|^(?:awsaccesskeyid|googleaccessid|user|username|policy|code)$",
    re.IGNORECASE,
)
# Only an address has a query: other text that a user gives (a transcript, a class, a file's name) may hold the same.
_ADDRESS = re.compile(
    rf"[A-Za-z][A-Za-z0-9+.-]*:[/\\]{{2}}|[A-Za-z][A-Za-z0-9+.-]+:/|{_KNOWN}:|\A[/\\]{{2}}"
    r"|\b(?:Account|SharedAccess)(?:Key|Signature)="
)
# What a client logs of the requests that it makes; a shorter word is one of a sentence.
_HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization['\"]?\s*[:=]\s*b?['\"]?(?:basic|bearer|digest|token|aws4-hmac-sha256)\s+)"
    r"(?P<value>(?=[\w+/=.~-]{8})[^\s'\",;]+)",
    re.IGNORECASE,
)
_HIDDEN = "***"
_SECRET_VARIABLES = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|ACCESS_KEY|API_?KEY|CREDENTIAL|CONNECTION_STRING|_(?:KEY|PASS)$",
    re.IGNORECASE,
)
_PLACES = re.compile(r"(_PATH|_FILE|_DIR|CREDENTIALS)$", re.IGNORECASE)  # where a secret lies, if an absolute path
_SHORTEST_SECRET = 6  # shorter values of such variables are words that also mean something else


def public(uri: str) -> str:
    """The URI without user, password, and the values of keys, tokens and signatures in its query."""
    return _PARAMETER.sub(_without_value, _ODD_USER.sub(r"\g<scheme>", _USER.sub(r"\g<scheme>", uri)))


def _without_value(parameter: re.Match[str]) -> str:
    value = unquote(parameter["value"])  # a whole address, where a proxy comes before it
    hides = _is_secret(parameter) or _USER.search(value) or any(map(_is_secret, _PARAMETER.finditer(value)))
    return f"{parameter['name']}{_HIDDEN}" if hides else parameter[0]


def _is_secret(parameter: re.Match[str]) -> bool:
    return _SECRET_NAME.search(unquote(parameter["word"])) is not None


def check(field: str, uri: str) -> str:
    """Return the URI if it may be stored. Raises ValueError, without the secret, where it holds one."""
    shown = uri
    if _ADDRESS.search(uri):
        # Behind a cache or an archive (`simplecache::`, `zip://x::`) another one follows.
        shown = "::".join(_WHOLE.sub(r"\g<scheme>", part, count=1) for part in _CHAIN.split(uri))
        shown = public(_WHOLE_PARAMETER.sub(_without_value, shown))
    if shown != uri:
        raise ValueError(
            f"{field}: {shown!r} was given with a user, password, key or signature, which would be stored with the run "
            "and shown to everybody; leave it out, and set the server's environment variables instead "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    return uri


def scrub(text: object) -> str:
    """A message without secrets: those in URIs and request headers, and the values of this process's environment
    variables that hold some.

    For messages after they are formatted, those of other libraries' exceptions included.
    """
    cleaned = _HEADER.sub(rf"\g<name>{_HIDDEN}", public(str(text)))
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):  # one may be part of another
        place = _PLACES.search(name) and Path(value).is_absolute()
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLES.search(name) and not place:
            # The environment may hold bytes that are not text.
            for written in {value, quote(os.fsencode(value), safe=""), repr(value)[1:-1]}:
                cleaned = cleaned.replace(written, _HIDDEN)
    return cleaned


class _ScrubbedRecord(logging.LogRecord):
    """A log record whose message and trace are scrubbed when a handler formats them."""

    def getMessage(self) -> str:  # noqa: N802
        return scrub(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        return self._exc_text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._exc_text = None if text is None else scrub(text)


def scrub_output() -> None:
    """From now on, scrub what this process logs, warns of, and shows of errors that nothing catches.

    Other libraries put addresses and headers into their messages; no logger or handler has to be known for this.
    """
    if logging.getLogRecordFactory() is _ScrubbedRecord:
        return
    logging.setLogRecordFactory(_ScrubbedRecord)
    shown = warnings.formatwarning

    def formatwarning(message: Any, category: type[Warning], filename: str, *more: Any, **others: Any) -> str:
        if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            return f"warning: {scrub(message)}\n"  # for people, who have no use for a line of the source
        return scrub(shown(message, category, filename, *more, **others))

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(scrub("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)

    def thread_excepthook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is not SystemExit and arguments.exc_value is not None:
            excepthook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    warnings.formatwarning = formatwarning
    sys.excepthook = excepthook
    threading.excepthook = thread_excepthook
