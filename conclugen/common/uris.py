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
from urllib.parse import quote

# scheme://user:password@host, also inside a longer text and behind `simplecache::`. A user name ends before the first
# slash; a password may hold slashes and more @ where somebody forgot to quote it, unless it is a port. A numeric host
# in brackets, with its port, has no user. `pathlib.Path` takes a slash from an address.
_USER = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://"
    r"|\b(?:https?|ftp|sftp|ssh|s3[an]?|gc?s|abfss?|wasbs?|az|adl|hdfs|r2|oss|memcached|redis"
    r"|(?:postgresql|postgres|mysql|mssql|mariadb|oracle)(?:\+\w+)?):/)"
    r"(?!\[[\da-fA-F:.]+(?:%[\w.%~-]+)?\](?::\d*)?(?:[/?#\s'\"<>(){}]|$))"
    r"(?:[^\s'\"<>(){}?#/:@]*:(?!\d+(?:[/?#\s'\"<>(){}]|$))[^\s'\"<>(){}]*@|[^\s'\"<>(){}?#/]*@)"
)
# Signed queries: Amazon's and Google's (X-Amz-Signature ...), Azure's (sig), tokens and keys of others.
_QUERY = re.compile(
    r"(?P<name>[?&;#](?:[\w.-]*(?:signature|credential|token|secret|password|passwd|pwd|api_?key|access_?key|auth)[\w.-]*"
    r"|sig|key|awsaccesskeyid|googleaccessid|user|username)=)(?P<value>[^&;#\s'\"<>)]+)",
    re.IGNORECASE,
)
# Only an address has a query: other text that a user gives (a transcript, a class, a file's name) may hold the same.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z][A-Za-z0-9+.-]+:/")
# What a client logs of the requests that it makes; a shorter word is one of a sentence.
_HEADER = re.compile(
    r"(?P<name>\b(?:proxy-)?authorization['\"]?\s*[:=]\s*b?['\"]?(?:basic|bearer|digest|token|aws4-hmac-sha256)\s+)"
    r"(?P<value>(?=[\w+/=.~-]{8})[^\s'\",;]+)",
    re.IGNORECASE,
)
_HIDDEN = "***"
_SECRET_VARIABLES = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_KEY|API_?KEY|CREDENTIAL)", re.IGNORECASE)
_PLACES = re.compile(r"(_PATH|_FILE|_DIR|CREDENTIALS)$", re.IGNORECASE)  # where a secret lies, if an absolute path
_SHORTEST_SECRET = 6  # shorter values of such variables are words that also mean something else


def public(uri: str) -> str:
    """The URI without user, password, and the values of keys, tokens and signatures in its query."""
    return _QUERY.sub(rf"\g<name>{_HIDDEN}", _USER.sub(r"\g<scheme>", uri))


def check(field: str, uri: str) -> str:
    """Return the URI if it may be stored. Raises ValueError, without the secret, where it holds one."""
    shown = public(uri) if _ADDRESS.search(uri) else uri
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
            # The environment may hold bytes that are no text.
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

    def formatwarning(*arguments: Any, **more: Any) -> str:
        return scrub(shown(*arguments, **more))

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(scrub("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)

    def thread_excepthook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is not SystemExit and arguments.exc_value is not None:
            excepthook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    warnings.formatwarning = formatwarning
    sys.excepthook = excepthook
    threading.excepthook = thread_excepthook
