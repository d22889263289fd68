"""How much more a strict budget holds for a call than it turns out to cost: the median over 200 varied calls.

Usage: python benchmarks/holds.py [--calls 200]

Prompts are prose, code, JSON and other scripts of 200 to 40,000 characters, answers a fraction of the cap that is
named, as in practice. True tokens are tiktoken's: it needs the encoding o200k_base on this machine
(``TIKTOKEN_CACHE_DIR``).
Printed are the ratios hold / true cost by the prompt's bytes alone, and with its tokens counted.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from datetime import UTC, datetime

from tokenmeter.budgets.bounds import Ceilings, bound, longest_prompt
from tokenmeter.budgets.tokens import TokenCounter
from tokenmeter.call import Call
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers.openai.requests import request_facts
from tokenmeter.providers.registry import dialect
from tokenmeter.usage import Consumption, Observation, Usage

NOW = datetime(2026, 11, 26, tzinfo=UTC)
PROSE = "The committee met on Tuesday to review the quarterly figures, and agreed that spending had been too high. "
CODE = "def total(rows):\n    return sum(row.price * row.count for row in rows if row.active)\n\n"
DATA = json.dumps({"id": 81231, "name": "Ada", "roles": ["admin", "billing"], "ratio": 0.4182}) + "\n"
OTHERS = "Die Überprüfung der Gebühren ergab einen Fehlbetrag. 会议决定减少开支。 Расходы были слишком высоки. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200)
    calls = parser.parse_args().calls
    tokens = TokenCounter()
    if not tokens.load("o200k_base"):
        raise SystemExit("The encoding o200k_base is not on this machine; set TIKTOKEN_CACHE_DIR to where it is.")
    pricer, ceilings, dice = Pricer(PriceList.load()), Ceilings(), random.Random(1)
    endpoint = dialect("openai").endpoint("POST", "/chat/completions")
    ratios: dict[str, list[float]] = {"bytes": [], "tokens": []}
    took: list[float] = []
    for _ in range(calls):
        kind, size = dice.choice((PROSE, CODE, DATA, OTHERS)), int(200 * 200 ** dice.random())
        text = (kind * (size // len(kind) + 1))[:size]
        body = {
            "model": dice.choice(("gpt-5", "gpt-5-mini", "gpt-4.1", "gpt-4o")),
            "messages": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": text}],
            "max_completion_tokens": dice.choice((200, 500, 1000)),
        }
        call = Call(
            provider="openai", endpoint="chat.completions", operation="chat", facts=request_facts(endpoint, body)
        )
        ceiling = ceilings.of(call, NOW, pricer, prompt_tokens=longest_prompt(call.provider, call.facts, pricer.terms))
        count = tokens.count("o200k_base", [text]) or 0
        answer = int(body["max_completion_tokens"] * dice.uniform(0.2, 0.9))
        seen = Consumption(model=body["model"], usage=Usage({"input": count + 15, "output": answer}))
        rating = pricer.rate(Observation(consumptions=(seen,)), provider="openai", endpoint=call.endpoint, at=NOW)
        for name, counter in (("bytes", None), ("tokens", tokens)):
            begin = time.process_time_ns()
            upper = bound(call, ceiling, counter)
            if counter is not None:
                took.append((time.process_time_ns() - begin) / 1000)
            ratios[name].append(float(upper.cost / rating.billed_cost))
    for name, found in ratios.items():
        high = statistics.quantiles(found, n=10)[-1]
        print(f"{name:<7} median {statistics.median(found):.2f}, 90 % below {high:.2f}, least {min(found):.2f}")
    print(f"counting: median {statistics.median(took):.0f} us, largest {max(took):.0f} us of CPU")


if __name__ == "__main__":
    main()
