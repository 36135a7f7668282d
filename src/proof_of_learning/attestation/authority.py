"""Asks a timestamp authority (RFC 3161 over HTTP). What it answers is believed no more than a proof."""

from __future__ import annotations

import datetime
import http.client
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from proof_of_learning import canonical
from proof_of_learning.attestation import timestamps
from proof_of_learning.attestation.attested import SKEW
from proof_of_learning.attestation.timestamps import Authorities, Token
from proof_of_learning.errors import AuthorityError, FormatError, UsageError
from proof_of_learning.limits import MAX_TOKEN

TIMEOUT = 30.0  # seconds for all of it
_PIECE = 1 << 12


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object, **more: object) -> None:
        return None


def checked(url: str) -> str:
    """The address of an authority. Raises UsageError for one that is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or any(c.isspace() for c in url):
        shown = re.sub("//[^/]*@", "//…@", url)  # a password must not get into a log
        raise UsageError(f"--tsa {shown}: expected the address of a timestamp authority, http://… or https://…")
    return url


def shown(url: str) -> str:
    """An address as it may be written down: what stands behind a question mark may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def stamp(data: bytes, url: str, authorities: Authorities | None = None, timeout: float = TIMEOUT) -> Token:
    """A token of the authority at ``url`` on ``data``. authorities: those of which it has to be.

    Raises AuthorityError where there is none to be had: no answer in time, or not the one that was asked for.
    """
    query, nonce = timestamps.request(data)
    where = f"the timestamp authority {shown(checked(url))}"
    try:
        token = timestamps.parse(_post(url, query, where, timeout), "its answer")
    except FormatError as error:
        raise AuthorityError(f"{where}: {error}") from None
    if token.nonce != nonce or token.stamped != canonical.sha256(data)[7:]:
        raise AuthorityError(
            f"{where} answered something else than it was asked (an old token, or one for other bytes)"
        )
    now = datetime.datetime.now(datetime.UTC)
    if not token.earliest - SKEW <= now <= token.latest + SKEW:
        said, own = (moment.isoformat(" ", "seconds") for moment in (token.earliest, now))
        raise AuthorityError(
            f"{where} says that it is {said}, this machine that it is {own}; see which of the clocks is wrong"
        )
    if authorities and (why := timestamps.trusted(token, authorities)):
        raise AuthorityError(f"{where}: {why}")
    return token


def _post(url: str, query: bytes, where: str, timeout: float) -> bytes:
    """The body of the answer. A socket's timeout begins anew with each byte, so the whole has one, waited for from outside."""
    told: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def exchange() -> None:
        try:
            told.put(_exchange(url, query, where, timeout))
        except Exception as error:  # it is raised where somebody waits
            told.put(error)

    threading.Thread(target=exchange, daemon=True).start()
    try:
        try:
            found = told.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, Exception):
            raise found
        return found
    except urllib.error.HTTPError as error:
        raise AuthorityError(f"{where} answered with HTTP status {error.code}; is it the right address?") from None
    except TimeoutError:
        raise AuthorityError(f"{where} did not answer within {timeout:g} seconds; try again, or another one") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise AuthorityError(
                f"{where} did not answer within {timeout:g} seconds; try again, or another one"
            ) from None
        why = canonical.brief(getattr(reason, "strerror", None) or reason or type(error).__name__)
        raise AuthorityError(f"{where} cannot be reached ({why}); try again, or another one") from None


def _exchange(url: str, query: bytes, where: str, timeout: float) -> bytes:
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    request = urllib.request.Request(url, data=query, headers=headers, method="POST")
    raw, ends = bytearray(), time.monotonic() + timeout  # behind which nobody waits any more
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout) as answer:
        while (piece := answer.read1(_PIECE)) and time.monotonic() <= ends:
            raw += piece
            if len(raw) > MAX_TOKEN:
                raise AuthorityError(f"{where} sends more than {MAX_TOKEN:,} bytes, which no token has")
    return bytes(raw)
