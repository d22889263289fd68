"""Alerts by e-mail."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import format_datetime

from tokenmeter.budgets.alerts import Alert, Notice
from tokenmeter.budgets.delivery import TargetError
from tokenmeter.errors import ConfigurationError


class Email:
    """Sends each alert as an e-mail by SMTP.

    Args:
        to: Addresses.
        sender: The ``From`` address.
        host: The mail server.
        port: Its port.
        security: ``starttls`` (587), ``tls`` from the first byte (465), or ``none`` for a server on this machine.
        user: Account to log in with, if any.
        password: Its password.
        timeout: Seconds to wait for the server.

    Raises:
        ConfigurationError: no recipient, an address with a line break, or an unknown security.
    """

    def __init__(
        self,
        to: str | Sequence[str],
        *,
        sender: str,
        host: str,
        port: int = 587,
        security: str = "starttls",
        user: str | None = None,
        password: str | None = None,
        timeout: int = 10,
    ) -> None:
        self._to = [to] if isinstance(to, str) else list(to)
        for address in (*self._to, sender):
            if "@" not in address or not address.isprintable():
                raise ConfigurationError(f"email: {address!r} is not an address.")
        if not self._to:
            raise ConfigurationError("email.to must name at least one address.")
        if security not in {"starttls", "tls", "none"}:
            raise ConfigurationError(f"email.security must be starttls, tls or none, not {security!r}.")
        self._sender = sender
        self._server = (host, port)
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
            TargetError: the server did not take it.
        """
        message = EmailMessage()
        message["From"] = self._sender
        message["To"] = ", ".join(self._to)
        message["Subject"] = " ".join(f"[tokenmeter] {alert.title}".split())  # a name may hold line breaks
        message["Date"] = format_datetime(alert.at)
        message["Message-ID"] = f"<{alert.alert_id}@tokenmeter>"
        lines = "".join(f"{name}: {value}\n" for name, value in alert.facts().items())
        message.set_content(f"{alert}\n\n{lines}")
        try:
            self._send(message)
        except (OSError, smtplib.SMTPException) as error:
            raise TargetError(
                f"{self!r} could not be sent by {self._server[0]}: {type(error).__name__}: {error}."
            ) from error

    def _send(self, message: EmailMessage) -> None:
        context = ssl.create_default_context()
        if self._security == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(*self._server, timeout=self._timeout, context=context)
        else:
            server = smtplib.SMTP(*self._server, timeout=self._timeout)
        with server:
            if self._security == "starttls":
                server.starttls(context=context)
            if self._login is not None:
                server.login(*self._login)
            server.send_message(message)
