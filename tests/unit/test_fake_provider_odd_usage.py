"""A scripted usage is sent as it is, also where its counts are no numbers."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tokenmeter.testing import FakeProvider

ODD = ["900", 900.5, None, {"of": 3}, [1], True]
QUESTION = [{"role": "user", "content": "Hi"}]


def post(url, body, **headers):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - on this machine
        return json.load(answer)


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize(
    ("path", "body", "whole", "part"),
    [
        ("/chat/completions", {"messages": QUESTION}, "prompt_tokens", ("prompt_tokens_details", "cached_tokens")),
        ("/responses", {"input": "Hi"}, "input_tokens", ("input_tokens_details", "cached_tokens")),
    ],
)
def test_openai_answers_have_it(path, body, whole, part, odd):
    for usage in ({whole: odd}, {whole: 3, part[0]: {part[1]: odd}}, {whole: odd, part[0]: {part[1]: 3}}):
        with FakeProvider() as provider:
            provider.answer("t", usage=usage)
            question = {"model": "gpt-5-mini", **body}
            answer = post(provider.openai_url + path, question, Authorization="Bearer sk-1")
        assert answer["usage"] == usage


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_anthropic_answers_have_it(odd):
    for usage in ({"input_tokens": odd}, {"input_tokens": 3, "cache_creation_input_tokens": odd}):
        with FakeProvider() as provider:
            provider.answer("t", usage=usage)
            body = {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": QUESTION}
            headers = {"x-api-key": "sk-1", "anthropic-version": "2023-06-01"}
            answer = post(provider.anthropic_url + "/v1/messages", body, **headers)
        assert answer["usage"] == usage


@pytest.mark.parametrize("odd", [None, "900", [1], 5], ids=str)
def test_whatever_stands_in_place_of_a_usage_is_sent_in_every_format(odd):
    """By `fields`, as a host that counts badly. Formats that could not answered 500, which SDKs ask again."""
    claude = {"model": "claude-haiku-4-5", "max_tokens": 20, "messages": QUESTION}
    google = {"x-goog-api-key": "k"}
    with FakeProvider() as provider:
        for url, body, key, headers in [
            (f"{provider.anthropic_url}/v1/messages", claude, "usage", {"x-api-key": "k"}),
            (
                f"{provider.openai_url}/responses",
                {"model": "gpt-5", "input": "Hi"},
                "usage",
                {"Authorization": "Bearer k"},
            ),
            (
                f"{provider.google_url}/v1beta/interactions",
                {"model": "gemini-2.5-flash", "input": "x"},
                "usage",
                google,
            ),
            (f"{provider.google_url}/v1beta/models/gemini-2.5-flash:generateContent", {}, "usageMetadata", google),
            (
                f"{provider.google_url}/v1beta/models/gemini-2.5-flash:streamGenerateContent",
                {},
                "usageMetadata",
                google,
            ),
        ]:
            for streamed in (False, True) if body else (False,):
                provider.answer("two words", fields={key: odd})
                asked = json.dumps({**body, "stream": streamed} if body else {"contents": []}).encode()
                request = urllib.request.Request(url, asked, {"Content-Type": "application/json", **headers})  # noqa: S310
                with urllib.request.urlopen(request) as answer:  # noqa: S310 - on this machine
                    said = answer.read().decode().replace(" ", "")
                assert f'"{key}":{json.dumps(odd)}' in said
