"""What the service `app` of the compose file runs: one call, and what it cost."""

import tokenmeter
from tokenmeter.openai import OpenAI

with tokenmeter.attribute(member="ada", route="/hello"):
    answer = OpenAI().responses.create(model="gpt-5-mini", input="Say hello.")
print(answer.output_text)
print(tokenmeter.report(by="member", period="today"))
tokenmeter.flush()
