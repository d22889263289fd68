"""What rating costs: microseconds per call for a usage of three classes, and what the first call of a process pays.

python benchmarks/rating.py
"""

from __future__ import annotations

import time
import timeit
from datetime import UTC, datetime

from tokenmeter.pricing import PriceList, Pricer, Rating
from tokenmeter.usage import Consumption, Observation, Usage

AT = datetime(2026, 11, 20, tzinfo=UTC)
USAGE = Usage({"input": 1200, "cache_read": 5000, "output": 300})
SEEN = Observation(consumptions=(Consumption(model="gpt-6-sol", usage=USAGE, prompt_tokens=6200),))


def main() -> None:
    started = time.perf_counter()
    pricer = Pricer(PriceList.load())
    print(f"load the list and hash it   {1e3 * (time.perf_counter() - started):8.2f} ms  {pricer.price_list_hash[:12]}")

    started = time.perf_counter()
    from genai_prices import data as _data  # noqa: F401, PLC0415 - what the first look-up has to import

    print(f"import the price data       {1e3 * (time.perf_counter() - started):8.2f} ms")

    started = time.perf_counter()
    rating = rate(pricer)
    print(f"first call beyond that      {1e3 * (time.perf_counter() - started):8.2f} ms  ${rating.list_cost}")

    number = 5_000
    best = min(timeit.repeat(lambda: rate(pricer), timer=time.process_time, number=number, repeat=9)) / number
    print(f"every further call          {1e6 * best:8.2f} us of CPU")


def rate(pricer: Pricer) -> Rating:
    return pricer.rate(SEEN, provider="openai", endpoint="responses", at=AT)


if __name__ == "__main__":
    main()
