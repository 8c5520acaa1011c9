"""URIs that users give: secrets in them are refused before they are stored, and removed from whatever is printed.

A configuration is written into the run's folder, the journal and the tracking server, where everybody reads it. So a
URI with a user name, a password or a signature has no place in one: credentials come from the environment
(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID, a profile, ...).
"""

from __future__ import annotations

import os
import re

# scheme://user:password@host, also inside a longer text and behind `simplecache::`. A user name ends before the first
# slash; a password may hold slashes and more @ where somebody forgot to quote it, unless it is a port.
_USER = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)"
    r"(?:[^\s'\"<>(){}?#/:@]*:(?!\d+(?:[/?#\s'\"<>(){}]|$))[^\s'\"<>(){}]*@|[^\s'\"<>(){}?#/]*@)"
)
# Signed queries: Amazon's and Google's (X-Amz-Signature ...), Azure's (sig), tokens and keys of others.
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w.-]*(?:signature|credential|token|secret|password|passwd|pwd|api_?key|access_?key|auth)[\w.-]*"
    r"|sig|key|awsaccesskeyid|googleaccessid|user|username)=)(?P<value>[^&;#\s'\"<>)]+)",
    re.IGNORECASE,
)
_HIDDEN = "***"
_SECRET_VARIABLES = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_KEY)", re.IGNORECASE)
_SHORTEST_SECRET = 6  # shorter values of such variables are words that also mean something else


def public(uri: str) -> str:
    """The URI without user, password, and the values of keys, tokens and signatures in its query."""
    return _QUERY.sub(rf"\g<name>{_HIDDEN}", _USER.sub(r"\g<scheme>", uri))


def check(field: str, uri: str) -> str:
    """Return the URI if it may be stored. Raises ValueError, without the secret, where it holds one."""
    shown = public(uri)
    if shown != uri:
        raise ValueError(
            f"{field}: {shown!r} was given with a user, password, key or signature, which would be stored with the run "
            "and shown to everybody; leave it out, and set the server's environment variables instead "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    return uri


def scrub(text: object) -> str:
    """A message without secrets: those in URIs, and the values of this process's environment variables that hold some.

    For messages after they are formatted, those of other libraries' exceptions included.
    """
    cleaned = public(str(text))
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):  # one may be part of another
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLES.search(name) and value in cleaned:
            cleaned = cleaned.replace(value, _HIDDEN)
    return cleaned
