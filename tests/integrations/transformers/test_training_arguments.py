# SPDX-License-Identifier: Apache-2.0
"""Every field of TrainingArguments has been thought about."""

import dataclasses
from pathlib import Path

from transformers import TrainingArguments

from privguard.integrations.transformers import arguments as training_arguments
from privguard.integrations.transformers import preference_arguments, sft_arguments
from privguard.integrations.transformers.arguments import HONOURED, MAPPED, REFUSED

DOCS = Path(__file__).parents[3] / "docs" / "training-arguments.md"


def test_every_field_is_honoured_mapped_or_refused_and_in_one_table_only():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    tables = [set(HONOURED), set(MAPPED), set(REFUSED)]
    assert fields == set.union(*tables)
    assert sum(map(len, tables)) == len(fields)


def table(rules):
    return [
        "| field | in a private run |",
        "|---|---|",
        *(f"| `{name}` | **mapped**: {text} |" for name, text in sorted(rules.MAPPED.items())),
        *(f"| `{name}` | **refused** when it is set: {text} |" for name, (_, text) in sorted(rules.REFUSED.items())),
        *(f"| `{name}` | honoured |" for name in sorted(rules.HONOURED)),
    ]


def test_the_page_in_the_docs_lists_these_tables():
    page = [
        "# TrainingArguments in a private run",
        "",
        "Every field of `transformers.TrainingArguments` under `PrivateTrainer`. A field of a new transformers release",
        "that is not in this table fails a test of privguard.",
        "",
        *table(training_arguments),
        "",
        "## SFTConfig",
        "",
        "The fields that `trl.SFTConfig` adds, under `PrivateSFTTrainer`.",
        "",
        *table(sft_arguments),
        "",
        "## DPOConfig",
        "",
        "The fields that `trl.DPOConfig` adds, under `PrivateDPOTrainer`.",
        "",
        *table(preference_arguments.DPO),
        "",
        "## RewardConfig",
        "",
        "The fields that `trl.RewardConfig` adds, under `PrivateRewardTrainer`.",
        "",
        *table(preference_arguments.Reward),
    ]
    assert DOCS.read_text().splitlines() == page
