"""What the target says of a step: which drafts stay, and what of it the speculators are told.

The rule itself is `engine.verification`; here it is applied to the parts of a step, and accepted rows are moved into
place. All of it is done before anybody is told anything, since the next run of the target, maybe a speculator's,
overwrites what this one has left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.runner import BestLogits, Runner
from engine.running import RunningRequest
from engine.sampling import LogitsError, TargetDistributions, likeliest_tokens
from engine.scheduler import Part
from engine.verification import Verdict, verify_greedy, verify_sampling
from speculators.tree import TokenTree

Logits = NDArray[np.float32]


@dataclass(slots=True)
class Accepted:
    """What became of a part of a step.

    Attributes:
        part: of a request.
        verdict: None where nothing was verified: a prompt is not at its end.
        kept: the part's tokens that stay in the cache.
        hidden: hidden states of all its tokens by layer, [T, H].
        target_tokens, block_weights: see `speculators.outcome.StepOutcome`.
        logits: of the emitted tokens' rows, if the request asked for log-probabilities.
        error: why the request cannot go on.
    """

    part: Part
    verdict: Verdict | None = None
    kept: Sequence[int] = ()
    hidden: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    target_tokens: NDArray[np.int64] | None = None
    block_weights: NDArray[np.float32] | None = None
    logits: Logits | None = None
    error: LogitsError | None = None

    @property
    def emits(self) -> list[int]:
        """The tokens that the target accepts, and its own after them."""
        if self.verdict is None:
            return []
        return [*(self.part.tree.tokens[node] for node in self.verdict.path), self.verdict.token]


class Acceptance:
    """Verifies the parts of a step.

    Args:
        runner: has run them.
        layers: hidden states that are kept for speculators.
        target_tokens: how many of the target's likeliest tokens are.
    """

    def __init__(self, runner: Runner, layers: Sequence[int], target_tokens: int) -> None:
        self._runner, self._target_tokens = runner, target_tokens
        self._columns = {layer: runner.hidden_layers.index(layer) for layer in layers}

    def wants_logits(self, parts: Sequence[Part]) -> bool:
        """Whether a step is asked for more than the greatest logit of each row."""
        return self._target_tokens > 0 or any(part.item.wants_logits for part in parts)

    def __call__(self, parts: Sequence[Part], logits: Logits | BestLogits) -> list[Accepted]:
        """What became of each part, in order."""
        accepted = []
        states = self._runner.hidden() if self._columns else None
        row = first = 0
        for index, part in enumerate(parts):
            count = len(part.batch.tokens) - part.batch.logits_from
            rows = logits[row : row + count]
            tokens = slice(first, first + len(part.batch.tokens))
            row, first = row + count, tokens.stop
            hidden = {} if states is None else {at: states[tokens, i] for at, i in self._columns.items()}
            if not count:
                accepted.append(Accepted(part, None, range(len(part.batch.tokens)), hidden))
                continue
            try:
                accepted.append(self._accepted(index, part, rows, hidden))
            except LogitsError as error:
                accepted.append(Accepted(part, error=error))
        return accepted

    def verify(self, item: RunningRequest, tree: TokenTree, logits: Logits) -> Verdict:
        """The rule: which nodes of a tree are accepted, and the target's own token after them."""
        sampling = item.request.sampling
        if sampling.greedy:
            return verify_greedy(tree, logits, item.id)
        return verify_sampling(tree, TargetDistributions(logits, sampling, item.id), item.random)

    def _accepted(
        self,
        index: int,
        part: Part,
        logits: Logits | BestLogits,
        hidden: Mapping[int, NDArray[np.float32]],
    ) -> Accepted:
        item, tree, plain = part.item, part.tree, None
        if isinstance(logits, BestLogits):
            verdict = verify_greedy(tree, logits, item.id)
        else:
            plain = logits.copy() if item.request.return_log_probs else None
            if len(item.output) < item.request.min_tokens:
                item.ban_early_end(logits, (0, *tree.depths))
            verdict = self.verify(item, tree, logits)
        kept: Sequence[int] = range(len(part.batch.tokens))
        if not part.reads:
            root = part.batch.logits_from
            kept = [*range(root + 1), *(root + 1 + node for node in verdict.path)]
            self._runner.commit(index, kept)
        rows = None if plain is None else plain[[0, *(node + 1 for node in verdict.path)]]
        weights = self._runner.block_weights(index) if part.batch.weighed else None
        return Accepted(part, verdict, kept, hidden, self._likeliest(logits, part, verdict), weights, rows)

    def _likeliest(
        self, logits: Logits | BestLogits, part: Part, verdict: Verdict
    ) -> NDArray[np.int64] | None:
        """The target's likeliest tokens [n + 1, k]; on the accepted path the emitted one comes first."""
        if isinstance(logits, BestLogits):
            return None
        most = min(self._target_tokens, logits.shape[1])
        if not most or not part.item.speculates:
            return None
        likeliest = np.stack([likeliest_tokens(row, most) for row in logits])
        tokens = [*(part.tree.tokens[node] for node in verdict.path), verdict.token]
        for row, token in zip([0, *(node + 1 for node in verdict.path)], tokens, strict=True):
            others = [other for other in likeliest[row].tolist() if other != token]
            likeliest[row] = [token, *others][:most]
        return likeliest
