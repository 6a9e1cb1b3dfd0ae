# SPDX-License-Identifier: Apache-2.0
"""``privguard mark``: commit, embed, challenge, verify, drill and trace for marks in models.

Models come as safetensors files. A plain chain of linear layers with ReLU needs nothing else; for any other network
``--network package.module:function`` names a function without arguments that returns it.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from privguard import _canon
from privguard.cli._output import AsJson, emit, progress, require_place, stderr
from privguard.cli._recording import recorded
from privguard.cli.mark import _claims as begun
from privguard.cli.mark import _files as files
from privguard.cli.mark import _models as models

app = typer.Typer(no_args_is_help=True, help="Marks in models, and claims that hold up.")

Claim = Annotated[Path, typer.Argument(help="The claim's folder.")]
Network = Annotated[str, typer.Option(help="package.module:function that makes the network; else a chain of linear.")]
Notary = Annotated[Path | None, typer.Option(help="A local stand-in for timestamp, beacon and log; commit makes it.")]
TrustFile = Annotated[Path | None, typer.Option("--trust", help="Whom to believe: a trust file.")]


@app.command()
def commit(
    claim: Claim,
    weights: Annotated[Path | None, typer.Option(help="The unmarked model: safetensors, or its folder.")] = None,
    classes: Annotated[int, typer.Option(help="How many labels the model has.")] = 10,
    shape: Annotated[str, typer.Option(help="Shape of one input, as 1,28,28; without it no triggers.")] = "",
    triggers: Annotated[int, typer.Option(help="Secret inputs to commit to; a challenge uses some up.")] = 128,
    recipients: Annotated[int, typer.Option(help="Copies to be told apart later.")] = 0,
    network: Network = "",
    identity: Annotated[Path | None, typer.Option(help="The owner's signing key; made when it is not there.")] = None,
    notary: Notary = None,
    log: Annotated[Path | None, typer.Option(help="An outside log's extract, whose last entry is entry.json.")] = None,
    timestamp: Annotated[Path | None, typer.Option(help="An authority's answer to request.tsq.")] = None,
    pulse: Annotated[Path | None, typer.Option(help="The beacon's JSON of the pulse that counts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Commit to secret marks, signed and timestamped: before release, before anybody, you included, can know them.

    The first call makes the folder; with outside authorities, later calls add their answers.
    """
    from privguard.attest import timestamp as stamping
    from privguard.watermark.claims import commitment as claims
    from privguard.watermark.claims.commitment import Commitment

    place = claim / "commitment.json"
    if place.exists() and weights is not None:
        raise FileExistsError(f"{claim}: holds a claim already; name a new folder, or leave out --weights")
    secret = None
    if place.exists():
        made = Commitment.read(place)
    else:
        wanted = begun.Wanted(classes=classes, shape=shape, triggers=triggers, recipients=recipients, network=network)
        secret, made = begun.first(weights, identity, wanted)
    made = begun.grown(made, notary=notary, log=log, timestamp=timestamp, pulse=pulse)
    if secret is not None:  # not before all that was given is read, so that no half a claim is left
        claim.mkdir(parents=True, exist_ok=True)
        secret.write(claim / "secret")
    made.write(place)
    if made.timestamp is None:
        (claim / "entry.json").write_bytes(_canon.canonical(made.entry(claims.read_manifest(made).owner)) + b"\n")
        (claim / "request.tsq").write_bytes(stamping.request(made.message()))
        stderr().print(f"Send {claim / 'request.tsq'} to a timestamp authority, then add --timestamp and --pulse.")
    elif made.pulse is None:
        stderr().print("Not finished: add that pulse of the beacon with --pulse.")
    facts = {
        "claim": made.digest,
        "owner": str(claims.read_manifest(made).owner),
        "timestamped": made.timestamp is not None,
        "pulse": made.pulse is not None,
    }
    emit(facts, as_json=as_json, lines=[f"claim {made.digest}", f"owner {facts['owner']}"])


