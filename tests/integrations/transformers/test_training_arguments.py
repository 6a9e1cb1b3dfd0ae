"""Every field of TrainingArguments has been thought about."""

import dataclasses
from pathlib import Path

from transformers import TrainingArguments

from privguard.integrations import sft_arguments, training_arguments
from privguard.integrations.training_arguments import HONOURED, MAPPED, REFUSED

DOCS = Path(__file__).parents[3] / "docs" / "training-arguments.md"


def test_every_field_is_honoured_mapped_or_refused_and_in_one_table_only():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    tables = [set(HONOURED), set(MAPPED), set(REFUSED)]
    assert fields == set.union(*tables)
    assert sum(map(len, tables)) == len(fields)


def test_the_docs_say_the_same():
    assert DOCS.read_text() == training_arguments.page() + "\n" + sft_arguments.page()
