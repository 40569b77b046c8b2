"""`python -m tests.schema_suite`: 500 schemas made at random, and others as drafts show and agents send them, answered under SmolLM2's masks.

Each answer that ends must be what its schema allows, formats included; what is refused is counted by its reason. Writes a results file, and ends with 1
where an answer is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from sampler_svc.grammars import GrammarCompiler
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from tests.schema_suite.agents import agents
from tests.schema_suite.answers import Drawer, fault_of
from tests.schema_suite.drafts import DRAFTS
from tests.schema_suite.generated import generated
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Grammar

RESULTS = Path(__file__).parents[1] / "bench" / "results" / "schema_suite.json"
_END = 2


class Suite:
    """Answers schemas with one tokenizer.

    Args:
        tokenizer: path of its tokenizer.json.
        end: the id that ends answers.
    """

    def __init__(self, tokenizer: Path, end: int = _END) -> None:
        loaded = load_tokenizer(tokenizer)
        vocabulary = Vocabulary(loaded)
        self._compiler = GrammarCompiler(tokenizer, vocabulary)
        self._width = loaded.get_vocab_size()
        self._drawer = Drawer([vocabulary.text_bytes(token) for token in range(self._width)], end)
        self._end = end

    def answer(self, schemas: Sequence[dict[str, Any]], answers: int, most_tokens: int) -> dict[str, Any]:
        """What became of so many answers to each."""
        refused: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        faults: list[dict[str, Any]] = []
        for number, schema in enumerate(schemas):
            grammar = Grammar("json_schema", json.dumps(schema))
            for attempt in range(answers):
                try:
                    state = self._compiler.open(grammar, self._width, [self._end], [])
                except InvalidRequest as error:
                    refused[_reason(error.message)] += 1
                    break
                chosen = random.Random(1000 * number + attempt)
                try:
                    text = self._drawer.draw(state, chosen, most_tokens)
                except InvalidRequest as error:
                    refused["on the way: " + _reason(error.message)] += 1
                    break
                counts["finished" if text is not None else "unfinished"] += 1
                fault = fault_of(text, schema) if text is not None else None
                if fault is not None:
                    faults.append({"schema": schema, "text": text, "fault": fault})
        return {
            "schemas": len(schemas),
            "refused": sum(refused.values()),
            "refused_by_reason": dict(refused.most_common()),
            "answers": dict(counts),
            "valid": counts["finished"] - len(faults),
            "faults": faults,
        }


def _reason(message: str) -> str:
    """What is the same in messages about the same."""
    line = message.removeprefix("grammar cannot be held: ").split(", at #")[0]
    return re.sub(r"(?<=: )\(And.*|/.*/|'[^']*'|\"[^\"]*\"|\d+", "...", line)[:100]


def main() -> None:
    """Answers all and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--most-tokens", type=int, default=400)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    suite = Suite(resolve_model(None, download_from_hub, os.environ).folder / "tokenizer.json")
    parts = {"generated": generated(arguments.schemas), "drafts": DRAFTS, "agents": agents()}
    found = {}
    for name, schemas in parts.items():
        found[name] = suite.answer(schemas, arguments.answers, arguments.most_tokens)
        print(name, json.dumps(found[name], indent=1, ensure_ascii=False), flush=True)
    document = {
        "what": "answers drawn at random under the masks of JSON schemas, held against the schemas by jsonschema",
        **{name: version(name) for name in ("triserve", "llguidance", "jsonschema", "hypothesis", "pydantic")},
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "parts": found,
    }
    arguments.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    sys.exit(any(part["faults"] for part in found.values()))


if __name__ == "__main__":
    main()
