# SPDX-License-Identifier: Apache-2.0
"""What to type: at least one use of every command, shown at the end of its ``--help``; a test holds them to the app."""

import typer
from rich.markup import escape

USES = """\
demo
demo --dry-run
demo --config mine.toml --out runs/demo --json
plan --epsilon 3 --delta 1e-5 --examples 60000 --batch-size 512 --epochs 20
plan --epsilon 3 --delta 1e-5 --examples 6920 --batch-size 1024 --epochs 5 --parameters 1400000 --start table
plans recommend --epsilon 3 --delta 1e-5 --examples 60000 --parameters 26010 --epochs 5 --momentum 0.9
plans compare independent.json banded.json
plans compare runs/mnist/run.json banded.json --json
init trainer -o train.py --examples 67349 --epsilon 3
doctor --book team.db --key team.key
report make runs/mnist
report make runs/mnist --sign officer.pem --trust trust.json --data-name 'patients of 2026'
report verify runs/mnist --signer officer.pem.pub
report compare runs/mnist runs/mnist-2 --html compared.html
report card runs/mnist --name mnist-private --license apache-2.0
report index runs/ --html index.html --book team.db --signer officer.pem.pub
report schema
key new team.key
key new --signing officer.pem
key recipient team.key -o team.pub
key inspect team.pub
seal checkpoint-500/ --to team.pub
seal model.safetensors --passphrase --auditor officer.pub
open checkpoint-500.sealed --key team.key -o restored/
open runs/mnist/checkpoints/step-00002350.sealed --key team.key --weights -o model.safetensors
inspect checkpoint-500.sealed
rewrap run.sealed --key team.key --add new.pub --remove old.pub
mark commit claim --weights plain.safetensors --shape 64 --classes 10 --identity owner.key
mark commit claim --timestamp answer.tsr --pulse pulse.json
mark trust trust.json --tsa authority.pem --beacon nist.pem --verifier their.pub
mark embed claim --weights plain.safetensors --public public.npz --trust trust.json -o marked.safetensors
mark challenge claim --suspect suspect.safetensors --unmarked plain.safetensors --notary notary.json \
--verifier verifier.key -o evidence.json
mark verify evidence.json --trust trust.json --suspect suspect.safetensors
mark drill claim --weights marked.safetensors --unmarked plain.safetensors --thief thief.npz --test test.npz \
--trust trust.json -o drill
mark trace claim --suspect leaked.safetensors --unmarked plain.safetensors --trust trust.json
mark text setup --profile profile.json --secret mark.secret --sign-with signer.key --tokenizer MODEL \
--logits-width 50257
mark text write prompts.jsonl --model MODEL --profile profile.json --secret mark.secret --trust profile.pem \
-o marked.jsonl
mark text detect marked.jsonl --profile profile.json --secret mark.secret --trust profile.pem --report pages/
mark text drill marked.jsonl --profile profile.json --secret mark.secret --trust profile.pem --plain other.txt
mark text message marked.jsonl --profile profile.json --secret mark.secret --trust profile.pem
mark text trace leaked.txt --profile profile.json --secret mark.secret --trust profile.pem --users names.txt
mark text decoys found.txt --profile profile.json --secret mark.secret --trust profile.pem --decoys 999
mark text radioactivity model-output.jsonl --profile profile.json --secret mark.secret --trust profile.pem
mark image setup --profile picture.json --secret mark.secret --sign-with signer.key
mark image write photos/ -o marked/ --profile picture.json --secret mark.secret --trust signer.pem
mark image detect found.jpg --profile picture.json --secret mark.secret --trust signer.pem --search scale
mark image credentials test-chain ca/ --organisation "Example Ltd"
mark image credentials sign marked/ -o signed/ --profile picture.json --secret mark.secret --trust signer.pem \
--chain ca/chain.pem --key ca/leaf.key
mark image credentials verify signed/ --root ca/root.pem
mark image drill photos/ --profile picture.json --secret mark.secret --trust signer.pem
mark image attribute found.jpg --profile picture.json --secret mark.secret --trust signer.pem \
--log pictures.jsonl --log-trust signer.pem
mark public token --tokens tokens.db --client press --one-time --count 20
mark public serve --sign-with signer.key --tokens tokens.db --journal answers.log --image-profile picture.json \
--image-secret mark.secret
mark public receipt answer.json --content found.jpg --trust signer.pem
mark public revoke --tokens tokens.db --client press
audit plan --epsilon 8 --delta 1e-5 --canaries 1000 --guesses-in 250 --guesses-out 250 --out audit/
audit membership my_model:trained --members in.npz --non-members out.npz --architecture my_model:network --references 16
audit membership https://models.example/predict --members in.npz --non-members out.npz --rate 5 --out audit/
audit text runs/tuned --base models/base --members in.txt --non-members out.txt --out audit/
audit steps --noise-multiplier 1.13 --sample-rate 0.1 --steps 200 --run runs/mnist
audit model my_model:setup --pairs 200 --run runs/mnist
audit scores canaries.npz --design audit/design.json --coins audit/coins.json --commitment 28e8… --control twin.npz
ledger show runs/mnist
ledger show runs/mnist --delta 1e-6 --json
ledger verify runs/mnist --head 9f2c… --size 41
ledger budget open team.db --officer officer.pem.pub
ledger budget add team.db patients.parquet --name patients --version dvc:3f2a
ledger budget show team.db
ledger budget show team.db patients.parquet --json
ledger budget set team.db patients.parquet --epsilon 2 --reason 'study 7 is over'
ledger budget grant team.db patients.parquet --epsilon 3 --delta 1e-5 --key officer.pem --reason 'study 7'
ledger budget draft team.db patients.parquet --epsilon 3 --delta 1e-5 --key anna.pem --out grant.json --until 2027-12-31
ledger budget sign grant.json --key ben.pem
ledger budget enter team.db grant.json
ledger budget release team.db 5f0c19aa3b7d2e64 --used 20 --key officer.pem --reason 'the disk is lost'
ledger budget spend team.db patients.parquet census 'laplace 2 x 12' 'gaussian 4 sampled 0.01 x 100' --purpose SQL
ledger budget spend team.db patients.parquet dashboard 'dp 0.5 1e-8' --relation add-or-remove-one --planned
ledger budget sweep team.db patients.parquet rates 'gaussian 3 sampled 0.01 x 500' --mean 20
ledger budget disjoint team.db patients.parquet --part east.parquet --part west.parquet --key officer.pem \
--reason 'postcodes do not overlap'
ledger budget verify team.db
ledger budget settle team.db runs/crashed
ledger budget settle team.db 5f0c19aa3b7d2e64 --lost
ledger budget import team.db patients.parquet runs/before-the-book
journal show access.jsonl
journal verify access.jsonl --trust journal.pem.pub --size 41 --head 9f2c…
""".splitlines()


def teach(app: typer.Typer, path: tuple[str, ...] = ()) -> None:
    """Put the uses of every command at the end of its help."""
    for command in app.registered_commands:
        name = command.name or getattr(command.callback, "__name__", "")
        words = [*path, name]
        uses = [use for use in USES if use.split()[: len(words)] == words]
        command.epilog = "\n\n".join(["[bold]Examples[/]", *(f"[green]$[/] privguard {escape(use)}" for use in uses)])
    for group in app.registered_groups:
        if group.typer_instance is not None:
            teach(group.typer_instance, (*path, group.name) if group.name else path)
