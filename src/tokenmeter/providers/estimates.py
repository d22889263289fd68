"""The one place where tokens are guessed from what was sent or received. Whatever uses it is flagged ``estimated``."""

from __future__ import annotations

from tokenmeter.call import PlainRequest, RequestFacts
from tokenmeter.usage import Consumption, Usage

#: UTF-8 bytes per token: near for English prose and JSON with o200k_base and Claude's tokenizer (3.5 to 4.5).
BYTES_PER_TOKEN = 4
#: An image at usual size and detail costs some 750 to 1,600 tokens.
TOKENS_PER_IMAGE = 1_000
#: Speech runs at about 15 characters a second and costs about 21 audio tokens a second.
SPEECH_TOKENS = (7, 5)


def tokens_of(size: int) -> int:
    """About how many tokens `size` UTF-8 bytes are, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def input_tokens(request: RequestFacts | PlainRequest) -> int:
    """About how many tokens the prompt of `request` is."""
    return tokens_of(request.input_bytes) + TOKENS_PER_IMAGE * request.image_count


def speech_tokens(characters: int) -> int:
    """About how many audio tokens it takes to speak `characters`."""
    upper, lower = SPEECH_TOKENS
    return -(-characters * upper // lower)


def estimate(request: RequestFacts, *, model: str | None, received: int, prompt: int | None = None) -> Consumption:
    """What a call used as far as can be told from its request and the bytes that came back.

    Args:
        request: The request.
        model: Model that answered, if it said so.
        received: UTF-8 bytes of answer received.
        prompt: The prompt's tokens, where they are known.
    """
    size = input_tokens(request) if prompt is None else prompt
    quantities = {meter: tokens for meter, tokens in (("input", size), ("output", tokens_of(received))) if tokens}
    return Consumption(
        model=model or request.model,
        usage=Usage(quantities),
        service_tier=request.service_tier,
        processing=request.processing,
        speed=request.speed,
        region=request.region,
        prompt_tokens=size,
    )
