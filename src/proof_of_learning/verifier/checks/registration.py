"""Registration: everything in the proof is what its claim fixed before training."""

from __future__ import annotations

from proof_of_learning import registration
from proof_of_learning.errors import FormatError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.verifier.evidence import Answers, Evidence, Plan, result
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.verdict import CheckResult


class RegistrationCheck:
    name = "registration"
    meaning = (
        "All randomness follows from the hash of a claim that fixes task, data, length, interval, codec and environment; "
        "no choice was left for later."
    )
    limits = (
        "Nobody shows yet when the claim was made: many can be registered, and the most convenient one finished. "
        "Only a trusted timestamp on the claim excludes that."
    )

    def plan(self, evidence: Evidence, answers: Answers) -> Plan:
        return []

    def judge(self, evidence: Evidence, answers: Answers) -> CheckResult:
        return self.attest(evidence.proof, evidence.options)

    def attest(self, proof: Proof, options: Options) -> CheckResult:
        """The same from header and log alone, before any state is read."""
        header, given = proof.header, options.claims.registration
        if header.claim is None:
            if given is not None:
                return result(self, "fail", "the proof was not made under the given claim, nor under any other")
            source = "from a seed" if header.randomness.mode == "derived" else "with recorded randomness"
            return result(self, "skipped", f"the proof was made {source}, without a registered claim", mandatory=False)
        try:
            claim = registration.claim_of(header)
        except FormatError as error:
            return result(self, "fail", str(error))
        found = registration.violations(header, proof.environments)
        if found:
            return result(self, "fail", found[0], violations=found[:100])
        if given is None:
            return result(self, "pass", f"made under the claim {claim.digest()[:19]}…", claim=claim.digest())
        if given.claim.digest() != claim.digest():
            return result(
                self, "fail", "the proof was made under another claim than the one given",
                given=given.claim.digest(), proof=claim.digest(),
            )  # fmt: skip
        others = [run for run in given.runs if run.root not in (None, proof.root)]
        open_ = len(given.unfinished)
        note = f"; the claim also has {open_} run(s) that were started and not finished" if open_ else ""
        note += f"; {len(others)} other finished run(s)" if others else ""
        return result(
            self, "pass", f"made under the given claim {claim.digest()[:19]}…{note}", claim=claim.digest(),
            created=given.created, runs=len(given.runs), unfinished=open_, owners=claim.owners,
        )  # fmt: skip
