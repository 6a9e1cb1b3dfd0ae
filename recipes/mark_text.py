# SPDX-License-Identifier: Apache-2.0
"""Write marked text with a causal language model, read the mark back, and make a report page.

``--tiny`` needs nothing: it makes a small random model. Otherwise give the folder of a transformers model.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from privguard.watermark.secret import Secret
from privguard.watermark.text.profile import Profile
from privguard.watermark.text.reading.detect import Detector
from privguard.watermark.text.reading.ngrams import Documents
from privguard.watermark.text.reading.page import report
from privguard.watermark.text.writing.generate import MarkedGeneration


def tiny_model():
    sizes = {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=None, pad_token_id=0)  # random weights: no early end
    return GPT2LMHeadModel(config).eval(), torch.randint(1, 512, (4, 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", type=Path, help="folder of a causal transformers model")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    chosen = parser.parse_args()
    secret = Secret.generate()
    if chosen.tiny:
        model, ids = tiny_model()
        profile = Profile(key_id=secret.key_id, vocabulary="tiny", logits_width=512, special_ids=(0,))
        words = [str(i) + " " for i in range(512)]
    else:
        tokenizer = AutoTokenizer.from_pretrained(chosen.model)
        model = AutoModelForCausalLM.from_pretrained(chosen.model).eval()
        ids = tokenizer(chosen.prompt, return_tensors="pt")["input_ids"].repeat(4, 1)
        profile = Profile.for_tokenizer(tokenizer, secret, logits_width=model.config.vocab_size)
        words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    marked = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        custom_generate=MarkedGeneration(profile, secret),
        do_sample=True,
        top_k=0,
        max_new_tokens=chosen.tokens,
    )[:, ids.shape[1] :].numpy()
    detector = Detector(profile, secret)
    found = detector.detect(Documents.of_batch(marked))
    for row in range(len(marked)):
        print(
            f"text {row}: sub-key {found.subkey[row]}, {found.scored[row]} n-grams, log10 p = {found.log10_p[row]:.1f}"
        )
    page = report(detector, Documents.of_lists([marked[0]]), words=[words[i] for i in marked[0]])
    chosen.out.write_text(page.to_html(), encoding="utf-8")
    print(page.answer, f"({chosen.out})")


if __name__ == "__main__":
    main()
