"""The names that a model may be listed under.

Which model of the base data a name means is decided strictly: a wrong match is a wrong bill, so a name that no rule
below explains is unknown. (genai-prices' own matching, whose prefixes match models that do not exist yet, and its
arithmetic are not used.) A name matches when it is an id or a declared alias of the price list, or becomes one by
taking away

- a snapshot's date: ``-2025-08-07``, ``-20250807``, ``@20250807`` (a date that exists), ``@default``, ``-latest``;
- a cloud's envelope: Bedrock's ``us.``/``eu.``/``global.`` profile, ``anthropic.`` vendor, ``-v1:0`` version and ARN,
  Google's ``publishers/.../models/`` path, ``-001`` release and ``-preview-05-20`` stage;
- what Azure's fine-tuning puts behind its model: ``gpt-4.1-2025-04-14.ft-0e20...-suffix``, at that model's rates;
- the provider's own name before it, as gateways write it: ``openai/gpt-5`` at OpenAI, ``xai/grok-4`` at xAI.

Never by prefix or containment: ``claude-opus-4-10`` is not ``claude-opus-4-1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date

from tokenmeter.providers.hosts import canonical_provider

_DATE = re.compile(r"[-@:](20\d\d)(-?)(\d\d)\2(\d\d)$")
_FINE_TUNED = re.compile(r"(ft:[^:]+):")
_AZURE_TUNED = re.compile(r"\.ft-[0-9a-z]+")
_FLOATING = re.compile(r"(?:-latest|@latest|@default)$")
_BEDROCK_VERSION = re.compile(r"-v\d+(?::\d+)?(?::\d+k)?$|:\d+$")
_BEDROCK_PROFILE = re.compile(
    r"(?:(global)|(us-gov)|regional|us|eu|apac|jp|au|ca|in|sa|me|af|il|uk|kr)\.(?=[a-z0-9]+\.)"
)
_GOOGLE_STAGE = re.compile(r"(?:-preview)?-(?:0[1-9]|1[0-2])-(?:[0-3]\d|20\d\d)$|-preview$|-0\d\d$")


def undated(name: str) -> str | None:
    """`name` without its snapshot date or ``-latest``; None when it has none."""
    if floating := _FLOATING.search(name):
        return name[: floating.start()]
    found = _DATE.search(name)
    if found is None:
        return None
    try:
        date(int(found[1]), int(found[3]), int(found[4]))
    except ValueError:
        return None
    return name[: found.start()]


def scope_of(region: str | None) -> str | None:
    """``"global"`` where a name that does not say itself is priced by Bedrock's global rows: there, and in GovCloud."""
    return "global" if region == "global" or (region or "").startswith("us-gov") else None


def forms(provider: str, name: str, region: str | None) -> Iterator[str]:
    """The names that `name` may be listed under at `provider`, the most literal first.

    Args:
        provider: Canonical provider id.
        name: The model as the provider or the caller names it.
        region: ``"global"`` prefers Bedrock's global rows for a name that does not say; see `scope_of`.
    """
    seen: set[str] = set()
    for form in _forms(provider, name.strip().lower(), region):
        if form and form not in seen:
            seen.add(form)
            yield form


def _forms(provider: str, name: str, region: str | None) -> Iterator[str]:
    if provider == "aws":
        if ":provisioned-model/" in name:  # which model it is, its owner knows alone
            yield "provisioned-model"
        yield from _bedrock_forms(name.rsplit("/", 1)[-1], region)
        return
    yield name
    if provider == "azure" and name.startswith("gpt-35-"):
        name = name.replace("35", "3.5", 1)
        yield name
    owner, _, own = name.partition("/")
    if own and canonical_provider(owner) == provider:
        name = own
        yield name
    if provider == "azure" and (tuned := _AZURE_TUNED.search(name)):  # the rates of what it was made from
        name = name[: tuned.start()]
        yield name
    if provider == "google":
        name = name.rsplit("/", 1)[-1]
        yield name
    yield from _snapshots((name,))
    if tuned := _FINE_TUNED.match(name):
        yield tuned[1]
        yield from _snapshots((tuned[1],))
        yield tuned[1].rpartition("-")[0]  # ft:gpt-3.5-turbo-0125
    if provider == "google" and not name.startswith("claude"):
        stage = _GOOGLE_STAGE.search(name)
        if stage:
            yield name[: stage.start()]


def _snapshots(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        shorter = undated(name)
        if shorter:
            yield shorter


def _bedrock_forms(name: str, region: str | None) -> Iterator[str]:
    profile = _BEDROCK_PROFILE.match(name)
    bare = name[profile.end() :] if profile else name
    versionless = _BEDROCK_VERSION.sub("", bare)
    names = list(dict.fromkeys((bare, versionless)))
    if "." not in bare.split("-")[0]:  # Anthropic's own client answers without the vendor
        names = [vendor + each for vendor in ("anthropic.", "openai.") for each in names] + names
    if profile and profile[1]:
        scopes: tuple[str, ...] = ("global.",)
    elif (profile and profile[2]) or (region == "global" and not profile):
        scopes = ("global.", "regional.", "")  # GovCloud's price is a multiple of the global one
    else:
        scopes = ("regional.", "")
    for scope in scopes:
        for each in names:
            yield scope + each
            yield from _snapshots((scope + each,))


def listed_names(provider: str, identity: str) -> Iterator[str]:
    """Further names a listed id answers to: Bedrock ids without version and date, where that is unambiguous."""
    if provider == "aws":
        versionless = _BEDROCK_VERSION.sub("", identity)
        yield versionless
        yield from _snapshots((versionless,))
