"""A program whose ledger cannot be written for a while: the system refuses to let its files grow. See the test."""

import asyncio
import json
import logging
import os
import resource
import sys
import threading
from pathlib import Path

import openai

import tokenmeter
from tokenmeter.testing import FakeProvider

how, folder, ends = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
meter = tokenmeter.make_meter(store=f"sqlite:///{folder / 'ledger.db'}")
told = {}


MOST = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


def let_files_grow(to=MOST):
    resource.setrlimit(resource.RLIMIT_FSIZE, (to, MOST))


with FakeProvider() as provider:
    question = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]}
    kind = openai.AsyncOpenAI if how == "async" else openai.OpenAI
    client = tokenmeter.wrap(kind(api_key="sk-test", base_url=provider.openai_url, max_retries=0), meter=meter)
    loop = asyncio.new_event_loop()

    def call():
        if how == "async":
            loop.run_until_complete(client.chat.completions.create(**question))
        elif how == "stream":
            list(client.chat.completions.create(**question, stream=True))
        else:
            client.chat.completions.create(**question)

    for _ in range(4):  # the later ones go by a plan
        call()
    let_files_grow(to=max(path.stat().st_size for path in folder.glob("ledger.db-tail.*")))
    with tokenmeter.attribute(member="ada") as scope:
        for _ in range(3):
            call()
    for _ in range(5):
        call()
    told["during"] = {"waiting": len(meter.waiting), "flush": meter.flush(0), "counted": scope.requests}
    told["faults"] = meter.faults
    if ends == "killed by its own end":
        sys.stdout.write(json.dumps(told))
        sys.stdout.flush()
        sys.exit()
    let_files_grow()
    if ends == "a call tells":
        call()
    elif ends == "nobody calls":
        for thread in threading.enumerate():
            if thread.name == "tokenmeter-waiting":
                thread.join()
    told["reported"] = meter.report().totals.requests
    told["after"] = {"waiting": meter.flush(0), "entries": len(list(meter.store.entries()))}
    told["ada"] = sum(entry.attribution.member == "ada" for entry in meter.store.entries())
    told["sent"] = len(provider.requests)
    told["verified"] = meter.store.verify().ok
    meter.close()
sys.stdout.write(json.dumps(told))
sys.stdout.flush()
os._exit(0)
