"""Alerts by e-mail."""

from __future__ import annotations

import contextlib
import logging
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import format_datetime, getaddresses

from tokenmeter.budgets.alerts import Alert, Notice
from tokenmeter.budgets.delivery import TargetError
from tokenmeter.errors import ConfigurationError, reason_of
from tokenmeter.patience import STEPS, wait_for

log = logging.getLogger("tokenmeter")

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
#: From here on an answer is for good; below, it may be another one later: some servers put off whom they do not know.
_FOR_GOOD = 500
_WRONG_LOGIN = 535


class Email:
    """Sends each alert as an e-mail by SMTP.

    Args:
        to: Addresses, each with a name before it or without one: ``Ada <ada@example.com>``.
        sender: The ``From`` address.
        host: The mail server.
        port: Its port; default: the usual one.
        security: ``starttls`` (587), ``tls`` from the first byte (465), or ``none`` (25) for a server on this machine.
        user: Account to log in with, if any.
        password: Its password, in ASCII.
        timeout: Seconds to wait for the server.

    Raises:
        ConfigurationError: no recipient, what is no address or no host, a password that SMTP cannot send, or an unknown
            security.
    """

    def __init__(
        self,
        to: str | Sequence[str],
        *,
        sender: str,
        host: str,
        port: int | None = None,
        security: str = "starttls",
        user: str | None = None,
        password: str | None = None,
        timeout: int = 10,
    ) -> None:
        self._to = [to] if isinstance(to, str) else list(to)
        for address in (*self._to, sender):
            if not _is_address(address):
                raise ConfigurationError(f"email: {address!r} is not an address.")
        if not self._to:
            raise ConfigurationError("email.to must name at least one address.")
        if security not in {"starttls", "tls", "none"}:
            raise ConfigurationError(f"email.security must be starttls, tls or none, not {security!r}.")
        if not _is_host(host):
            raise ConfigurationError(f"email.host must be the name of a mail server, not {host!r}.")
        if not (password or "").isascii():  # which is not shown
            raise ConfigurationError("email.password must be ASCII: SMTP's log-in has no other letters.")
        self._addresses = list(dict.fromkeys(address for _, address in getaddresses(self._to)))
        #: Who is still to be told, of alerts that the server did not take for everybody yet.
        self._left: dict[str, list[str]] = {}
        self._sender = sender
        self._server = (host, _PORTS[security] if port is None else port)
        self._at = "{}:{}".format(*self._server)
        self._security = security
        self._login = (user, password or "") if user else None
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<Email {self.address}>"

    @property
    def address(self) -> str:
        """To whom it goes."""
        return ", ".join(self._to)

    def __call__(self, alert: Alert | Notice) -> None:
        """Send `alert`.

        Raises:
            TargetError: the server did not take it, or not for everybody yet: who has it is not sent it again.
        """
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = ", ".join(self._to)
        message["Subject"] = " ".join(f"[tokenmeter] {alert.title}".split())  # a name may hold line breaks
        message["Date"] = format_datetime(alert.at)
        # The same with every attempt, so that a mail program shows one that came twice as one.
        message["Message-ID"] = f"<{alert.alert_id}@tokenmeter>"
        lines = "".join(f"{name}: {value}\n" for name, value in alert.facts().items())
        message.set_content(f"{alert}\n\n{lines}")
        left = self._left.get(alert.alert_id, self._addresses)
        try:
            refused = wait_for(lambda _: self._send(message, left), STEPS * self._timeout)
        except (OSError, smtplib.SMTPException) as error:
            raise self._failure(_explain(error)) from error
        later = {address: answer for address, answer in refused.items() if answer[0] < _FOR_GOOD}
        nobody = len(refused) == len(self._addresses)
        for address in refused.keys() - later.keys() if later or not nobody else ():
            log.warning("An alert was not sent to %s, whom %s refused: %s", address, self._at, _say(*refused[address]))
        if later or nobody:
            self._left[alert.alert_id] = list(later or left)
            told = "; ".join(f"{address}: {_say(*answer)}" for address, answer in (later or refused).items())
            raise self._failure(f"it answered for {told}")
        self._left.pop(alert.alert_id, None)

    def _failure(self, why: str) -> TargetError:
        return TargetError(f"{self!r} could not be sent by {self._at}: {why}.")

    def _send(self, message: EmailMessage, to: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """Hand a mail to the server; what it answered for the recipients that it did not take."""
        context = ssl.create_default_context()
        if self._security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(*self._server, timeout=self._timeout, context=context)
        else:
            server = smtplib.SMTP(*self._server, timeout=self._timeout)
        try:
            if self._security == "starttls":
                server.starttls(context=context)
            if self._login is not None:
                server.login(*self._login)
            return server.send_message(message, to_addrs=to)
        except smtplib.SMTPRecipientsRefused as nobody:
            return nobody.recipients
        finally:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                server.quit()  # a mail that was taken is sent, whatever is answered to this
            server.close()


def _explain(error: Exception) -> str:
    """What went wrong, as who set the target up can mend it."""
    if isinstance(error, smtplib.SMTPResponseException):
        said = _say(error.smtp_code, error.smtp_error)
        if error.smtp_code == _WRONG_LOGIN:
            return f"it answered {said}, which is what a wrong user or password is answered with"
        return f"it answered {said}"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return f"it broke the connection off, or did not answer in time ({reason_of(error)})"
    why = reason_of(error)
    return f'{why}: email.security is to be "tls" or "none"' if "STARTTLS" in why else why


def _say(code: int, answer: bytes | str) -> str:
    """An answer of a server in one line."""
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return " ".join(f"{code} {text}".split()).rstrip(".")


def _is_address(text: str) -> bool:
    """Whether it is one address as a header has it: ``ada@example.com``, ``Ada <ada@example.com>``."""
    found = [address.rpartition("@") for _, address in getaddresses([text])]
    return text.isprintable() and len(found) == 1 and all(found[0]) and " " not in "".join(found[0])


def _is_host(text: str) -> bool:
    try:
        return bool(text.encode("idna")) and text.isprintable() and not set(text) & set("/@ ")
    except UnicodeError:
        return False
