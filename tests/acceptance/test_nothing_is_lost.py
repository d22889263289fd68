"""Whatever happens to the process, what a caller was given is in the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import tokenmeter

WORKER = textwrap.dedent(
    """
    import sys
    import tokenmeter
    from tokenmeter.openai import OpenAI

    store, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tokenmeter.configure(store=store)
    client = OpenAI(base_url=url, api_key="sk-worker-process-0001")
    print("ready", flush=True)
    for number in range(count):
        answer = client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": f"question {number}"}]
        )
        print(answer.id, flush=True)  # the caller has the answer: it is acknowledged
    """
)


def start(store, provider, count):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, store, provider.openai_url, str(count)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_process_loses_no_acknowledged_entry(provider, configure, tmp_path):
    store = f"sqlite:///{tmp_path / 'usage.db'}"
    acknowledged = []
    for count in (1, 7, 40):
        process = start(store, provider, 100_000)
        assert process.stdout.readline() == "ready\n"
        acknowledged += [process.stdout.readline().strip() for _ in range(count)]
        os.kill(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        # The last line may have been cut off in the middle of the write.
        acknowledged += output.split("\n")[:-1]
    configure()
    recorded = {entry.response_id for entry in tokenmeter.entries()}
    assert len(acknowledged) >= 48
    assert set(acknowledged) <= recorded
    assert len(recorded) <= len(acknowledged) + 3, "at most the call in hand at each kill is unacknowledged"
    assert tokenmeter.verify().ok


def test_eight_processes_of_five_hundred_calls_lose_none(provider, configure, tmp_path):
    store = f"sqlite:///{tmp_path / 'usage.db'}"
    processes = [start(store, provider, 500) for _ in range(8)]
    answers = [line for process in processes for line in process.communicate()[0].split()[1:]]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(answers)) == 4000
    configure()
    report = tokenmeter.report()
    assert report.totals.requests == 4000
    assert report.totals.input_tokens == provider.total.input_tokens
    assert report.totals.output_tokens == provider.total.output_tokens
    assert tokenmeter.verify().ok
