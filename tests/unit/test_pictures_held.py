"""A picture in a prompt is held at what its size and the model's rule come to, and never below what it costs."""

import base64
import math
import random
import struct
import zlib
from fractions import Fraction

import pytest

from tokenmeter.budgets.bounds import bound, longest_prompt
from tokenmeter.call import Call, Picture
from tokenmeter.pricing import Ceiling, Terms
from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.pictures import read_picture
from tokenmeter.providers.registry import dialect, prompt_rule

LINK = "https://example.com/a.png"
CONTEXT = 1_050_000


def png(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(60)


def gif(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(60)


def jpeg(width, height, before=70_000):
    """Behind a preview of its own, as cameras write one, and a table."""
    preview = b"\xff\xe1" + struct.pack(">H", min(before, 60_000)) + (b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10" * 7_000)
    preview = preview[: min(before, 60_000) + 2]
    table = b"\xff\xc4" + struct.pack(">H", 30) + bytes(28)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + preview + table + b"\xff" + frame + bytes(60)


def webp(chunk):
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk + bytes(60)


def lossy(width, height):
    return webp(b"VP8 " + struct.pack("<I", 10) + b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width, height))


def lossless(width, height):
    return webp(b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14))


def extended(width, height):
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides)


def address(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("make", [png, gif, jpeg, lossy, lossless, extended])
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (1023, 12_001)])
def test_the_size_is_read_whatever_the_format_and_wherever_it_stands(make, size):
    data = make(*size)
    for part in (
        {"type": "image_url", "image_url": {"url": address(data), "detail": "low"}},
        {"type": "input_image", "image_url": address(data), "detail": "low"},
        {"type": "image", "source": {"type": "base64", "data": base64.b64encode(data).decode()}, "detail": "low"},
    ):
        assert read_picture(part) == Picture(size[0], size[1], "low")


@pytest.mark.parametrize(
    "part",
    [
        {"image_url": LINK},
        {"image_url": {"url": LINK}},
        {"image_url": "data:image/svg+xml;utf8,<svg/>"},
        {"image_url": "data:image/png;base64"},
        {"image_url": address(b"BM" + bytes(80))},
        {"image_url": address(b"\x89PNG\r\n\x1a\n" + bytes(50))},
        {"image_url": address(b"\xff\xd8\xff\xe1" + b"\xff\xff")},
        {"image_url": "data:image/png;base64,%%%%"},
        {"image_url": "data:image/png;base64,äöü"},
        {"image_url": address(b"")},
        {"image_url": 7},
        {"file_id": "file-1"},
        {"source": {"type": "url", "url": LINK}},
        {"source": "a"},
    ],
)
def test_a_picture_that_lies_elsewhere_or_of_an_unknown_format_has_no_size(part):
    assert read_picture(part)[:2] == (0, 0)


def test_a_header_that_is_cut_off_anywhere_is_no_fault():
    for make in (png, gif, jpeg, lossy, lossless, extended):
        data = make(300, 200)
        for length in range(120):
            assert read_picture({"image_url": address(data[:length])})[:2] in {(0, 0), (300, 200)}


# -- what it costs: figures as the providers' guides give them, or as bills were seen


@pytest.mark.parametrize(
    ("model", "size", "detail", "most"),
    [
        ("gpt-4o", (1024, 1024), None, 765),
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4o", (128, 64), None, 255),
        ("gpt-4o", (0, 0), None, 85 + 8 * 170),
        ("gpt-4o-2024-08-06", (1024, 1024), None, 765),
        ("openai/gpt-4.1", (1024, 1024), None, 765),
        ("ft:gpt-4o-2024-08-06:acme::x", (1024, 1024), None, 765),
        ("gpt-4o-mini", (128, 64), None, 2_833 + 5_667),
        ("gpt-4o-mini", (0, 0), None, 48_169),
        ("gpt-5", (1024, 1024), None, 630),
        ("o3", (128, 64), None, 225),
        ("gpt-4.1-mini", (1024, 1024), None, 1_659),
        ("gpt-4.1-mini", (4000, 1474), None, 2_489),
        ("gpt-5-nano", (0, 0), None, 3_779),
        ("o4-mini", (32, 33), None, 4),
        ("gpt-5.4", (6000, 6000), None, 6_150),
        ("gpt-5.4", (6000, 6000), "original", 24_600),
        ("gpt-5.5", (6000, 6000), None, 24_600),
        ("gpt-5.5", (6000, 6000), "high", 6_150),
        ("gpt-5.5", (32, 32), "low", 630),
        ("gpt-5.6", (8000, 6000), None, 115_620),
        ("gpt-6.1-sol", (8000, 6000), "original", 115_620),
        ("gpt-6.1-sol", (0, 0), "high", 6_150),
        ("gpt-6.1-sol", (0, 0), None, None),
        ("claude-sonnet-4-5", (1092, 1092), None, 1_749),
        ("claude-sonnet-4-5", (0, 0), None, 4_784),
        ("us.anthropic.claude-opus-4-7", (8000, 8000), None, 4_784),
    ],
)
def test_a_picture_is_held_by_its_size_and_what_it_is_asked_for(model, size, detail, most):
    assert prompt_rule("", model).of_picture(Picture(size[0], size[1], detail)) == most


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-audio-preview", "gpt-5-pro", "gpt-5.1", "my-o3", "claudette", "notgpt-4o", "llama-4", "gemini-35", ""],
)
def test_a_name_that_only_contains_another_is_not_of_its_family(model):
    rule = prompt_rule("", model)
    assert (rule.of_picture, rule.image, rule.overhead) == (None, 25_000, 32)


def test_no_way_of_rounding_costs_more_tiles_than_are_held():
    dice = random.Random(1)
    held = prompt_rule("", "gpt-4o").of_picture
    for _ in range(2_000):
        width, height = (int(2 ** dice.uniform(0, 14)) for _ in range(2))
        for near in (math.floor, round, math.ceil):
            sides = [width, height]
            for most, of in ((2_048, max), (768, min)):
                if of(sides) > most:
                    factor = Fraction(most, of(sides))
                    sides = [near(side * factor) for side in sides]
            tiles = -(-sides[0] // 512) * -(-sides[1] // 512)
            assert 85 + 170 * max(tiles, 1) <= held(Picture(width, height)), (width, height, sides)


def test_a_picture_of_unknown_size_may_fill_the_window_of_a_model_that_makes_none_smaller():
    ceiling = Ceiling(input=None, output=None, context_window=CONTEXT, max_output_tokens=8_192)
    for part, window in (
        ({"type": "input_image", "image_url": LINK}, True),
        ({"type": "input_image", "image_url": LINK, "detail": "high"}, False),
        ({"type": "input_image", "image_url": address(png(640, 480))}, False),
    ):
        body = {"model": "gpt-5.6", "max_output_tokens": 9, "input": [{"role": "user", "content": [part, part]}]}
        facts = dialect("openai").request_facts(Endpoint("responses", "chat"), body)
        call = Call(provider="openai", endpoint="responses", operation="chat", facts=facts)
        longest = longest_prompt("openai", facts, Terms())
        assert (longest is None) is window
        assert bound(call, ceiling).input_tokens == (CONTEXT if window else longest)
        assert "no_context_window" in bound(call, None).reasons or not window