@app.command()
def trust(
    output: Annotated[Path, typer.Argument(help="The trust file to write.")],
    notary: Annotated[Path | None, typer.Option(help="A local notary's file.")] = None,
    tsa: Annotated[list[Path] | None, typer.Option(help="PEM bundle of a timestamp authority, root included.")] = None,
    beacon: Annotated[list[Path] | None, typer.Option(help="PEM certificate of a beacon.")] = None,
    chain: Annotated[int, typer.Option(help="The beacon's chain.")] = 2,
    log: Annotated[Path | None, typer.Option(help="JSON of a log's operator and witnesses.")] = None,
    verifier: Annotated[list[Path] | None, typer.Option(help="PEM public key of a verifier.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write down whom you believe; every verdict rests on it, and nothing is taken from the evidence itself."""
    from privguard.attest.beacon import Beacon
    from privguard.attest.log import Trusted
    from privguard.attest.notary import LocalNotary
    from privguard.attest.statement import Identity
    from privguard.attest.timestamp import Authority
    from privguard.watermark.claims.commitment import Trust

    authorities = [files.certified(path, Authority.from_pem) for path in tsa or []]
    beacons = [files.certified(path, partial(Beacon.from_pem, chain=chain)) for path in beacon or []]
    trusted = None if log is None else Trusted.from_json(files.json_object(log))
    if notary is not None:
        local = LocalNotary.read(notary)
        authorities.append(local.server.authority)
        beacons.append(local.beacon.beacon)
        trusted = trusted or local.trusted
    verifiers = tuple(Identity.read(path) for path in verifier or [])
    found = Trust(authorities=tuple(authorities), beacons=tuple(beacons), verifiers=verifiers, log=trusted)
    output.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    counts = f"{len(authorities)} authorities, {len(beacons)} beacons, {len(verifiers)} verifiers"
    emit(found, as_json=as_json, lines=[counts])


@app.command()
def embed(
    claim: Claim,
    weights: Annotated[Path, typer.Option(help="The unmarked model: safetensors, or its folder.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="Where the marked model goes, one safetensors file.")],
    public: Annotated[
        Path | None, typer.Option(help="npz with inputs and labels, never private; for triggers.")
    ] = None,
    notary: Notary = None,
    trust: TrustFile = None,
    network: Network = "",
    least: Annotated[float, typer.Option(help="Share of triggers below which no file is written.")] = 0.75,
    margin: Annotated[float, typer.Option(help="By how much a trigger's label leads, in logits.")] = 2.0,
    steps: Annotated[int, typer.Option(help="Steps of teaching.")] = 300,
    recipient: Annotated[int | None, typer.Option(help="Make this recipient's copy.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a marked copy of the committed model. Spends no privacy budget: only the key and public data enter."""
    from privguard.watermark.claims import offline
    from privguard.watermark.model.bundle import Bundle

    require_place(output)
    if output.exists() and output.samefile(weights):
        raise FileExistsError(f"{output}: is the unmarked model, which every later challenge needs; name another file")
    standing, tree = files.standing(claim, files.trusted(trust, notary)), files.leaves(claim)
    state = models.tensors(weights)
    files.require_committed(standing, state)
    bundle = Bundle(standing=standing, tree=tree, unmarked=state)
    facts: dict[str, Any] = {"privacy": "post-processing with key and public data; spends nothing"}
    if begun.has_triggers(standing):
        lesson = begun.Teaching(steps=steps, margin=margin, least=least)
        tensors, taught = begun.taught(bundle, files.network(network, state), public, lesson)
        facts |= taught
        lines = [
            f"{output}: {taught['triggers']:.0f} of {taught['of']} triggers taught",
            f"accuracy on --public {taught['accuracy_before']:.1%} before, {taught['accuracy_after']:.1%} after",
        ]
    else:
        with recorded():
            tensors = bundle.embed_tensors()
        lines = [f"{output}: carriers in {len(standing.manifest.mark('weights').settings['tensors'])} tensors"]
    if recipient is not None:
        with recorded():
            tensors = bundle.recipient_copy(tensors, recipient)
    models.write(tensors, output, like=weights)
    facts["model"] = offline.tensors_digest("marked", models.tensors(output)).sha256
    emit(facts, as_json=as_json, lines=lines)


@app.command()
def challenge(
    claim: Claim,
    suspect: Annotated[Path, typer.Option(help="The suspect model, safetensors.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="Where the evidence goes.")],
    notary: Annotated[Path, typer.Option(help="The local notary's file, which logs the challenge.")],
    verifier: Annotated[Path, typer.Option(help="The verifier's signing key; made when it is not there.")],
    unmarked: Annotated[Path | None, typer.Option(help="The committed model, to read the weights as well.")] = None,
    natural: Annotated[Path | None, typer.Option(help="npz with ordinary inputs, to hide triggers among.")] = None,
    triggers: Annotated[int, typer.Option(help="Triggers to ask; none of them can be asked again.")] = 64,
    leaves: Annotated[int, typer.Option(help="Carriers in the weights to read; none can be read again.")] = 16,
    network: Network = "",
    as_json: AsJson = False,
) -> None:
    """Ask a suspect for the marks, as owner and verifier in one, and sign the evidence. What is opened is burned."""
    from privguard.watermark.claims import evidence, offline

    require_place(output)
    if output.exists():
        raise FileExistsError(f"{output}: is there already; name another file, the leaves in this one are burned")
    state = models.tensors(suspect)
    table = files.table(claim, notary, verifier)
    asked = begun.has_triggers(table.standing)
    model = files.network(network, state) if asked else None
    digest = offline.tensors_digest(suspect.name, state)
    sizes, white_box = {"triggers": triggers} if asked else {}, None
    if unmarked is None and not asked:
        raise ValueError("--unmarked: expected the committed model; this claim has marks in the weights only")
    if unmarked is not None:
        ours = models.tensors(unmarked)
        files.require_committed(table.standing, ours)
        sizes["weights"], white_box = leaves, (state, ours)
    extra = None if natural is None or not asked else files.natural(natural)
    plan = table.draw(digest, sizes, natural=0 if extra is None else len(extra))
    file = table.prove(plan, suspect=begun.answerer(model), natural=extra, white_box=white_box)
    file.write(output)
    _show(evidence.verify(file, trust=table.trust, suspect=digest), as_json=as_json)


@app.command()
def verify(
    evidence: Annotated[Path, typer.Argument(help="The evidence, one signed file.")],
    trust: Annotated[Path, typer.Option(help="Whom you believe: a trust file of your own.")],
    suspect: Annotated[Path | None, typer.Option(help="The model you have in mind, safetensors.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Models that the owner may have searched to find it.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Get the verdict again from the evidence: offline, without secrets. Exit 0 proven, 1 not proven, 3 invalid."""
    from privguard.attest.statement import Envelope
    from privguard.watermark.claims import evidence as judging
    from privguard.watermark.claims import offline
    from privguard.watermark.claims.commitment import Trust

    digest = None if suspect is None else offline.tensors_digest(suspect.name, models.tensors(suspect))
    file, whom = Envelope.read(evidence), Trust.read(trust)
    _show(judging.verify(file, trust=whom, suspect=digest, candidates=candidates), as_json=as_json)


@app.command()
def drill(
    claim: Claim,
    weights: Annotated[Path, typer.Option(help="The marked model, safetensors.")],
    unmarked: Annotated[Path, typer.Option(help="The committed model, safetensors.")],
    thief: Annotated[Path, typer.Option(help="npz with the thief's inputs and labels.")],
    test: Annotated[Path, typer.Option(help="npz with inputs and labels to measure what the thief loses.")],
    output: Annotated[Path, typer.Option("-o", "--out", help="Folder for the table and the picture.")],
    notary: Notary = None,
    trust: TrustFile = None,
    network: Network = "",
    epochs: Annotated[int, typer.Option(help="Epochs of each attack that trains.")] = 40,
    trained_on: Annotated[int, typer.Option(help="Examples × epochs of the owner's training, for the cost.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Attack a marked classifier in every way we know, at home: no leaf is burned. Writes a table and a picture."""
    import torch

    from privguard.watermark.model import survival, theft
    from privguard.watermark.model.bundle import Bundle

    standing, tree = files.standing(claim, files.trusted(trust, notary)), files.leaves(claim)
    ours, state = models.tensors(unmarked), models.tensors(weights)
    files.require_committed(standing, ours)
    model, tests, data = files.network(network, state), files.public(test), files.public(thief)
    bundle = Bundle(standing=standing, tree=tree, unmarked=ours)
    work = trained_on or epochs * len(data.inputs)
    exercise = survival.Drill(
        bundle=bundle, marked=model, inputs=tests.inputs, labels=tests.labels, owner_examples=work
    )
    means = theft.Means(inputs=data.inputs, labels=data.labels, generator=torch.Generator().manual_seed(0))
    suite = survival.attacks(lambda: files.untrained_twin(model), lambda: files.untrained_twin(model), epochs=epochs)
    with progress() as bar:
        task = bar.add_task("attacking", total=len(suite) + len(survival.FRONTS))
        rows = exercise.run(suite, means=means, done=lambda _: bar.advance(task))
    output.mkdir(parents=True, exist_ok=True)
    (output / "survival.md").write_text(survival.markdown(rows), encoding="utf-8")
    survival.picture(rows, output / "survival.svg")
    emit([row.to_json() for row in rows], as_json=as_json, lines=survival.markdown(rows).splitlines())


@app.command()
def trace(
    claim: Claim,
    suspect: Annotated[Path, typer.Option(help="The leaked model, safetensors.")],
    unmarked: Annotated[Path, typer.Option(help="The committed model, safetensors.")],
    notary: Notary = None,
    trust: TrustFile = None,
    level: Annotated[float, typer.Option(help="Chance of accusing anybody wrongly.")] = 1e-3,
    as_json: AsJson = False,
) -> None:
    """Find out whose copy leaked, also from the average of several copies. Exit 1 when nobody is accused."""
    from privguard.watermark.model import weights
    from privguard.watermark.model.lay import beside

    standing, tree, ours = (
        files.standing(claim, files.trusted(trust, notary)),
        files.leaves(claim),
        models.tensors(unmarked),
    )
    files.require_committed(standing, ours)
    mark = standing.manifest.mark("recipients")
    laid = beside.lay(models.tensors(suspect), unmarked=ours, settings=mark.settings)
    for layer in laid.layers:
        stderr().print(str(layer), markup=False)
    accused, verdicts = weights.trace(
        laid.tensors,
        tree.leaves["recipients"],
        unmarked=ours,
        pulse=standing.pulse.output,
        plan=mark,
        family_level=level,
    )
    facts = [{"recipient": index, "log10_p": verdicts[index].log10_p_corrected} for index in accused]
    lines = [f"recipient {item['recipient']}: p ≤ 10^{item['log10_p']:.1f} among {mark.leaves}" for item in facts]
    emit(facts, as_json=as_json, lines=lines or ["nobody is accused"])
    if not accused:
        raise typer.Exit(1)


def _show(report: Any, *, as_json: bool) -> None:
    from privguard.watermark.claims.evidence import Outcome

    lines = [f"{report.outcome.value.upper()}: {report.reason}"]
    for found in report.verdicts:
        sign = "≤" if found.bound != "exact" else "="
        lines.append(f"  {found.scheme}: {found.matches:.4g} in {found.trials}, p {sign} 10^{found.log10_p:.1f}")
    if report.verdicts:
        lines.append(f"  tests that this pays for, by the log of {report.owner}: {report.multiplicity:.4g}")
    lines += [f"  {line}" for line in report.basis]
    emit(report, as_json=as_json, lines=lines)
    codes = {Outcome.PROVEN: 0, Outcome.NOT_PROVEN: 1, Outcome.PROTOCOL_INVALID: 3}
    if codes[report.outcome]:
        raise typer.Exit(codes[report.outcome])
